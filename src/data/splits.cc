#include "data/splits.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using Which = FilePart::Which;

constexpr size_t kManyTexts = 10;  // from here on, whole texts validate

/// Whether a file has so many lines. Reads no further than that.
bool has_lines(const fs::path& path, int64_t wanted) {
  const MappedFile file(path);
  const std::string_view text = file.text();
  int64_t lines = 0;
  for (size_t at = 0; at < text.size() && lines < wanted; ++lines) {
    const size_t end = text.find('\n', at);
    at = end == std::string_view::npos ? text.size() : end + 1;
  }
  return lines >= wanted;
}

bool is_plain_text(const DataFiles& files) {
  return !files.texts.empty() || files.train.extension() == ".txt" ||
         files.train.extension() == ".md";
}

FilePart part_of(Split split, double validation_fraction) {
  return {.which = split == Split::train ? Which::training : Which::validation,
          .fraction = validation_fraction};
}

/// Which part of each text of a folder a split has.
FilePart part_of_texts(const DataFiles& files, const FilePart& part) {
  return files.texts.size() < kManyTexts ? part : FilePart{};
}

CorpusResult read_texts(const DataFiles& files, const FilePart& part, const Tokenizer* tokenizer,
                        const CorpusOptions& options, ThreadPool& pool) {
  CorpusResult result;
  const FilePart of_each = part_of_texts(files, part);
  std::vector<fs::path> paths;
  for (size_t i = 0; i < files.texts.size(); ++i)
    if (files.texts.size() < kManyTexts || part.has_line(static_cast<int64_t>(i)))
      paths.push_back(files.texts[i]);
  std::vector<std::vector<Example>> examples(paths.size());
  std::vector<int64_t> bytes(paths.size());
  pool.for_each(static_cast<int64_t>(paths.size()), [&](int64_t i, int) {
    const auto at = static_cast<size_t>(i);
    const MappedFile file(paths[at]);
    const std::string_view text = of_each.of(file.text());
    bytes[at] = static_cast<int64_t>(text.size());
    if (text.empty()) return;
    EncodeOptions encode = options.encode;
    encode.mask_prompt = false;
    encode.bos = encode.bos && of_each.which != Which::validation;
    encode.eos = encode.eos && of_each.which != Which::training;
    Record record;
    record.text = text;
    examples[at] = encode_record(record, tokenizer, encode, paths[at].string());
  });
  CorpusCounts& counts = result.corpus.counts();
  for (size_t i = 0; i < paths.size(); ++i) {
    counts.bytes += bytes[i];
    for (const Example& example : examples[i]) {
      if (example.tokens.empty()) continue;
      result.corpus.add(example);
      ++counts.records;
    }
  }
  counts.lines = counts.kinds[static_cast<size_t>(RecordKind::text)] = counts.records;
  if (counts.records == 0) {
    ++result.problem_count;
    result.problems.push_back({0, fmt::format("{}: its texts are empty", files.train.string())});
  }
  return result;
}

}  // namespace

bool has_split(const DataFiles& files, Split split, double validation_fraction) {
  if (!files.single) return !files[split].empty();
  if (split == Split::train) return true;
  if (split == Split::test || validation_fraction <= 0) return false;
  const auto wanted = static_cast<int64_t>(std::ceil(1 / validation_fraction - 1e-9));
  return is_plain_text(files) || has_lines(files.train, wanted);
}

std::vector<fs::path> split_texts(const DataFiles& files, Split split, double validation_fraction) {
  const FilePart part = part_of(split, validation_fraction);
  std::vector<fs::path> texts;
  for (size_t i = 0; i < files.texts.size(); ++i)
    if (files.texts.size() < kManyTexts || part.has_line(static_cast<int64_t>(i)))
      texts.push_back(files.texts[i]);
  return texts;
}

std::string validation_text(const DataFiles& files, double validation_fraction) {
  if (!files.single || !has_split(files, Split::val, validation_fraction)) return {};
  if (!files.texts.empty() && files.texts.size() < kManyTexts)
    return fmt::format("the last {:.3g}% of each text", 100 * validation_fraction);
  if (files.texts.empty() && is_plain_text(files))
    return fmt::format("the last {:.3g}% of the text", 100 * validation_fraction);
  return fmt::format("{:.3g}% of the {}, evenly spread", 100 * validation_fraction,
                     files.texts.empty() ? "records" : "texts");
}

CorpusResult read_split(const DataFiles& files, Split split, double validation_fraction,
                        const Tokenizer* tokenizer, CorpusOptions options, ThreadPool& pool) {
  if (files.single && has_split(files, Split::val, validation_fraction))
    options.part = part_of(split, validation_fraction);
  if (!files.texts.empty()) return read_texts(files, options.part, tokenizer, options, pool);
  return read_corpus(RecordFile(files.single ? files.train : files[split]), tokenizer, options,
                     pool);
}

Corpus load_split(const DataFiles& files, Split split, double validation_fraction,
                  const Tokenizer* tokenizer, CorpusOptions options, ThreadPool& pool) {
  if (!has_split(files, split, validation_fraction)) {
    if (files.single)
      throw Error(fmt::format("{}: there is no {} split: no part of it is kept for it",
                              files.train.string(), split_name(split)));
    const fs::path where =
        (files.train.empty() ? files.val.empty() ? files.test : files.val : files.train)
            .parent_path();
    throw Error(fmt::format("{}: there is no {} split; add {}.jsonl", where.string(),
                            split_name(split), split_name(split)));
  }
  if (files.single && has_split(files, Split::val, validation_fraction))
    options.part = part_of(split, validation_fraction);
  if (files.texts.empty())
    return load_corpus(files.single ? files.train : files[split], tokenizer, options, pool);
  return load_texts(files, options, tokenizer, pool);
}

Corpus load_texts(const DataFiles& files, const CorpusOptions& options, const Tokenizer* tokenizer,
                  ThreadPool& pool) {
  CorpusResult result = read_texts(files, options.part, tokenizer, options, pool);
  if (result.problem_count > 0) throw Error(result.problems.front().message);
  return std::move(result.corpus);
}

}  // namespace mixtral
