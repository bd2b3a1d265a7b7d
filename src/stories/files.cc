#include "stories/files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "stories/small_world.h"
#include "stories/stories.h"

namespace mixtral::stories {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kTask = 128, kRound = 32;  // texts a task, tasks a round
constexpr uint64_t kQuestionStream = 0, kPreferenceStream = 1;

int64_t count_words(std::string_view text) {
  int64_t words = 0;
  bool inside = false;
  for (char c : text) {
    const bool space = c == ' ' || c == '\n';
    words += !space && !inside;
    inside = !space;
  }
  return words;
}

/// The path of a split's file; its directory is made.
std::filesystem::path file_of(const std::filesystem::path& out, const char* kind, Split split) {
  const auto directory = out / kind;
  std::filesystem::create_directories(directory);
  return directory / (std::string(split_name(split)) + ".jsonl");
}

/// Makes texts 0, 1, 2, … on all threads and hands them to `use` in that order until it returns
/// false.
template <class Item>
void in_order(ThreadPool& pool, const std::function<Item(uint64_t)>& make,
              const std::function<bool(const Item&)>& use) {
  for (int64_t first = 0;; first += kTask * kRound) {
    std::vector<std::vector<Item>> round(kRound);
    pool.for_each(kRound, [&](int64_t task, int) {
      auto& items = round[static_cast<size_t>(task)];
      for (int64_t i = 0; i < kTask; ++i) {
        items.push_back(make(static_cast<uint64_t>(first + task * kTask + i)));
      }
    });
    for (const auto& items : round) {
      for (const Item& item : items) {
        if (!use(item)) return;
      }
    }
  }
}

/// {"messages"}: the story with its first question, then the others, each with its answer.
ordered_json conversation_about(const Question& question) {
  auto messages = ordered_json::array();
  auto turn = [&](const std::string& user, const std::string& assistant) {
    messages.push_back({{"role", "user"}, {"content", user}});
    messages.push_back({{"role", "assistant"}, {"content", assistant}});
  };
  turn(question.story + " " + question.question, question.answer);
  for (const Turn& more : question.more) turn(more.question, more.answer);
  return {{"messages", messages}};
}

class Writer {
 public:
  Writer(const StoryFilesOptions& options, ThreadPool& pool) : options_(options), pool_(pool) {}

  StoryFilesSummary write() {
    for (Split split : kSplits) write_stories(split);
    for (Split split : kSplits) {
      if (options_.questions > 0) write_questions(split);
      if (options_.preferences > 0) write_preferences(split);
    }
    return summary_;
  }

 private:
  /// False for a text that was written before, in this or another split.
  bool is_new(const std::string& text) {
    const bool fresh = seen_.insert(std::hash<std::string>()(text)).second;
    summary_.repeated += !fresh;
    return fresh;
  }

  std::string story(Split split, uint64_t index) const {
    const bool small = options_.world == WorldSize::small;
    return (small ? tell_small_story : tell_story)(options_.seed, split, index).text;
  }
  Question question(Split split, uint64_t stream, uint64_t index, int turns) const {
    const bool small = options_.world == WorldSize::small;
    return (small ? ask_small : ask)(options_.seed, split, stream, index, turns);
  }

  int64_t share(int64_t train, Split split) const {
    return split == Split::train ? train : std::max<int64_t>(1, train / 20);
  }

  void write_stories(Split split) {
    const auto s = static_cast<size_t>(split);
    const int64_t wanted = options_.bytes / 20 * (split == Split::train ? 18 : 1);
    AtomicFile file(file_of(options_.out, "pretrain_data", split));
    in_order<std::string>(
        pool_, [&](uint64_t index) { return story(split, index); },
        [&](const std::string& text) {
          if (summary_.bytes[s] >= wanted) return false;
          if (!is_new(text)) return true;
          file.write(ordered_json{{"text", text}}.dump() + "\n");
          ++summary_.stories[s];
          summary_.bytes[s] += static_cast<int64_t>(text.size());
          summary_.words[s] += count_words(text);
          if (options_.progress && summary_.stories[s] % 1000 == 0) {
            const int64_t done = summary_.bytes[0] + summary_.bytes[1] + summary_.bytes[2];
            options_.progress(static_cast<double>(done) / static_cast<double>(options_.bytes));
          }
          return true;
        });
    file.commit();
  }

  void write_questions(Split split) {
    const auto s = static_cast<size_t>(split);
    const int64_t wanted = share(options_.questions, split);
    AtomicFile file(file_of(options_.out, "finetune_data", split));
    const int turns = split == Split::train ? options_.turns : 1;
    int64_t records = 0;
    in_order<Question>(
        pool_, [&](uint64_t index) { return question(split, kQuestionStream, index, turns); },
        [&](const Question& question) {
          if (!is_new(question.text())) return true;
          if (turns > 1) {
            file.write(conversation_about(question).dump() + "\n");
          } else if (options_.form == QuestionForm::text) {
            file.write(
                ordered_json{{"text", question.text()}, {"kind", question_kind_name(question.kind)}}
                    .dump() +
                "\n");
          } else {
            file.write(ordered_json{{"prompt", question.prompt()},
                                    {"completion", " " + question.answer},
                                    {"kind", question_kind_name(question.kind)}}
                           .dump() +
                       "\n");
          }
          if (split == Split::test) {
            summary_.chance.add(question);
            summary_.chance_of_kind[static_cast<size_t>(question.kind)].add(question);
          }
          summary_.questions[s] += 1 + static_cast<int64_t>(question.more.size());
          summary_.conversations[s] += turns > 1;
          return ++records < wanted;
        });
    file.commit();
  }

  void write_preferences(Split split) {
    const auto s = static_cast<size_t>(split);
    const int64_t wanted = share(options_.preferences, split);
    AtomicFile file(file_of(options_.out, "preference_data", split));
    in_order<Question>(
        pool_, [&](uint64_t index) { return question(split, kPreferenceStream, index, 1); },
        [&](const Question& question) {
          if (!is_new(question.text())) return true;
          file.write(ordered_json{{"prompt", question.prompt()},
                                  {"chosen", " " + question.answer},
                                  {"rejected", " " + question.wrong}}
                         .dump() +
                     "\n");
          return ++summary_.preferences[s] < wanted;
        });
    file.commit();
  }

  const StoryFilesOptions& options_;
  ThreadPool& pool_;
  StoryFilesSummary summary_;
  std::unordered_set<size_t> seen_;
};

}  // namespace

StoryFilesSummary write_story_files(const StoryFilesOptions& options, ThreadPool& pool) {
  CHECK(options.bytes > 0 && options.questions >= 0 && options.preferences >= 0);
  return Writer(options, pool).write();
}

}  // namespace mixtral::stories
