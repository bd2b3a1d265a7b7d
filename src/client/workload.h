#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "client/lengths.h"

namespace mixtral::client {

/// A request to an OpenAI-compatible server, whose answer comes as a stream.
struct Work {
  std::string route;  // behind the server's prefix: "/completions"
  std::string body;   // JSON
  /// The client leaves once it has read so many pieces of text; nothing: it stays to the end.
  std::optional<int64_t> leaves_after;
};

/// The requests of a load test, each made from the seed and its number alone.
class Workload {
 public:
  struct Options {
    Lengths prompt, answer;      // in tokens
    std::filesystem::path file;  // JSONL, whose rows take turns; empty: random words
    std::string model;           // that requests name
    bool chat = false;           // random words as a user's message instead of a text
    bool ignore_eos = false;     // ask for all tokens; not every server knows the field
    double temperature = 0;
    double leaving = 0;  // the share of requests whose client leaves in between
    uint64_t seed = 1;
  };
  /// Reads the file. A row has "prompt" (a text or token ids), "messages", or "prompt_tokens" (a
  /// length), and may have "max_tokens". Throws Error naming file and line.
  explicit Workload(Options options);

  Work at(uint64_t index) const;
  /// A request for one token, whose prompt has so many words: it shows how many tokens a word has.
  Work probe(int64_t words) const;
  void set_tokens_per_word(double tokens) { tokens_per_word_ = tokens; }
  void set_model(std::string name) { options_.model = std::move(name); }
  const std::string& model() const { return options_.model; }

 private:
  struct Row {
    std::string prompt, messages;  // JSON; both empty: random words
    std::optional<int64_t> prompt_tokens, max_tokens;
  };
  Work of_text(const std::string& text, int64_t tokens, uint64_t seed) const;
  std::string words(int64_t count, RandomStream& random) const;
  std::string body(const std::string& field, const std::string& value, int64_t tokens,
                   uint64_t seed) const;

  Options options_;
  std::vector<Row> rows_;
  double tokens_per_word_ = 1;
};

}  // namespace mixtral::client
