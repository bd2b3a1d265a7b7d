#include "serve/cache_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/printable.h"
#include "infer/kept_pages.h"
#include "io/checksum.h"
#include "io/safetensors.h"
#include "io/safetensors_writer.h"

namespace mixtral::serve {
namespace {

constexpr const char* kFormat = "mixtral-cache";
constexpr const char* kVersion = "2";
constexpr int64_t kBatch = 32;  // pages that are copied between two steps of the engine

/// What every page of an engine has.
struct PageForm {
  Shape shape;
  Dtype dtype = Dtype::f32;
  std::string type;  // of the cache
  int64_t tokens = 0, most_pages = 0, vocabulary = 0;

  int64_t bytes() const { return shape.numel() * size_of(dtype); }
};

PageForm form_of(EngineThread& thread) {
  PageForm form;
  bool keeps = false;
  thread.with_engine([&](Engine& engine) {
    form = {.shape = engine.cache().page_shape(),
            .dtype = engine.cache().dtype(),
            .type = std::string(to_string(engine.cache().type())),
            .tokens = engine.cache().page_tokens(),
            .most_pages = engine.context() / engine.cache().page_tokens(),
            .vocabulary = engine.vocabulary()};
    keeps = engine.keeps_prefixes();
  });
  if (!keeps)
    throw Error("this model keeps nothing of earlier prompts: its window slides over them");
  return form;
}

std::string page_name(int64_t i) { return fmt::format("page.{}", i); }

/// Of all that a page says: a flipped bit in its tokens would be as wrong as one in its keys.
int64_t sum_of(std::span<const std::byte> contents, std::span<const int32_t> tokens,
               int64_t parent) {
  Checksummer sum;
  sum.update(contents);
  sum.update(std::as_bytes(tokens));
  sum.update(std::as_bytes(std::span(&parent, 1)));
  return static_cast<int64_t>(sum.result().xxh3);
}

/// Gives the pages back, whatever happens.
template <class Pages>
class Held {
 public:
  explicit Held(EngineThread& thread) : thread_(thread) {}
  ~Held() {
    try {
      thread_.with_engine([&](Engine& engine) {
        if (pages) pages->release(engine);
      });
    } catch (...) {
      pages.reset();  // the engine's thread has ended, and with it the cache
    }
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  std::optional<Pages> pages;

 private:
  EngineThread& thread_;
};

}  // namespace

CacheFileReport save_cache(EngineThread& thread, const std::string& identity,
                           const std::filesystem::path& path) {
  const PageForm form = form_of(thread);
  Held<KeptPages> held(thread);
  thread.with_engine([&](Engine& engine) { held.pages.emplace(engine); });
  const auto& pages = held.pages->pages();
  const auto count = std::ssize(pages);
  if (count == 0) throw Error("there is nothing to save: no prompt has filled a page so far");

  std::vector<PlannedTensor> plan;
  plan.reserve(static_cast<size_t>(count) + 3);
  for (int64_t i = 0; i < count; ++i)
    plan.push_back({.name = page_name(i), .shape = form.shape, .dtype = form.dtype});
  plan.push_back({.name = "parents", .shape = {count}, .dtype = Dtype::i64});
  plan.push_back({.name = "checksums", .shape = {count}, .dtype = Dtype::i64});
  plan.push_back({.name = "tokens", .shape = {count, form.tokens}, .dtype = Dtype::i32});
  SafetensorsWriter writer(
      path, plan,
      {{"format", kFormat}, {"version", kVersion}, {"model", identity}, {"type", form.type}});
  std::vector<int64_t> parents, checksums(pages.size());
  std::vector<int32_t> tokens;
  for (const PrefixIndex::Kept& page : pages) {
    parents.push_back(page.parent);
    tokens.insert(tokens.end(), page.tokens.begin(), page.tokens.end());
  }
  std::vector<std::byte> batch(static_cast<size_t>(kBatch * form.bytes()));
  const auto slot = [&](int64_t i) {
    return Tensor(batch.data() + (i % kBatch) * form.bytes(), form.shape, form.dtype);
  };
  int64_t read = 0;  // pages that came into the batch
  for (const PlannedTensor& tensor : writer.order()) {
    if (tensor.name == "parents") {
      writer.write(Tensor(std::span(parents)));
    } else if (tensor.name == "checksums") {
      writer.write(Tensor(std::span(checksums)));
    } else if (tensor.name == "tokens") {
      writer.write(Tensor(tokens.data(), {count, form.tokens}, Dtype::i32));
    } else {
      const int64_t i = read;
      CHECK(tensor.name == page_name(i));
      if (i % kBatch == 0)
        thread.with_engine([&](Engine& engine) {
          for (int64_t j = i; j < std::min(i + kBatch, count); ++j)
            held.pages->read(engine, static_cast<size_t>(j), slot(j));
        });
      const auto bytes = std::span(batch).subspan(static_cast<size_t>((i % kBatch) * form.bytes()),
                                                  static_cast<size_t>(form.bytes()));
      const PrefixIndex::Kept& page = pages[static_cast<size_t>(i)];
      checksums[static_cast<size_t>(i)] = sum_of(bytes, page.tokens, page.parent);
      writer.write(slot(i));
      ++read;
    }
  }
  return {.tokens = count * form.tokens, .bytes = writer.finish().bytes};
}

CacheFileReport restore_cache(EngineThread& thread, const std::string& identity,
                              const std::filesystem::path& path) {
  const std::string where = printable(path.filename().string());
  const PageForm form = form_of(thread);
  const SafetensorsFile file(path);
  const auto said = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  if (said("format") != kFormat) throw Error(fmt::format("{}: no saved cache", where));
  if (said("version") != kVersion)
    throw Error(fmt::format("{}: of version {}, and this program reads version {}", where,
                            printable(said("version")), kVersion));
  if (said("model") != identity)
    throw Error(
        fmt::format("{}: the cache of another model ({}; this one is {}), or of this one in "
                    "other types",
                    where, printable(said("model")), identity));
  if (said("type") != form.type)
    throw Error(fmt::format("{}: its keys and values are in {}, and this server's in {}", where,
                            printable(said("type")), form.type));
  const Tensor parents = file.view("parents"), sums = file.view("checksums"),
               tokens = file.view("tokens");
  const int64_t count = parents.shape().rank() == 1 ? parents.shape()[0] : -1;
  const bool fits = parents.dtype() == Dtype::i64 && sums.dtype() == Dtype::i64 &&
                    sums.shape() == Shape{count} && tokens.dtype() == Dtype::i32 &&
                    tokens.shape() == Shape{count, form.tokens} &&
                    std::ssize(file.entries()) == count + 3;
  if (!fits) throw Error(fmt::format("{}: its tensors do not belong together", where));
  const std::span parent(static_cast<const int64_t*>(parents.data()), static_cast<size_t>(count));
  const std::span sum(static_cast<const int64_t*>(sums.data()), static_cast<size_t>(count));
  const std::span ids(static_cast<const int32_t*>(tokens.data()),
                      static_cast<size_t>(count * form.tokens));
  if (std::ranges::any_of(ids, [&](int32_t id) { return id < 0 || id >= form.vocabulary; }))
    throw Error(fmt::format("{}: has tokens that the model does not have", where));
  const auto tokens_of = [&](int64_t i) {
    return ids.subspan(static_cast<size_t>(i * form.tokens), static_cast<size_t>(form.tokens));
  };
  std::vector<int64_t> depth(parent.size());
  for (size_t i = 0; i < parent.size(); ++i) {
    if (parent[i] < -1 || parent[i] >= static_cast<int64_t>(i))
      throw Error(fmt::format("{}: page {} follows one that is not before it", where, i));
    depth[i] = 1 + (parent[i] < 0 ? 0 : depth[static_cast<size_t>(parent[i])]);
    if (depth[i] > form.most_pages)
      throw Error(
          fmt::format("{}: has prompts that are longer than this server's context of {} "
                      "tokens",
                      where, form.most_pages * form.tokens));
  }
  Held<RestoredPages> held(thread);
  held.pages.emplace();
  int64_t restored = 0;
  std::vector<std::byte> batch(static_cast<size_t>(kBatch * form.bytes()));
  for (int64_t first = 0; first < count; first += kBatch) {
    const int64_t end = std::min(first + kBatch, count);
    for (int64_t i = first; i < end; ++i) {
      const SafetensorsEntry& entry = file.at(page_name(i));
      const auto bytes = file.bytes(entry);
      const bool right = entry.dtype == form.dtype && std::ssize(bytes) == form.bytes() &&
                         sum_of(bytes, tokens_of(i), parent[static_cast<size_t>(i)]) ==
                             sum[static_cast<size_t>(i)];
      if (!right) throw Error(fmt::format("{}: page {} is damaged; remove the file", where, i));
      std::memcpy(batch.data() + (i - first) * form.bytes(), bytes.data(), bytes.size());
    }
    thread.with_engine([&](Engine& engine) {
      for (int64_t i = first; i < end; ++i)
        if (held.pages->add(
                engine, tokens_of(i), parent[static_cast<size_t>(i)],
                Tensor(batch.data() + (i - first) * form.bytes(), form.shape, form.dtype)))
          restored += form.tokens;
    });
  }
  return {.tokens = restored, .bytes = std::filesystem::file_size(path)};
}

}  // namespace mixtral::serve
