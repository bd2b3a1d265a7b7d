#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "base/threads.h"
#include "data/record.h"
#include "stories/questions.h"

namespace mixtral::stories {

enum class QuestionForm {
  text,        // {"text": "###user: … ###Assistant: …"}
  completion,  // {"prompt": "###user: … ###Assistant:", "completion": " …"}
};

/// Which world the texts are from: the full one, or one of few words (small_world.h), whose stories
/// a small model learns to tell in minutes.
enum class WorldSize { full, small };

struct StoryFilesOptions {
  WorldSize world = WorldSize::full;
  std::filesystem::path out;
  int64_t bytes = 20'000'000;  // of story text over all splits: 90% train, 5% each val and test
  uint64_t seed = 1;
  int64_t questions = 20'000;    // for train, or conversations; a twentieth of it for val and test
  int64_t preferences = 10'000;  // the same of preference pairs
  int turns = 1;                 // questions about a training story; from 2: a conversation
  QuestionForm form = QuestionForm::text;
  std::function<void(double share_done)> progress;
};

struct StoryFilesSummary {
  int64_t stories[3] = {}, bytes[3] = {}, words[3] = {};
  int64_t conversations[3] = {};  // of `turns` from 2; each has several of the questions
  int64_t questions[3] = {}, preferences[3] = {};
  int64_t repeated = 0;  // texts that came up a second time and were left out
  ChanceLevel chance;    // of the test questions
  std::array<ChanceLevel, kQuestionKinds> chance_of_kind;
};

/// Writes OUT/pretrain_data, OUT/finetune_data and OUT/preference_data, each with train, val and
/// test .jsonl. The same options give the same bytes, whatever the number of threads. Throws Error
/// when a file cannot be written.
StoryFilesSummary write_story_files(const StoryFilesOptions& options, ThreadPool& pool);

}  // namespace mixtral::stories
