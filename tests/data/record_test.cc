#include "data/record.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/check.h"
#include "data/corpus.h"
#include "data/splits.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;

class Directory {
 public:
  Directory() : path(fs::temp_directory_path() / ("record_test_" + std::to_string(::getpid()))) {
    fs::create_directories(path);
  }
  ~Directory() { fs::remove_all(path); }
  fs::path write(const std::string& name, const std::string& text) const {
    write_file(path / name, text);
    return path / name;
  }
  const fs::path path;
};

TEST(Record, ReadsEveryKind) {
  const RecordRules rules{.vocab_size = 100};
  auto read = [&](const char* line) { return parse_record(line, "f:1", rules); };
  EXPECT_EQ(read(R"({"text":"Hello","source":"extra keys are ignored"})").text, "Hello");
  const Record chat = read(
      R"({"messages":[{"role":"system","content":"S"},{"role":"user","content":"U"},{"role":"assistant","content":"A"}]})");
  EXPECT_EQ(chat.kind, RecordKind::messages);
  EXPECT_EQ(chat.messages[2].content, "A");
  const Record completion = read(R"({"prompt":"P","completion":"C"})");
  EXPECT_EQ(completion.kind, RecordKind::completion);
  EXPECT_EQ(completion.completion, "C");
  const Record ids = read(R"({"input_ids":[1,2,3],"labels":[-100,-100,3]})");
  EXPECT_EQ(ids.ids, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(ids.labels, (std::vector<int32_t>{-100, -100, 3}));
  EXPECT_TRUE(read(R"({"input_ids":[1,2,3]})").labels.empty());
  EXPECT_EQ(read(R"({"prompt":"P","chosen":"C","rejected":"R"})").kind, RecordKind::preference);
  EXPECT_EQ(read(R"({"prompt_ids":[1],"chosen_ids":[2],"rejected_ids":[3]})").kind,
            RecordKind::preference_ids);
}

TEST(Record, EveryBadLineHasItsReason) {
  const RecordRules rules{.vocab_size = 100};
  const std::pair<std::string, std::string> kCases[] = {
      {"\xEF\xBB\xBF{\"text\":\"a\"}", "byte order mark"},
      {"{\"text\":\"a\"}\r", "CR LF"},
      {"{\"text\":\"a\0\"}"s, "NUL"},
      {R"({"text":"a\u0000"})", "NUL"},
      {R"({"text":"a\ud800"})", "JSON"},
      {"{\"text\":\"\xFF\"}", "UTF-8"},
      {"", "empty"},
      {"   ", "empty"},
      {"{", "JSON"},
      {"{\"text\":\"a\"} x", "JSON"},
      {"[1]", "object"},
      {R"("text")", "object"},
      {R"({})", "no known key"},
      {R"({"txt":"a"})", "no known key"},
      {R"({"text":""})", "text: is empty"},
      {R"({"text":" \n"})", "text: is empty"},
      {R"({"text":5})", "text: expected a string"},
      {R"({"text":null})", "no known key"},
      {R"({"text":"a","messages":[]})", "both"},
      {R"({"text":"a","text":"b"})", "twice"},
      {R"({"prompt":"a"})", "\"completion\" is missing"},
      {R"({"completion":"a"})", "prompt"},
      {R"({"prompt":"a","completion":" "})", "completion: is empty"},
      {R"({"messages":[]})", "messages"},
      {R"({"messages":[{"role":"user"}]})", "content"},
      {R"({"messages":[{"role":"human","content":"a"}]})", "human"},
      {R"({"messages":[{"role":"assistant","content":"a"}]})", "user"},
      {R"({"messages":[{"role":"user","content":"a"}]})", "assistant"},
      {R"({"messages":[{"role":"user","content":""},{"role":"assistant","content":"a"}]})",
       "empty"},
      {R"({"messages":"a"})", "array"},
      {R"({"input_ids":[]})", "empty"},
      {R"({"input_ids":[1,100]})", "outside the vocabulary"},
      {R"({"input_ids":[-1]})", "outside the vocabulary"},
      {R"({"input_ids":[1.5]})", "input_ids"},
      {R"({"input_ids":[99999999999999999999]})", "input_ids"},
      {R"({"input_ids":[1,2],"labels":[1]})", "labels: 1 of them for 2"},
      {R"({"input_ids":[1,2],"labels":[-100,-100]})", "all are masked"},
      {R"({"input_ids":[1,2],"labels":[1,-100]})", "all are masked"},
      {R"({"input_ids":[1,2],"labels":[1,-5]})", "not -100"},
      {R"({"labels":[1]})", "input_ids"},
      {R"({"prompt":"a","chosen":"b"})", "rejected"},
      {R"({"prompt":"a","rejected":"b"})", "chosen"},
      {R"({"prompt":"a","chosen":"b","rejected":"b"})", "the same"},
      {R"({"chosen_ids":[1],"rejected_ids":[2]})", "prompt_ids"},
  };
  for (const auto& [line, reason] : kCases) {
    try {
      parse_record(line, "train.jsonl:7", rules);
      ADD_FAILURE() << "taken: " << line;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with("train.jsonl:7: ")) << message;
      EXPECT_NE(message.find(reason), std::string::npos) << line << " gave: " << message;
    }
  }
}

TEST(Record, NullsCountAsAbsent) {
  const RecordRules rules;
  const Record chat = parse_record(
      R"({"text":null,"completion":null,"tools":null,"messages":[{"role":"user","content":"U","name":null},{"role":"assistant","content":"A","weight":null,"tool_calls":null}]})",
      "f:1", rules);
  EXPECT_EQ(chat.kind, RecordKind::messages);
  EXPECT_TRUE(chat.messages[1].learnt);
  EXPECT_EQ(parse_record(R"({"messages":null,"prompt":null,"text":"T"})", "f:1", rules).text, "T");
}

TEST(Record, AWeightOfZeroMasksATurn) {
  const Record chat = parse_record(
      R"({"messages":[{"role":"user","content":"U"},{"role":"assistant","content":"A","weight":0},{"role":"user","content":"V"},{"role":"assistant","content":"B","weight":1}]})",
      "f:1", {});
  EXPECT_FALSE(chat.messages[1].learnt);
  EXPECT_TRUE(chat.messages[3].learnt);
  const auto tokenizer = load_tokenizer("bytes");
  const auto example = encode_record(chat, tokenizer.get(), {}, "f:1").front();
  std::string learnt;
  for (const int32_t label : example.labels)
    if (label >= 0 && !tokenizer->is_control(label)) learnt += tokenizer->piece(label);
  EXPECT_EQ(learnt, "B");
}

TEST(Record, FieldsThatWouldChangeWhatIsLearntAreRefusedByName) {
  const auto said = [](const std::string& line) {
    try {
      parse_record(line, "f:1", {});
      return std::string("accepted");
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  const std::string turns = R"("messages":[{"role":"user","content":"U"},{"role":"assistant",)";
  const std::pair<std::string, std::string> kCases[] = {
      {R"({"text":"T","weight":0.5})", "\"weight\""},
      {R"({"text":"T","weight":1})", "accepted"},
      {R"({"prompt":"P","completion":"C","label":false})", "\"label\""},
      {R"({"prompt":"P","completion":"C","label":true})", "accepted"},
      {R"({"text":"T","label":0})", "accepted"},
      {R"({"input_ids":[1,2],"attention_mask":[1,0]})", "\"attention_mask\""},
      {R"({"input_ids":[1,2],"attention_mask":[1,1],"position_ids":[0,1]})", "accepted"},
      {R"({"input_ids":[1,2],"position_ids":[0,0]})", "\"position_ids\""},
      {"{\"tools\":[{\"name\":\"f\"}]," + turns + "\"content\":\"A\"}]}", "\"tools\""},
      {"{\"tools\":[]," + turns + "\"content\":\"A\"}]}", "accepted"},
      {"{\"system\":\"S\"," + turns + "\"content\":\"A\"}]}", "\"system\""},
      {"{" + turns + "\"content\":\"A\",\"weight\":0}]}", "nothing"},
      {"{" + turns + "\"content\":\"A\",\"weight\":0.5}]}", "expected 0"},
      {"{" + turns + "\"content\":\"A\",\"train\":false}]}", "\"train\""},
      {"{" + turns + "\"content\":\"A\",\"tool_calls\":[{}]}]}", "\"tool_calls\""},
      {"{" + turns + "\"content\":\"A\",\"reasoning_content\":\"R\"}]}", "\"reasoning_content\""},
      {"{" + turns + "\"content\":[{\"type\":\"text\",\"text\":\"A\"}]}]}", "accepted"},
      {"{" + turns + "\"content\":[{\"type\":\"image\"}]}]}", "list of parts"},
  };
  for (const auto& [line, expected] : kCases) {
    const std::string message = said(line);
    EXPECT_NE(message.find(expected), std::string::npos) << line << "\n" << message;
  }
}

TEST(Record, PromptsAndPairsMayBeGivenAsTurns) {
  const Record completion = parse_record(
      R"({"prompt":[{"role":"user","content":"U"},{"role":"assistant","content":"A"},{"role":"user","content":"V"}],"completion":[{"role":"assistant","content":"B"}]})",
      "f:1", {});
  EXPECT_EQ(completion.kind, RecordKind::messages);
  EXPECT_FALSE(completion.messages[1].learnt);
  EXPECT_TRUE(completion.messages[3].learnt);
  const char* kPairs[] = {
      R"({"prompt":[{"role":"user","content":"U"}],"chosen":[{"role":"assistant","content":"C"}],"rejected":[{"role":"assistant","content":"R"}]})",
      R"({"prompt":"U","chosen":[{"role":"user","content":"U"},{"role":"assistant","content":"C"}],"rejected":[{"role":"user","content":"U"},{"role":"assistant","content":"R"}]})",
      R"({"prompt":"U","chosen":[{"role":"assistant","content":"C"}],"rejected":[{"role":"assistant","content":"R"}]})",
  };
  for (const char* line : kPairs) {
    const Record pair = parse_record(line, "f:1", {});
    EXPECT_EQ(pair.kind, RecordKind::preference_messages);
    ASSERT_EQ(pair.messages.size(), 2u) << line;
    EXPECT_EQ(pair.messages[0].content, "U");
    EXPECT_EQ(pair.messages[1].content, "C");
    EXPECT_EQ(pair.rejected_messages[1].content, "R");
    const auto tokenizer = load_tokenizer("bytes");
    EXPECT_EQ(encode_record(pair, tokenizer.get(), {}, "f:1").size(), 2u);
  }
  EXPECT_THROW(
      parse_record(
          R"({"prompt":"Q","chosen":[{"role":"user","content":"U"},{"role":"assistant","content":"C"}],"rejected":[{"role":"user","content":"U"},{"role":"assistant","content":"R"}]})",
          "f:1", {}),
      Error);
}

TEST(Record, AllProblemsOfAFileAreFoundInOnePassAndMended) {
  const Directory directory;
  std::string text =
      "\xEF\xBB\xBF{\"text\":\"one\"}\n{\"text\":\"two\"}\r\n\n{\"text\":\"th\0ree\"}\n"s;
  text +=
      "{\"text\":\"lone \\ud83d surrogate, whole \\ud83d\\ude00, \\\\u0000\"}\n{\"txt\":\"no\"}\n";
  for (int i = 0; i < 300; ++i) text += "{\"text\":\"good " + std::to_string(i) + "\"}\n";
  text += "{\"text\":\"last, without a line end\"}";
  const fs::path path = directory.write("bad.jsonl", text);
  const RecordFile file(path);
  EXPECT_EQ(file.lines(), 307);
  const auto tokenizer = load_tokenizer("bytes");
  ThreadPool pool(2);
  const CorpusResult result = read_corpus(file, tokenizer.get(), {}, pool);
  EXPECT_EQ(result.problem_count, 6);
  std::vector<int64_t> lines;
  for (const Problem& problem : result.problems) {
    lines.push_back(problem.line);
    EXPECT_TRUE(problem.message.starts_with(path.string() + ":" + std::to_string(problem.line)))
        << problem.message;
  }
  EXPECT_EQ(lines, (std::vector<int64_t>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(result.corpus.counts().records, 301);

  try {
    load_corpus(path, tokenizer.get(), {}, pool);
    FAIL() << "trained on a bad file";
  } catch (const Error& error) {
    for (int line = 1; line <= 6; ++line) {
      EXPECT_NE(std::string(error.what()).find("bad.jsonl:" + std::to_string(line) + ": "),
                std::string::npos);
    }
    EXPECT_NE(std::string(error.what()).find("--fix"), std::string::npos);
  }

  const fs::path fixed = directory.path / "fixed.jsonl";
  const FixSummary summary = fix_data(file, fixed, {});
  EXPECT_EQ(summary.kept, 301);
  EXPECT_EQ(summary.mended, 4);
  EXPECT_EQ(summary.dropped, 2);  // the blank line and the one without a known key
  const RecordFile mended(fixed);
  EXPECT_EQ(load_corpus(fixed, tokenizer.get(), {}, pool).documents(), 305);
  EXPECT_EQ(parse_record(mended.line(3), "f", {}).text,
            "lone \uFFFD surrogate, whole \U0001F600, \\u0000");
  EXPECT_THROW(fix_data(file, path, {}), UsageError);
}

TEST(Record, HostileFilesAreRefusedNotCrashedOn) {
  const Directory directory;
  const auto tokenizer = load_tokenizer("bytes");
  ThreadPool pool(1);
  const std::pair<std::string, std::string> kCases[] = {
      {"empty", ""},
      {"newlines", std::string(1000, '\n')},
      {"nuls", std::string(1000, '\0')},
      {"deep", std::string(100'000, '[')},
      {"deep_record", R"({"text":)" + std::string(10'000, '[') + std::string(10'000, ']') + "}"},
      {"no_end", R"({"text":")" + std::string(1 << 20, 'a')},
      {"binary", "\x7F\x45\x4C\x46\x02\x01\x01\x00\xFF\xFE\n\x80\n"s},
      {"many_ids", R"({"input_ids":[)" + std::string(100'000, '9') + "]}"},
  };
  for (const auto& [name, text] : kCases) {
    const fs::path path = directory.write(name + ".jsonl", text);
    EXPECT_THROW(load_corpus(path, tokenizer.get(), {}, pool), Error) << name;
  }
  // One long letter run is a record like any other.
  const fs::path longest =
      directory.write("long.jsonl", R"({"text":")" + std::string(1 << 20, 'a') + "\"}\n");
  EXPECT_EQ(load_corpus(longest, tokenizer.get(), {}, pool).tokens(), (1 << 20) + 2);
}

TEST(Record, PreferencePairsStandAlone) {
  const Directory directory;
  const auto tokenizer = load_tokenizer("bytes");
  ThreadPool pool(1);
  const fs::path mixed = directory.write(
      "mixed.jsonl",
      "{\"text\":\"a\"}\n{\"prompt\":\"p\",\"completion\":\"c\"}\n{\"input_ids\":[1,2]}\n");
  EXPECT_EQ(load_corpus(mixed, tokenizer.get(), {}, pool).documents(), 3);
  const fs::path wrong = directory.write(
      "wrong.jsonl", "{\"text\":\"a\"}\n{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\"}\n");
  EXPECT_THROW(load_corpus(wrong, tokenizer.get(), {}, pool), Error);
}

TEST(DataFiles, AreFoundByTheirUsualNames) {
  const Directory directory;
  EXPECT_THROW(DataFiles::find(directory.path), Error);
  EXPECT_THROW(DataFiles::find(directory.path / "absent"), Error);
  directory.write("train.jsonl", "{}");
  directory.write("valid.jsonl", "{}");
  const DataFiles files = DataFiles::find(directory.path);
  EXPECT_TRUE(has_split(files, Split::train, 0.1));
  EXPECT_TRUE(has_split(files, Split::val, 0.1));
  EXPECT_FALSE(has_split(files, Split::test, 0.1));
  EXPECT_EQ(files.val.filename(), "valid.jsonl");
  const DataFiles one = DataFiles::find(directory.path / "train.jsonl");
  EXPECT_TRUE(one.single);
  EXPECT_FALSE(has_split(one, Split::val, 0.1));
  EXPECT_THROW(RecordFile(directory.write("data.csv", "a")), Error);
}

}  // namespace
}  // namespace mixtral
