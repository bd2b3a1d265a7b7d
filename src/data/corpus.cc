#include "data/corpus.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/advice.h"
#include "base/detailed_error.h"
#include "base/error.h"
#include "data/import_records.h"
#include "io/checksum.h"
#include "ops/vocab.h"

namespace mixtral {
namespace {

constexpr int64_t kLinesPerTask = 64, kTasksPerRound = 64;
constexpr int kProblemsShown = 20;

uint64_t hash_bytes(std::string_view text) {
  return checksum(std::as_bytes(std::span(text.data(), text.size()))).xxh3;
}

size_t common_prefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t n = 0;
  while (n < limit && a[n] == b[n]) ++n;
  return n;
}

const Tokenizer& require(const Tokenizer* tokenizer, std::string_view source) {
  if (tokenizer == nullptr) {
    throw AdvisedUsageError(fmt::format(
        "{}: text needs a tokenizer, and there is none; give ‹tokenizer bytes› (a token is a "
        "byte), "
        "or train one with `mixtral tokenizer train --data DATA --vocab-size 2048 --out tok` "
        "and give ‹tokenizer tok›",
        source));
  }
  return *tokenizer;
}

/// `prompt` and what follows it, encoded as one text, as a model sees them when it goes on from the
/// prompt; tokens that the prompt alone would not give are not masked.
Example encode_continuation(const Tokenizer& tokenizer, const std::string& prompt,
                            const std::string& continuation, const EncodeOptions& options,
                            std::string_view source) {
  const std::vector<int32_t> all = tokenizer.encode(prompt + continuation);
  const size_t masked = common_prefix(tokenizer.encode(prompt), all);
  if (masked == all.size()) {
    throw Error(
        fmt::format("{}: nothing follows the prompt, so there is nothing to learn", source));
  }
  Example example;
  if (options.bos && tokenizer.bos_id() >= 0) example.tokens.push_back(tokenizer.bos_id());
  example.labels.assign(example.tokens.size() + masked, ops::kIgnoredLabel);
  example.tokens.insert(example.tokens.end(), all.begin(), all.end());
  example.labels.insert(example.labels.end(), all.begin() + static_cast<int64_t>(masked),
                        all.end());
  if (options.eos && tokenizer.eos_id() >= 0) {
    example.tokens.push_back(tokenizer.eos_id());
    example.labels.push_back(tokenizer.eos_id());
  }
  return example;
}

Example encode_text(const Tokenizer& tokenizer, const std::string& text,
                    const EncodeOptions& options, std::string_view source) {
  if (options.mask_prompt) {
    const size_t at = text.rfind(options.response_marker);
    if (at == std::string::npos) {
      throw AdvisedError(
          fmt::format("{}: there is no response marker \"{}\" in the text, which "
                      "‹mask-prompt› needs; set ‹response-marker›",
                      source, options.response_marker));
    }
    const size_t end = at + options.response_marker.size();
    return encode_continuation(tokenizer, text.substr(0, end), text.substr(end), options, source);
  }
  Example example;
  if (options.bos && tokenizer.bos_id() >= 0) example.tokens.push_back(tokenizer.bos_id());
  const auto ids = tokenizer.encode(text);
  example.tokens.insert(example.tokens.end(), ids.begin(), ids.end());
  if (options.eos && tokenizer.eos_id() >= 0) example.tokens.push_back(tokenizer.eos_id());
  example.labels = example.tokens;
  return example;
}

Example encode_messages(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                        const EncodeOptions& options, std::string_view source) {
  ChatTokens chat = encode_chat(tokenizer, options.rules.chat_template, messages, source);
  Example example{std::move(chat.ids), {}};
  example.labels = example.tokens;
  for (size_t i = 0; i < chat.trained.size(); ++i)
    if (chat.trained[i] == 0) example.labels[i] = ops::kIgnoredLabel;
  return example;
}

Example join_ids(const std::vector<int32_t>& prompt, const std::vector<int32_t>& answer) {
  Example example;
  example.tokens = prompt;
  example.tokens.insert(example.tokens.end(), answer.begin(), answer.end());
  example.labels.assign(prompt.size(), ops::kIgnoredLabel);
  example.labels.insert(example.labels.end(), answer.begin(), answer.end());
  return example;
}

/// What one task made of its lines.
struct LineResults {
  std::vector<Example> examples;
  std::vector<RecordKind> kinds;
  std::vector<uint64_t> hashes;
  std::vector<Problem> problems;
};

LineResults read_lines(const RecordFile& file, int64_t begin, int64_t end,
                       const Tokenizer* tokenizer, const CorpusOptions& options) {
  LineResults results;
  for (int64_t i = begin; i < end; ++i) {
    if (!options.part.has_line(i)) continue;
    const std::string source = file.source(i);
    try {
      const Record record = parse_record(file.line(i), source, options.encode.rules);
      auto examples = encode_record(record, tokenizer, options.encode, source);
      for (Example& example : examples) results.examples.push_back(std::move(example));
      results.kinds.push_back(record.kind);
      results.hashes.push_back(hash_bytes(file.line(i)));
    } catch (const UsageError&) {  // not the line's fault
      throw;
    } catch (const Error& error) {
      results.problems.push_back({i + 1, error.what()});
    }
  }
  return results;
}

/// A hash of everything that a tokenizer does, as far as the vocabulary and a sample show it.
uint64_t fingerprint(const Tokenizer* tokenizer, std::string_view sample) {
  if (tokenizer == nullptr) return 0;
  std::string all = tokenizer->kind() + '\n';
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) all += tokenizer->label(id) + '\n';
  for (int32_t id : tokenizer->encode(sample.substr(0, 1 << 16))) all += fmt::format("{} ", id);
  return hash_bytes(all);
}

uint64_t cache_key(const RecordFile& file, std::string_view text, const Tokenizer* tokenizer,
                   const CorpusOptions& options) {
  const EncodeOptions& e = options.encode;
  const FilePart& part = options.part;
  return hash_bytes(fmt::format(
      "corpus 2 {} {} {} {} {} {} {} {} {} {} {}", hash_bytes(text), static_cast<int>(part.which),
      part.fraction, fingerprint(tokenizer, text), file.is_plain_text(), e.rules.vocab_size,
      name(e.rules.chat_template), e.mask_prompt, e.response_marker, e.bos, e.eos));
}

/// " from 90% to 100% of the text", or nothing for the whole.
std::string place_of(const FilePart& part) {
  if (part.which == FilePart::Which::whole || part.fraction == 0) return "";
  const bool training = part.which == FilePart::Which::training;
  const double border = 100 * (1 - part.fraction);
  return fmt::format(" from {:.3g}% to {:.3g}% of the text", training ? 0 : border,
                     training ? border : 100);
}

void read_plain_text(const RecordFile& file, std::string_view text, const FilePart& part,
                     const Tokenizer* tokenizer, CorpusResult& result) {
  Example example;
  example.tokens = require(tokenizer, file.path().string()).encode(text);
  example.labels = example.tokens;
  CorpusCounts& counts = result.corpus.counts();
  counts.lines = std::count(text.begin(), text.end(), '\n');
  if (example.tokens.empty()) {
    ++result.problem_count;
    const std::string what =
        file.bytes().empty() ? "the text is empty" : "there is nothing" + place_of(part);
    result.problems.push_back({1, fmt::format("{}: {}", file.path().string(), what)});
    return;
  }
  result.corpus.add(example);
  counts.records = counts.kinds[static_cast<size_t>(RecordKind::text)] = 1;
}

void read_records(const RecordFile& file, const Tokenizer* tokenizer, const CorpusOptions& options,
                  ThreadPool& pool, CorpusResult& result) {
  CorpusCounts& counts = result.corpus.counts();
  for (int64_t i = 0; i < file.lines(); ++i) counts.lines += options.part.has_line(i);
  const int64_t tasks = (file.lines() + kLinesPerTask - 1) / kLinesPerTask;
  std::optional<bool> paired;
  for (int64_t first = 0; first < tasks; first += kTasksPerRound) {
    const int64_t n = std::min(kTasksPerRound, tasks - first);
    std::vector<LineResults> round(static_cast<size_t>(n));
    pool.for_each(n, [&](int64_t i, int) {
      const int64_t begin = (first + i) * kLinesPerTask;
      round[static_cast<size_t>(i)] = read_lines(
          file, begin, std::min(begin + kLinesPerTask, file.lines()), tokenizer, options);
    });
    for (LineResults& lines : round) {
      for (Problem& problem : lines.problems) {
        if (result.problem_count++ < options.problem_limit) {
          result.problems.push_back(std::move(problem));
        }
      }
      for (const Example& example : lines.examples) result.corpus.add(example);
      for (RecordKind kind : lines.kinds) {
        if (paired && *paired != is_preference(kind)) {
          throw Error(
              fmt::format("{}: holds preference pairs and other records; put them into "
                          "separate files",
                          file.path().string()));
        }
        paired = is_preference(kind);
        ++counts.kinds[static_cast<size_t>(kind)];
        ++counts.records;
      }
      result.line_hashes.insert(result.line_hashes.end(), lines.hashes.begin(), lines.hashes.end());
    }
    if (options.progress) {
      const int64_t done = std::min((first + n) * kLinesPerTask, file.lines());
      options.progress(done, file.lines());
    }
  }
  if (paired.value_or(false)) result.corpus.set_paired();
  if (counts.records == 0 && result.problem_count == 0) {
    ++result.problem_count;
    result.problems.push_back({1, fmt::format("{}: there are no records", file.path().string())});
  }
  std::sort(result.line_hashes.begin(), result.line_hashes.end());
  for (size_t i = 1; i < result.line_hashes.size(); ++i) {
    counts.duplicates += result.line_hashes[i] == result.line_hashes[i - 1];
  }
}

}  // namespace

bool FilePart::has_line(int64_t i) const {
  if (which == Which::whole) return true;
  const auto before = [&](int64_t lines) {
    return std::floor(static_cast<double>(lines) * fraction + 1e-9);
  };
  return (before(i + 1) > before(i)) == (which == Which::validation);
}

std::string_view FilePart::of(std::string_view text) const {
  if (which == Which::whole) return text;
  auto at =
      std::min(static_cast<size_t>((1 - fraction) * static_cast<double>(text.size())), text.size());
  while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return which == Which::training ? text.substr(0, at) : text.substr(at);
}

std::vector<Example> encode_record(const Record& record, const Tokenizer* tokenizer,
                                   const EncodeOptions& options, std::string_view source) {
  switch (record.kind) {
    case RecordKind::text:
      return {encode_text(require(tokenizer, source), record.text, options, source)};
    case RecordKind::messages:
      return {encode_messages(require(tokenizer, source), record.messages, options, source)};
    case RecordKind::completion:
      return {encode_continuation(require(tokenizer, source), record.prompt, record.completion,
                                  options, source)};
    case RecordKind::ids:
      return {{record.ids, record.labels.empty() ? record.ids : record.labels}};
    case RecordKind::preference: {
      const Tokenizer& t = require(tokenizer, source);
      return {encode_continuation(t, record.prompt, record.chosen, options, source),
              encode_continuation(t, record.prompt, record.rejected, options, source)};
    }
    case RecordKind::preference_messages: {
      const Tokenizer& t = require(tokenizer, source);
      return {encode_messages(t, record.messages, options, source),
              encode_messages(t, record.rejected_messages, options, source)};
    }
    case RecordKind::preference_ids:
      return {join_ids(record.prompt_ids, record.chosen_ids),
              join_ids(record.prompt_ids, record.rejected_ids)};
  }
  CHECK(false);
  return {};
}

CorpusResult read_corpus(const RecordFile& file, const Tokenizer* tokenizer,
                         const CorpusOptions& options, ThreadPool& pool) {
  const std::string_view text = file.is_plain_text() ? options.part.of(file.bytes()) : file.bytes();
  CorpusResult result;
  std::filesystem::path cached;
  uint64_t key = 0;
  if (!options.cache.empty()) {
    key = cache_key(file, text, tokenizer, options);
    cached = options.cache / fmt::format("{:016x}.tokens", key);
    if (result.corpus.load(cached, key)) {
      result.from_cache = true;
      return result;
    }
  }
  result.corpus.counts().bytes = static_cast<int64_t>(text.size());
  if (file.is_plain_text()) {
    read_plain_text(file, text, options.part, tokenizer, result);
  } else {
    read_records(file, tokenizer, options, pool, result);
  }
  if (!cached.empty() && result.problem_count == 0) {
    std::filesystem::create_directories(options.cache);
    result.corpus.save(cached, key);
  }
  return result;
}

Corpus load_corpus(const std::filesystem::path& path, const Tokenizer* tokenizer,
                   const CorpusOptions& options, ThreadPool& pool) {
  const RecordFile file(path);
  CorpusResult result = read_corpus(file, tokenizer, options, pool);
  if (result.problem_count > 0 && file.is_plain_text())
    throw Error(result.problems.front().message);
  if (result.problem_count > 0 && result.corpus.counts().lines == 0)
    throw Error(fmt::format("{}; expected one JSON object a line, such as {{\"text\": \"...\"}}",
                            result.problems.front().message));
  if (result.problem_count > 0) {
    std::string list;
    for (size_t i = 0; i < result.problems.size() && i < kProblemsShown; ++i) {
      list += "  " + result.problems[i].message + "\n";
    }
    const int64_t more = result.problem_count - kProblemsShown;
    if (more > 0) list += fmt::format("  and {} more\n", more);
    const std::string advice = import_advice(path);
    throw DetailedError(
        fmt::format("{}: {} of {} lines are no usable records; {}:", path.string(),
                    result.problem_count, result.corpus.counts().lines,
                    advice.empty() ? fmt::format("`mixtral data check --data {} --fix FILE` shows "
                                                 "them all and writes a corrected copy",
                                                 path.string())
                                   : advice),
        list);
  }
  if (result.corpus.tokens() < 2)
    throw Error(fmt::format("{}: there are fewer than two tokens{}: nothing to learn",
                            path.string(), file.is_plain_text() ? place_of(options.part) : ""));
  return std::move(result.corpus);
}

}  // namespace mixtral
