#include "tests/op_cases/kv_view.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "ops/attention.h"

namespace mixtral::test {
namespace {

std::vector<CacheCase> caches() {
  const std::vector<Dtype> f32{Dtype::f32}, narrow{Dtype::f32, Dtype::bf16};
  std::vector<CacheCase> cases{
      {.name = "one", .runs = {{0, 0, 1}}, .heads = {1, 1, 2}, .page_tokens = 1},
      {.name = "decode",
       .runs = {{2, 6, 1}, {0, 0, 1}, {1, 13, 1}},
       .heads = {4, 2, 8},
       .decode_rows = 3},
      {.name = "prefill", .runs = {{1, 3, 4}, {0, 0, 2}}, .heads = {4, 1, 16}},
      {.name = "decode_and_prefill",
       .runs = {{3, 70, 1}, {0, 15, 1}, {1, 16, 1}, {2, 31, 40}, {4, 0, 9}},
       .heads = {4, 2, 16},
       .decode_rows = 3},
      {.name = "padding",
       .runs = {{1, 40, 1},
                {kPaddingRun},
                {0, 3, 1},
                {kPaddingRun, 0, 2},
                {2, 30, 12},
                {kPaddingRun, 0, 5}},
       .heads = {4, 2, 16},
       .decode_rows = 5},
      {.name = "padding_first", .runs = {{kPaddingRun, 0, 3}, {0, 20, 30}}, .heads = {2, 1, 64}},
      {.name = "padding_only", .runs = {{kPaddingRun, 0, 9}}, .heads = {2, 1, 8}, .decode_rows = 4},
      {.name = "window",
       .runs = {{0, 21, 2}, {1, 7, 3}},
       .heads = {2, 2, 16},
       .page_tokens = 4,
       .window = 5},
      {.name = "window_released",
       .runs = {{1, 90, 1}, {2, 3, 1}, {0, 61, 30}, {kPaddingRun, 0, 2}},
       .heads = {4, 2, 16},
       .decode_rows = 2,
       .window = 9,
       .released = true},
      {.name = "window_released_pages_of_1",
       .runs = {{0, 21, 1}, {1, 33, 6}},
       .heads = {2, 1, 64},
       .page_tokens = 1,
       .decode_rows = 1,
       .window = 1,
       .released = true},
      {.name = "shared",
       .runs = {{0, 50, 1}, {1, 33, 1}, {2, 40, 11}},
       .heads = {4, 1, 32},
       .decode_rows = 2,
       .shared_pages = 2},
      {.name = "h128_long",
       .runs = {{1, 150, 1}, {0, 299, 1}},
       .heads = {4, 1, 128},
       .decode_rows = 2,
       .dtypes = narrow},
      {.name = "seed_2048",
       .runs = {{0, 2047, 1}},
       .heads = {16, 8, 64},
       .decode_rows = 1,
       .dtypes = f32,
       .benchmark = true},
      {.name = "seed_8x512_bf16_cache",
       .runs = {{0, 511}, {1, 511}, {2, 511}, {3, 511}, {4, 511}, {5, 511}, {6, 511}, {7, 511}},
       .heads = {16, 8, 64},
       .decode_rows = 8,
       .type = ops::CacheType::bf16,
       .dtypes = f32,
       .benchmark = true},
  };
  for (const int64_t size : {1, 16, 64})
    cases.push_back({.name = "pages_of_" + std::to_string(size),
                     .runs = {{2, 129, 1}, {0, 63, 1}, {1, 64, 70}},
                     .heads = {4, 2, 24},
                     .page_tokens = size,
                     .decode_rows = 2});
  for (const ops::CacheType type : {ops::CacheType::int8, ops::CacheType::fp8}) {
    const auto add = [&](const std::string& name, CacheCase c) {
      c.name = std::string(to_string(type)) + "_" + name;
      c.type = type;
      c.dtypes = narrow;
      cases.push_back(std::move(c));
    };
    for (const auto& [name, run] :
         {std::pair("decode", CacheRun{0, 299, 1}), std::pair("long_decode", CacheRun{0, 1300, 1}),
          std::pair("prefill", CacheRun{0, 30, 70})})
      add(name, {.runs = {run}, .heads = {4, 1, 24}, .decode_rows = run.count == 1 ? 1 : 0});
    add("of_several", {.runs = {{2, 61, 1}, {kPaddingRun}, {0, 9, 1}, {1, 40, 20}},
                       .heads = {6, 2, 64},
                       .decode_rows = 3});
    add("pages_of_1", {.runs = {{0, 21, 1}, {1, 33, 6}},
                       .heads = {2, 1, 10},
                       .page_tokens = 1,
                       .decode_rows = 1});
    add("window_released", {.runs = {{1, 90, 1}, {2, 3, 1}, {0, 61, 30}, {kPaddingRun, 0, 2}},
                            .heads = {4, 2, 16},
                            .page_tokens = 4,
                            .decode_rows = 2,
                            .window = 9,
                            .released = true});
  }
  for (const auto type : {ops::CacheType::f32, ops::CacheType::bf16, ops::CacheType::f16})
    cases.push_back({.name = std::string(to_string(type)) + "_cache",
                     .runs = {{0, 6, 1}, {1, 40, 1}, {2, 30, 20}},
                     .heads = {4, 2, 16},
                     .decode_rows = 2,
                     .type = type,
                     .dtypes = type == ops::CacheType::f32 ? std::vector{Dtype::bf16} : f32});
  return cases;
}

struct Tokens {
  std::vector<int32_t> positions, rows;
  int64_t sequences = 1;
  std::vector<int64_t> first_seen, length;  // of each sequence, for all its tokens here
  int64_t longest = 1;                      // keys that a token sees
};

Tokens tokens_of(const CacheCase& c) {
  Tokens tokens;
  for (const CacheRun& run : c.runs)
    tokens.sequences = std::max<int64_t>(tokens.sequences, run.sequence + 1);
  tokens.first_seen.assign(static_cast<size_t>(tokens.sequences), INT64_MAX);
  tokens.length.assign(static_cast<size_t>(tokens.sequences), 0);
  for (const CacheRun& run : c.runs) {
    for (int32_t i = 0; i < run.count; ++i) {
      const bool padding = run.sequence == kPaddingRun;
      const int32_t position = run.first + i;
      tokens.positions.push_back(padding ? ops::kPadding : position);
      tokens.rows.push_back(padding ? 1 << 20 : run.sequence);  // not read
      if (padding) continue;
      const auto s = static_cast<size_t>(run.sequence);
      const int64_t first = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
      tokens.first_seen[s] = std::min(tokens.first_seen[s], first);
      tokens.length[s] = std::max<int64_t>(tokens.length[s], position + 1);
      tokens.longest = std::max(tokens.longest, position + 1 - first);
    }
  }
  return tokens;
}

/// Pages of random heads of different sizes in codes, as the numbers of their bytes.
std::vector<double> pack_pages(Rig& rig, ops::CacheType type, int64_t pages,
                               const ops::CodedPages& at) {
  std::vector<uint8_t> bytes(static_cast<size_t>(pages * at.page_bytes()));
  std::vector<float> numbers(static_cast<size_t>(at.width));
  for (int64_t page = 0; page < pages; ++page)
    for (int64_t i = 0; i < at.tokens; ++i)
      for (int64_t g = 0; g < at.heads; ++g) {
        const double size = std::exp2(rig.random().normal());
        for (float& number : numbers) number = static_cast<float>(size * rig.random().normal());
        const float scale = ops::pack_head(type, numbers, bytes.data() + at.codes(page, i, g));
        std::memcpy(bytes.data() + at.scale(page, i, g), &scale, sizeof scale);
      }
  return {bytes.begin(), bytes.end()};
}

/// A cache whose pages lie in random order, with some that no sequence has.
ops::KvView make_cache(Rig& rig, const CacheCase& c, const Tokens& tokens, bool changed) {
  const int64_t size = c.page_tokens;
  const int64_t width = *std::max_element(tokens.length.begin(), tokens.length.end()) / size + 2;
  const auto pages = static_cast<uint64_t>(tokens.sequences * width);
  std::vector<int32_t> order;
  for (uint64_t i = 0; i < pages; ++i) order.push_back(static_cast<int32_t>(i));
  for (uint64_t i = 0; i < pages; ++i)
    std::swap(order[i], order[i + rig.random().below(pages - i)]);
  std::vector<int32_t> table(order.size(), ops::kNoPage);
  for (int64_t s = 0; s < tokens.sequences; ++s) {
    const int64_t first = c.released ? tokens.first_seen[static_cast<size_t>(s)] / size : 0;
    for (int64_t i = first; i * size < tokens.length[static_cast<size_t>(s)]; ++i)
      table[static_cast<size_t>(s * width + i)] =
          order[static_cast<size_t>(i < c.shared_pages ? i : s * width + i)];
  }
  const ops::CacheType type = c.type ? *c.type : ops::cache_type_of(rig.dtype());
  const Dtype dtype = stored_dtype(type);
  const Shape shape{static_cast<int64_t>(pages), size, c.heads.kv,
                    ops::cached_width(type, c.heads.width)};
  ops::KvView view;
  view.type = type;
  if (is_coded(type)) {
    const auto codes = [&](const char* name) {
      const auto all = pack_pages(rig, type, shape[0],
                                  {.tokens = size, .heads = c.heads.kv, .width = c.heads.width});
      return changed ? rig.updated_values(name, shape, dtype, all)
                     : rig.values(name, shape, dtype, all);
    };
    view.keys = codes("keys");
    view.values = codes("values");
    view.table = rig.indices("table", {tokens.sequences, width}, table);
    return view;
  }
  view.keys = changed ? rig.updated("keys", shape, dtype) : rig.input("keys", shape, dtype);
  view.values = changed ? rig.updated("values", shape, dtype) : rig.input("values", shape, dtype);
  view.table = rig.indices("table", {tokens.sequences, width}, table);
  return view;
}

struct Copy {
  std::string name;
  Shape shape;
  int64_t from, to;
  Dtype dtype = Dtype::f32;
};

void copy_page(Rig& rig, const Copy& c) {
  rig.run(
      ops::CopyPage{.pages = rig.updated("pages", c.shape, c.dtype), .from = c.from, .to = c.to});
}

}  // namespace

void cache_append(Rig& rig, const CacheCase& c) {
  const Tokens tokens = tokens_of(c);
  const auto count = static_cast<int64_t>(tokens.positions.size());
  rig.run(ops::CacheAppend{.qkv = rig.input("qkv", {count, c.heads.columns()}),
                           .positions = rig.indices("positions", {count}, tokens.positions),
                           .rows = rig.indices("rows", {count}, tokens.rows),
                           .cache = make_cache(rig, c, tokens, true),
                           .heads = c.heads});
}

void cached_attention(Rig& rig, const CacheCase& c) {
  const Tokens tokens = tokens_of(c);
  const auto count = static_cast<int64_t>(tokens.positions.size());
  rig.set_inner(std::max<int64_t>(c.heads.width, tokens.longest));
  rig.run(ops::CachedAttention{
      .qkv = rig.input("qkv", {count, c.heads.columns()}),
      .positions = rig.indices("positions", {count}, tokens.positions),
      .rows = rig.indices("rows", {count}, tokens.rows),
      .cache = make_cache(rig, c, tokens, false),
      .out = rig.output("out", {count, int64_t{c.heads.query} * c.heads.width}),
      .heads = c.heads,
      .decode_rows = c.decode_rows,
      .window = c.window,
      .scale = 1 / std::sqrt(static_cast<double>(c.heads.width))});
}

std::vector<OpCase> kv_view_cases() {
  std::vector<OpCase> cases;
  for (const CacheCase& c : caches())
    cases.push_back({.name = "CacheAppend_" + c.name,
                     .build = [=](Rig& rig) { cache_append(rig, c); },
                     .dtypes = c.dtypes,
                     .benchmark = c.benchmark});
  for (const CacheCase& c : caches())
    cases.push_back({.name = "CachedAttention_" + c.name,
                     .build = [=](Rig& rig) { cached_attention(rig, c); },
                     .dtypes = c.dtypes,
                     .benchmark = c.benchmark});
  for (const Copy& c : std::vector<Copy>{{"one", {1, 2, 1}, 0, 1},
                                         {"odd_bf16", {4, 5, 7}, 3, 0, Dtype::bf16},
                                         {"odd_f32", {3, 4, 33}, 0, 3},
                                         {"f16", {6, 3, 1024}, 2, 1, Dtype::f16},
                                         {"itself", {2, 2, 16}, 1, 1}})
    cases.push_back({"CopyPage_" + c.name, [=](Rig& rig) { copy_page(rig, c); }, {Dtype::f32}});
  return cases;
}

}  // namespace mixtral::test
