#include "ops/adapters.h"

#include <algorithm>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

struct Rows {
  std::string name;
  int64_t tokens = 1, adapters = 1;
  int64_t experts = 0, k = 1;  // 0 experts: a row a token
  int64_t none = 3;            // about one token in so many has no adapter; 1: all
  int64_t padding = 0;         // rows at the end that are of no group
};

void sort_by_adapter(Rig& rig, const Rows& c) {
  std::vector<int32_t> adapters;
  for (int64_t n = 0; n < c.tokens; ++n) {
    const bool none = c.none > 0 && rig.random().below(static_cast<uint64_t>(c.none)) == 0;
    // Beyond the last adapter is none, too.
    adapters.push_back(
        none ? (n % 2 == 0 ? -1 : static_cast<int32_t>(c.adapters))
             : static_cast<int32_t>(rig.random().below(static_cast<uint64_t>(c.adapters))));
  }
  const int64_t rows = c.tokens * c.k, groups = c.experts > 0 ? c.experts : 1;
  ops::SortByAdapter op{.adapters = rig.indices("adapters", {c.tokens}, adapters),
                        .source = {},
                        .groups = {},
                        .order = {},
                        .place = {},
                        .offsets = {},
                        .divisor = c.k};
  if (c.experts > 0) {
    Routing routing = draw_routing(rig.random(), c.tokens, c.experts, c.k);
    for (int32_t& offset : routing.offsets)
      offset = std::min(offset, static_cast<int32_t>(rows - c.padding));
    op.source = rig.indices("source", {rows}, routing.source);
    op.groups = rig.indices("groups", {c.experts + 1}, routing.offsets);
  }
  op.order = rig.output("order", {rows}, Dtype::i32);
  op.place = rig.output("place", {rows}, Dtype::i32);
  op.offsets = rig.output("offsets", {c.adapters * groups + 1}, Dtype::i32);
  rig.run(op);
}

}  // namespace

std::vector<OpCase> adapters_cases() {
  std::vector<OpCase> cases;
  for (const Rows& c : std::vector<Rows>{
           {.name = "one"},
           {.name = "one_without", .none = 1},
           {.name = "tokens", .tokens = 37, .adapters = 5},
           {.name = "tokens_all_with", .tokens = 64, .adapters = 3, .none = 0},
           {.name = "experts", .tokens = 21, .adapters = 4, .experts = 8, .k = 2},
           {.name = "experts_whole_warps", .tokens = 32, .adapters = 2, .experts = 4, .k = 2},
           {.name = "padding", .tokens = 19, .adapters = 3, .experts = 5, .k = 2, .padding = 8},
           {.name = "padding_only",
            .tokens = 8,
            .adapters = 3,
            .experts = 5,
            .k = 2,
            .padding = 16},
           {.name = "many", .tokens = 300, .adapters = 70, .experts = 8, .k = 2}})
    cases.push_back({.name = "SortByAdapter_" + c.name,
                     .build = [=](Rig& rig) { sort_by_adapter(rig, c); },
                     .dtypes = {Dtype::f32}});
  return cases;
}

}  // namespace mixtral::test
