#include "cli/data_splits.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"

namespace mixtral {
namespace {

constexpr std::string_view kCacheFolder = ".mixtral-cache";

}  // namespace

DataSplits::DataSplits(DataFlags flags, const Tokenizer* tokenizer)
    : flags_(std::move(flags)), files_(DataFiles::find(flags_.data)), tokenizer_(tokenizer) {
  options_.encode = flags_.encode;
  if (!flags_.token_cache) return;
  const std::filesystem::path data(flags_.data);
  options_.cache = (files_.single ? data.parent_path() : data) / kCacheFolder;
}

const std::filesystem::path& DataSplits::file(Split split) const {
  if (files_.single) return files_.train;
  if (has(split)) return files_[split];
  std::string others;
  for (const Split other : kSplits)
    if (has(other)) others += fmt::format("{}{}", others.empty() ? "" : ", ", split_name(other));
  throw Error(fmt::format("--data {}: there is no {}.jsonl or {}.txt in it, only {}", flags_.data,
                          split_name(split), split_name(split), others));
}

std::vector<std::filesystem::path> DataSplits::files(Split split) const {
  if (!files_.texts.empty()) return split_texts(files_, split, flags_.validation_fraction);
  return {file(split)};
}

Corpus DataSplits::load(Split split) const {
  file(split);  // there must be one
  ThreadPool pool(flags_.threads);
  return load_split(files_, split, flags_.validation_fraction, tokenizer_, options_, pool);
}

Corpus DataSplits::load_whole_or(Split split) const {
  ThreadPool pool(flags_.threads);
  if (!files_.texts.empty()) return load_texts(files_, options_, tokenizer_, pool);
  return load_corpus(file(split), tokenizer_, options_, pool);
}

}  // namespace mixtral
