// How long the masks of constrained output take, and whether texts are accepted:
//   constrain_bench TOKENIZER CASES [--verdicts]
// CASES has a line {"kind": "schema"|"gbnf"|"regex", "grammar": ..., "texts": [...]} a grammar.
// Each text is encoded, and each of its tokens asked for: the mask before it, then whether it fits.
// A grammar's tables begin empty, as with a new request. With --verdicts it prints a line of JSON a
// grammar: {"error": ...} or {"accepted": [...], "compile_us": ...}. The times go to the last line.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "constrain/matcher.h"
#include "text/tokenizer.h"

namespace {

using mixtral::constrain::Grammar;
using mixtral::constrain::Matcher;
using mixtral::constrain::Vocabulary;
using json = nlohmann::ordered_json;

double microseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
      .count();
}

Grammar compile(const json& entry) {
  const auto& grammar = entry.at("grammar");
  if (entry.at("kind") == "gbnf")
    return mixtral::constrain::compile_gbnf(grammar.get<std::string>());
  if (entry.at("kind") == "regex")
    return mixtral::constrain::compile_regex(grammar.get<std::string>());
  return mixtral::constrain::compile_json_schema(grammar.dump(), "schema");
}

class Bench {
 public:
  explicit Bench(const std::string& tokenizer) : tokenizer_(mixtral::load_tokenizer(tokenizer)) {
    const std::vector<int64_t> stops{tokenizer_->eos_id()};
    const auto begin = std::chrono::steady_clock::now();
    vocabulary_ = std::make_shared<const Vocabulary>(*tokenizer_, stops);
    vocabulary_us_ = microseconds_since(begin);
  }

  json run(const json& entry) {
    json verdict;
    try {
      auto begin = std::chrono::steady_clock::now();
      const Matcher start(compile(entry), vocabulary_);
      compile_us_.push_back(microseconds_since(begin));
      verdict["compile_us"] = compile_us_.back();
      for (const auto& text : entry.at("texts"))
        verdict["accepted"].push_back(accepts(start, text.get<std::string>()));
    } catch (const mixtral::Error& error) {
      verdict = {{"error", error.what()}};
    }
    return verdict;
  }

  std::string summary() {
    std::string line = fmt::format("vocabulary {} tokens in {:.0f} ms; {} grammars",
                                   vocabulary_->size(), vocabulary_us_ / 1000, compile_us_.size());
    const auto add = [&](const char* name, std::vector<double>& times) {
      if (times.empty()) return;
      std::ranges::sort(times);
      const auto at = [&](double share) {
        return times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
      };
      line += fmt::format(
          "; {} (us): mean {:.1f}, median {:.1f}, p99 {:.1f}, most {:.1f} of {}", name,
          std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size()),
          at(0.5), at(0.99), times.back(), times.size());
    };
    add("compile", compile_us_);
    add("mask", mask_us_);
    add("accept", accept_us_);
    return line;
  }

 private:
  // Matches token by token, as in an answer; spaces in front are no part of the text.
  bool accepts(Matcher matcher, const std::string& text) {
    std::vector<uint32_t> mask((static_cast<size_t>(vocabulary_->size()) + 31) / 32);
    const auto allows = [&](int32_t id) {
      std::ranges::fill(mask, ~uint32_t{0});
      const auto begin = std::chrono::steady_clock::now();
      matcher.allow(mask);
      mask_us_.push_back(microseconds_since(begin));
      return (mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0;
    };
    for (const int32_t id : tokens_of(text)) {
      const bool allowed = allows(id);
      const auto begin = std::chrono::steady_clock::now();
      const bool fits = matcher.accept(id);
      accept_us_.push_back(microseconds_since(begin));
      CHECK(fits == allowed, "the mask and the matcher disagree");
      if (!fits) return false;
    }
    const bool may_end = allows(tokenizer_->eos_id());
    CHECK(may_end == matcher.can_end());
    return may_end;
  }

  // Tokens whose bytes are the text, without the space that SentencePiece puts in front.
  std::vector<int32_t> tokens_of(const std::string& text) const {
    std::vector<int32_t> ids = tokenizer_->encode("\n" + text);
    while (!ids.empty()) {
      std::string bytes;
      for (const int32_t id : ids) bytes += vocabulary_->bytes(id);
      if (bytes.size() <= text.size()) break;
      ids.erase(ids.begin());
    }
    return ids;
  }

  std::unique_ptr<mixtral::Tokenizer> tokenizer_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  double vocabulary_us_ = 0;
  std::vector<double> compile_us_, mask_us_, accept_us_;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 3) throw mixtral::UsageError("usage: constrain_bench TOKENIZER CASES [--verdicts]");
    Bench bench(argv[1]);
    const std::string cases = mixtral::read_file(argv[2]);
    for (size_t at = 0; at < cases.size();) {
      const size_t end = std::min(cases.find('\n', at), cases.size());
      const json verdict = bench.run(json::parse(cases.substr(at, end - at)));
      if (argc > 3) fmt::print("{}\n", verdict.dump());
      at = end + 1;
    }
    fmt::print("{}\n", bench.summary());
    return 0;
  } catch (const std::exception& error) {
    fmt::print("constrain_bench: {}\n", error.what());
    return 1;
  }
}
