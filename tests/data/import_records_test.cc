#include "data/import_records.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/csv.h"
#include "tests/support/files.h"
#include "tests/support/parquet_builder.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

std::vector<std::vector<std::string>> read_table(std::string_view text) {
  CsvReader reader(text, "t.csv");
  std::vector<std::vector<std::string>> rows;
  CsvRow row;
  while (reader.next(row)) rows.push_back(row.fields);
  return rows;
}

TEST(Csv, FieldsComeBackAsTheyWereWritten) {
  using Rows = std::vector<std::vector<std::string>>;
  const std::pair<const char*, Rows> kCases[] = {
      {"", {}},
      {"a,b\nc,d", {{"a", "b"}, {"c", "d"}}},
      {"a,b\r\nc,d\r\n", {{"a", "b"}, {"c", "d"}}},
      {"\xEF\xBB\xBF"
       "a,\n,b\n",
       {{"a", ""}, {"", "b"}}},
      {"\"a,b\",\"c\"\"d\",\"e\nf\"\r\n", {{"a,b", "c\"d", "e\nf"}}},
      {"\"\"\n\n\na\n", {{""}, {"a"}}},
      {" a , b ", {{" a ", " b "}}},
  };
  for (const auto& [text, expected] : kCases) EXPECT_EQ(read_table(text), expected) << text;
}

TEST(Csv, WhatIsNoTableIsRefusedByLine) {
  for (const auto& [text, expected] :
       {std::pair("a,b\nc,\"d\ne", "t.csv:2: a field begins with a quote that is never closed"),
        std::pair("a\n\"b\"c\n", "t.csv:2: text follows the quote"),
        std::pair("a,b\"c\n", "t.csv:1: a quote stands within a field")})
    EXPECT_EQ(message_of([&] { read_table(text); }).find(expected), 0u) << text;
}

class ImportRecords : public ::testing::Test {
 protected:
  RecordImportSummary import(const std::string& name, const std::string& text,
                             std::optional<PublishedForm> form,
                             const std::map<std::string, std::string>& columns = {}) {
    write_file(scratch_.path() / name, text);
    return import_records({.inputs = {scratch_.path() / name},
                           .out = scratch_.path() / "out",
                           .form = form,
                           .columns = columns,
                           .shares = {.val = 0, .test = 0},
                           .overwrite = true});
  }
  std::string written() const { return read_file(scratch_.path() / "out/train.jsonl"); }

  TemporaryDirectory scratch_;
};

TEST_F(ImportRecords, EachFormBecomesRecords) {
  struct Case {
    PublishedForm form;
    const char *name, *text, *expected;
  };
  const Case kCases[] = {
      {PublishedForm::sharegpt, "s.json",
       R"([{"id":1,"conversations":[{"from":"human","value":"U"},{"from":"gpt","value":"A"}],"system":"S"}])",
       R"({"messages":[{"role":"system","content":"S"},{"role":"user","content":"U"},{"role":"assistant","content":"A"}]})"},
      {PublishedForm::sharegpt, "s.jsonl",
       R"({"conversations":[{"from":"gpt","value":"X"},{"from":"human","value":"U"},{"from":"gpt","value":"A","weight":0},{"from":"human","value":"V"},{"from":"gpt","value":"B"},{"from":"human","value":"W"}]})",
       R"({"messages":[{"role":"user","content":"U"},{"role":"assistant","content":"A","weight":0},{"role":"user","content":"V"},{"role":"assistant","content":"B"}]})"},
      {PublishedForm::alpaca, "a.json", R"([{"instruction":"I","input":"X","output":"O"}])",
       R"({"messages":[{"role":"user","content":"I\n\nX"},{"role":"assistant","content":"O"}]})"},
      {PublishedForm::alpaca, "b.jsonl",
       R"({"instruction":"I","input":"","output":"O","history":[["Q","R"]]})",
       R"({"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"R"},{"role":"user","content":"I"},{"role":"assistant","content":"O"}]})"},
      {PublishedForm::ultrafeedback, "u.jsonl",
       R"({"prompt":"P","prompt_id":"1","messages":[],"score_chosen":8.5,"score_rejected":2,"chosen":[{"role":"user","content":"P"},{"role":"assistant","content":"C"}],"rejected":[{"role":"user","content":"P"},{"role":"assistant","content":"R"}]})",
       R"({"prompt":[{"role":"user","content":"P"}],"chosen":[{"role":"assistant","content":"C"}],"rejected":[{"role":"assistant","content":"R"}]})"},
      {PublishedForm::ultrafeedback, "v.jsonl",
       R"({"instruction":"P","completions":[{"response":"M","overall_score":5},{"response":"R","overall_score":1},{"response":"C","overall_score":9}]})",
       R"({"prompt":[{"role":"user","content":"P"}],"chosen":[{"role":"assistant","content":"C"}],"rejected":[{"role":"assistant","content":"R"}]})"},
      {PublishedForm::hh, "h.jsonl",
       R"({"chosen":"\n\nHuman: U\n\nAssistant: A\n\nHuman: V\n\nAssistant: C","rejected":"\n\nHuman: U\n\nAssistant: A\n\nHuman: V\n\nAssistant: R"})",
       R"({"prompt":[{"role":"user","content":"U"},{"role":"assistant","content":"A"},{"role":"user","content":"V"}],"chosen":[{"role":"assistant","content":"C"}],"rejected":[{"role":"assistant","content":"R"}]})"},
      {PublishedForm::trl, "t.jsonl",
       R"({"prompt":[{"role":"user","content":"U"}],"completion":[{"role":"assistant","content":"A"}]})",
       R"({"messages":[{"role":"user","content":"U"},{"role":"assistant","content":"A"}]})"},
      {PublishedForm::csv, "c.csv", "prompt,completion\r\n\"P, \"\"Q\"\"\",C\r\n",
       R"({"prompt":"P, \"Q\"","completion":"C"})"},
  };
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.text);
    EXPECT_EQ(import(c.name, c.text, c.form).records[0], 1);
    EXPECT_EQ(written(), std::string(c.expected) + "\n");
    if (c.form != PublishedForm::trl) {
      EXPECT_NE(import_advice(scratch_.path() / c.name)
                    .find(fmt::format("--from {} ", published_form_name(c.form))),
                std::string::npos);
    }
  }
}

TEST_F(ImportRecords, WhatIsLeftOutIsCountedByReason) {
  const std::string
      good = R"({"conversations":[{"from":"human","value":"U"},{"from":"gpt","value":"A"}]})",
      tool = R"({"conversations":[{"from":"human","value":"U"},{"from":"function","value":"F"}]})",
      leading =
          R"({"conversations":[{"from":"gpt","value":"A"},{"from":"human","value":"U"},{"from":"gpt","value":"A"}]})";
  const auto summary =
      import("x.jsonl", good + "\n" + tool + "\nnot json\n" + tool + "\n" + leading + "\n",
             PublishedForm::sharegpt);
  EXPECT_EQ(summary.rows, 5);
  EXPECT_EQ(summary.records[0], 2);
  ASSERT_EQ(summary.left_out.size(), 2u);
  EXPECT_EQ(summary.left_out[0].count, 2);
  EXPECT_NE(summary.left_out[0].what.find("\"function\""), std::string::npos);
  EXPECT_TRUE(summary.left_out[0].first.ends_with("x.jsonl:2"));
  ASSERT_EQ(summary.changed.size(), 1u);
  EXPECT_EQ(summary.changed[0].what, "a first turn of the assistant");
}

TEST_F(ImportRecords, NothingIsWrittenWithoutARecordAndColumnsAreNamed) {
  const std::string said =
      message_of([&] { import("faq.csv", "question,answer\nQ,A\n", PublishedForm::csv); });
  EXPECT_NE(said.find("none of 1 rows"), std::string::npos) << said;
  EXPECT_NE(said.find("columns"), std::string::npos) << said;
  EXPECT_FALSE(fs::exists(scratch_.path() / "out"));
  import("faq.csv", "question,answer\nQ,A\n", PublishedForm::csv,
         {{"prompt", "question"}, {"completion", "answer"}});
  EXPECT_EQ(written(), "{\"prompt\":\"Q\",\"completion\":\"A\"}\n");
  EXPECT_NE(
      message_of([&] { import("x.csv", "a,b\n1\n", PublishedForm::csv); }).find("has 1 fields"),
      std::string::npos);
  EXPECT_NE(
      message_of([&] { import("cut.json", "[{\"a\":1}", PublishedForm::trl); }).find("cut off"),
      std::string::npos);
  EXPECT_THROW(parse_published_form("arrow"), UsageError);
}

using parquet::kText;

/// Conversations as data sets of the hub have them: two turns in each of the rows.
std::string conversations(int64_t rows) {
  std::string from, value;
  std::vector<int> repetitions, definitions;
  for (int64_t i = 0; i < rows; ++i) {
    from += parquet::texts({"human", "gpt"});
    value += parquet::texts({fmt::format("U{}", i), fmt::format("A{}", i)});
    repetitions.insert(repetitions.end(), {0, 1});
    definitions.insert(definitions.end(), {1, 1});
  }
  const auto column = [&](const char* name, const std::string& values) {
    return parquet::Column{{"conversations", "list", "element", name},
                           kText,
                           2 * rows,
                           {{.entries = 2 * rows,
                             .repetitions = repetitions,
                             .definitions = definitions,
                             .values = values}}};
  };
  return parquet::Table{
      .fields = {{.name = "conversations", .children = 1, .converted = 3},
                 {.name = "list", .repetition = parquet::kRepeated, .children = 1},
                 {.name = "element", .children = 2},
                 {.name = "from", .type = kText},
                 {.name = "value", .type = kText}},
      .columns = 1,
      .groups = {{column("from", from), column("value", value)}},
      .rows = {rows}}
      .bytes();
}

TEST_F(ImportRecords, ParquetRowsShowTheirForm) {
  const std::string
      file = conversations(2),
      expected =
          R"({"messages":[{"role":"user","content":"U0"},{"role":"assistant","content":"A0"}]}
{"messages":[{"role":"user","content":"U1"},{"role":"assistant","content":"A1"}]}
)";
  for (const auto form : {std::optional<PublishedForm>(), std::optional(PublishedForm::sharegpt)}) {
    const auto summary = import("a.parquet", file, form);
    EXPECT_EQ(written(), expected);
    EXPECT_EQ(summary.recognised.size(), form ? 0u : 1u);
  }
  const std::string advice = import_advice(scratch_.path() / "a.parquet");
  EXPECT_NE(advice.find("it looks like sharegpt"), std::string::npos) << advice;
  EXPECT_NE(advice.find("data import --from parquet"), std::string::npos) << advice;
  EXPECT_NE(message_of([&] { import("a.jsonl", "{}", std::nullopt); }).find(".parquet files"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              import("b.parquet", file.substr(0, 90), std::nullopt);
            }).find("b.parquet: it does not end"),
            std::string::npos);
}

TEST_F(ImportRecords, ParquetRowsOfNoFormNameTheirColumns) {
  const parquet::Page questions{.entries = 1, .values = parquet::texts({"Q"})};
  parquet::Table table = parquet::one_text_column({questions}, 1);
  table.fields[0].name = table.groups[0][0].path[0] = "question";
  const std::string file = table.bytes();
  for (const auto form : {std::optional<PublishedForm>(), std::optional(PublishedForm::trl)}) {
    const std::string said = message_of([&] { import("q.parquet", file, form); });
    EXPECT_NE(said.find("question"), std::string::npos) << said;
  }
  EXPECT_NE(import_advice(scratch_.path() / "q.parquet").find("its columns are question"),
            std::string::npos);
  import("q.parquet", file, std::nullopt, {{"text", "question"}});
  EXPECT_EQ(written(), "{\"text\":\"Q\"}\n");
  const std::string said =
      message_of([&] { import("q.parquet", file, std::nullopt, {{"text", "answer"}}); });
  EXPECT_NE(said.find("no column \"answer\""), std::string::npos) << said;
}

TEST_F(ImportRecords, AFolderGivesItsParquetFilesAndTheirSplits) {
  const auto folder = scratch_.path() / "hub";
  for (const char* name : {"data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet",
                           "default/validation/0000.parquet"}) {
    fs::create_directories((folder / name).parent_path());
    write_file(folder / name, conversations(4));
  }
  const auto summary = import_records({.inputs = {folder}, .out = scratch_.path() / "out"});
  EXPECT_EQ(summary.files, 3);
  EXPECT_EQ(summary.records[0], 4);
  EXPECT_EQ(summary.records[1], 4);
  EXPECT_EQ(summary.records[2], 4);
  EXPECT_EQ(summary.recognised.front().count, 3);
  fs::create_directories(scratch_.path() / "empty");
  EXPECT_NE(message_of([&] {
              import_records({.inputs = {scratch_.path() / "empty"}, .out = scratch_.path() / "o"});
            }).find("no .parquet files"),
            std::string::npos);
}

TEST_F(ImportRecords, AFileNamedAsASplitStaysInIt) {
  std::string rows;
  for (int i = 0; i < 20; ++i)
    rows += fmt::format(R"({{"instruction":"I{}","output":"O"}})", i) + "\n";
  write_file(scratch_.path() / "train.jsonl", rows);
  write_file(scratch_.path() / "test.jsonl", R"({"instruction":"T","output":"O"})");
  const auto summary =
      import_records({.inputs = {scratch_.path() / "train.jsonl", scratch_.path() / "test.jsonl"},
                      .out = scratch_.path() / "out",
                      .form = PublishedForm::alpaca,
                      .shares = {.val = 0.1, .test = 0.5}});
  EXPECT_EQ(summary.records[0], 18);
  EXPECT_EQ(summary.records[1], 2);
  EXPECT_EQ(summary.records[2], 1);
}

}  // namespace
}  // namespace mixtral
