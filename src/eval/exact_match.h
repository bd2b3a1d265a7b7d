#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/record.h"
#include "infer/engine.h"

namespace mixtral {

/// A question as a model sees it, and the answer that counts as right.
struct ExactQuestion {
  std::string text;             // of the prompt, for people
  std::vector<int32_t> prompt;  // its tokens
  std::string answer;           // without space around it
  std::string source;           // for errors: "test.jsonl:12"
  std::string kind;             // the record's "kind"; empty: it has none
};

/// How records become questions.
struct QuestionRules {
  RecordRules records;
  std::string response_marker = "###Assistant:";  // of {"text"}: what precedes the answer
};

/// The questions of a file of {"text"} (what follows the last response marker is the answer),
/// {"prompt", "completion"} or {"messages"} (the last turn, which must be the assistant's). `limit`
/// 0: all. Throws Error naming file and line of one that is no question.
std::vector<ExactQuestion> read_questions(const std::filesystem::path& file,
                                          const Tokenizer& tokenizer, const QuestionRules& rules,
                                          int64_t limit);

struct ExactMatchOptions {
  int64_t max_tokens = 32;        // of an answer
  std::vector<int64_t> stop_ids;  // that end an answer; so does a new line, or "###"
};

/// What a model answered.
struct ExactMatch {
  struct Answer {
    std::string given;
    bool right = false;
  };
  std::vector<Answer> answers;  // one a question
  int64_t right = 0;

  double share() const {
    return answers.empty() ? 0 : static_cast<double>(right) / static_cast<double>(answers.size());
  }
};

/// Answers every question with the most probable tokens, as many at once as the engine takes, and
/// compares, space at the ends aside. `progress` is told how many are done. Throws Error, before
/// the first one is answered, naming a question that leaves no room for an answer in the context.
ExactMatch exact_match(Engine& engine, const Tokenizer& tokenizer,
                       const std::vector<ExactQuestion>& questions,
                       const ExactMatchOptions& options,
                       const std::function<void(int64_t)>& progress = {});

/// The share that one answer, the most common of all, would have right: what a score must beat.
double most_common_share(const std::vector<ExactQuestion>& questions);

}  // namespace mixtral
