#include "io/parquet.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <snappy.h>
#include <zlib.h>
#include <zstd.h>

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tests/support/files.h"
#include "tests/support/parquet_builder.h"

namespace mixtral {
namespace {

using namespace parquet;
using namespace std::string_literals;

std::vector<std::string> rows_of(const std::string& file) {
  std::vector<std::string> rows;
  ParquetFile(file, "t.parquet")
      .each_row([](std::string_view column) { return std::string(column); },
                [&](const ParquetRow& row) {
                  rows.emplace_back(row.json);
                  EXPECT_EQ(row.number, static_cast<int64_t>(rows.size()));
                  return true;
                });
  return rows;
}

using Rows = std::vector<std::string>;

TEST(Parquet, RowsHaveTextsNumbersAndWhatIsAbsent) {
  const std::string int64s("\x05\0\0\0\0\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 16),
      doubles("\0\0\0\0\0\0\xF8\x3F\0\0\0\0\0\0\xF0\x7F", 16), floats("\0\0\0\x40\0\0\0\xC0", 8);
  const Table table{
      .fields = {{.name = "text", .type = kText},
                 {.name = "maybe", .type = kInt32, .repetition = kOptional},
                 {.name = "n", .type = kInt64},
                 {.name = "u", .type = kInt64, .converted = 14},
                 {.name = "d", .type = kDouble},
                 {.name = "f", .type = kFloat},
                 {.name = "b", .type = kBoolean}},
      .columns = 7,
      .groups =
          {{{{"text"}, kText, 2, {{.entries = 2, .values = texts({"a\"\\\n\x01", "b"})}}},
            {{"maybe"}, kInt32, 2, {{.entries = 2, .definitions = {0, 1}, .values = number(7)}}},
            {{"n"}, kInt64, 2, {{.entries = 2, .values = int64s}}},
            {{"u"}, kInt64, 2, {{.entries = 2, .values = int64s}}},
            {{"d"}, kDouble, 2, {{.entries = 2, .values = doubles}}},
            {{"f"}, kFloat, 2, {{.entries = 2, .values = floats}}},
            {{"b"}, kBoolean, 2, {{.entries = 2, .values = "\x02"}}}}},
      .rows = {2}};
  EXPECT_EQ(
      rows_of(table.bytes()),
      (Rows{R"({"text":"a\"\\\n\u0001","maybe":null,"n":5,"u":5,"d":1.5,"f":2,"b":false})",
            R"({"text":"b","maybe":7,"n":-1,"u":18446744073709551615,"d":null,"f":-2,"b":true})"}));
}

TEST(Parquet, ListsOfStructuresKeepTheirShape) {
  // turns: null, [], [{a, null}, {null, 1}], [null]; in the second row group [{b, 2}].
  const std::vector<Field> fields = {
      {.name = "turns", .repetition = kOptional, .children = 1, .converted = 3},
      {.name = "list", .repetition = kRepeated, .children = 1},
      {.name = "element", .repetition = kOptional, .children = 2},
      {.name = "role", .type = kText, .repetition = kOptional},
      {.name = "weight", .type = kInt32, .repetition = kOptional}};
  const auto group = [](const std::vector<int>& repetitions, const std::vector<int>& roles,
                        const std::vector<int>& weights, const std::string& role, uint32_t weight,
                        int version) {
    const auto count = static_cast<int64_t>(repetitions.size());
    return std::vector<Column>{{{"turns", "list", "element", "role"},
                                kText,
                                count,
                                {{.entries = count,
                                  .repetitions = repetitions,
                                  .definitions = roles,
                                  .values = texts({role}),
                                  .version = version}}},
                               {{"turns", "list", "element", "weight"},
                                kInt32,
                                count,
                                {{.entries = count,
                                  .repetitions = repetitions,
                                  .definitions = weights,
                                  .values = number(weight),
                                  .version = version}}}};
  };
  const Table table{.fields = fields,
                    .columns = 1,
                    .groups = {group({0, 0, 0, 1, 0}, {0, 1, 4, 3, 2}, {0, 1, 3, 4, 2}, "a", 1, 1),
                               group({0}, {4}, {4}, "b", 2, 2)},
                    .rows = {4, 1}};
  EXPECT_EQ(rows_of(table.bytes()),
            (Rows{R"({"turns":null})", R"({"turns":[]})",
                  R"({"turns":[{"role":"a","weight":null},{"role":null,"weight":1}]})",
                  R"({"turns":[null]})", R"({"turns":[{"role":"b","weight":2}]})"}));
}

TEST(Parquet, OlderFormsOfListsAreLists) {
  struct Case {
    std::vector<Field> fields;
    std::vector<std::string> path;
    const char* row;
  };
  const Field list{.name = "l", .children = 1, .converted = 3};
  const Case kCases[] = {
      // Two levels: the repeated field is the element.
      {{list, {.name = "array", .type = kText, .repetition = kRepeated}},
       {"l", "array"},
       R"({"l":["a","b"]})"},
      {{list,
        {.name = "array", .repetition = kRepeated, .children = 1},
        {.name = "x", .type = kText}},
       {"l", "array", "x"},
       R"({"l":[{"x":"a"},{"x":"b"}]})"},
      {{list,
        {.name = "l_tuple", .repetition = kRepeated, .children = 1},
        {.name = "x", .type = kText}},
       {"l", "l_tuple", "x"},
       R"({"l":[{"x":"a"},{"x":"b"}]})"},
      // Three, under other names.
      {{list,
        {.name = "bag", .repetition = kRepeated, .children = 1},
        {.name = "array_element", .type = kText}},
       {"l", "bag", "array_element"},
       R"({"l":["a","b"]})"},
      // None that is called a list.
      {{{.name = "l", .type = kText, .repetition = kRepeated}}, {"l"}, R"({"l":["a","b"]})"},
      {{{.name = "l", .repetition = kRepeated, .children = 1}, {.name = "x", .type = kText}},
       {"l", "x"},
       R"({"l":[{"x":"a"},{"x":"b"}]})"},
  };
  for (const Case& c : kCases) {
    const Page page{
        .entries = 2, .repetitions = {0, 1}, .definitions = {1, 1}, .values = texts({"a", "b"})};
    const Table table{
        .fields = c.fields, .columns = 1, .groups = {{{c.path, kText, 2, {page}}}}, .rows = {1}};
    EXPECT_EQ(rows_of(table.bytes()), Rows{c.row});
  }
}

std::string in_snappy(const std::string& bytes) {
  std::string packed;
  snappy::Compress(bytes.data(), bytes.size(), &packed);
  return packed;
}
std::string in_zstd(const std::string& bytes) {
  std::string packed(ZSTD_compressBound(bytes.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), 1));
  return packed;
}
std::string in_gzip(const std::string& bytes) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

using Compress = std::string (*)(const std::string&);
constexpr std::pair<int, Compress> kCodecs[] = {{1, in_snappy}, {2, in_gzip}, {6, in_zstd}};

TEST(Parquet, CompressedPagesAndDictionariesAreRead) {
  for (const auto& [codec, compress] : kCodecs) {
    for (const int version : {1, 2}) {
      SCOPED_TRACE(fmt::format("codec {}, version {}", codec, version));
      // Indices 1, 0, 1 of two bits each: a run of packed ones.
      const Page dictionary{.entries = 2,
                            .values = texts({"no", std::string(1000, 'y')}),
                            .version = 0,
                            .compress = compress},
          indices{.entries = 3,
                  .values = "\x02\x03\x11\x00"s,
                  .encoding = 8,
                  .version = version,
                  .compress = compress},
          plain{.entries = 1, .values = texts({"plain"}), .version = version, .compress = compress};
      const std::string yes = fmt::format(R"({{"text":"{}"}})", std::string(1000, 'y'));
      EXPECT_EQ(rows_of(one_text_column({dictionary, indices, plain}, 4, codec).bytes()),
                (Rows{yes, R"({"text":"no"})", yes, R"({"text":"plain"})"}));
    }
  }
}

Table two_lists() {
  return {.fields = {{.name = "l", .repetition = kRepeated, .children = 2},
                     {.name = "a", .type = kText},
                     {.name = "b", .type = kText}},
          .columns = 1,
          .groups = {{{{"l", "a"},
                       kText,
                       2,
                       {{.entries = 2,
                         .repetitions = {0, 1},
                         .definitions = {1, 1},
                         .values = texts({"a", "b"})}}},
                      {{"l", "b"},
                       kText,
                       2,
                       {{.entries = 2,
                         .repetitions = {0, 1},
                         .definitions = {1, 1},
                         .values = texts({"a", "b"})}}}}},
          .rows = {1}};
}

TEST(Parquet, WhatIsDamagedOrNotReadIsRefusedByPlace) {
  const auto refused = [](const std::string& file, const std::string& expected) {
    const std::string said = message_of([&] { rows_of(file); });
    EXPECT_NE(said.find(expected), std::string::npos) << said << "\nwithout\n" << expected;
    EXPECT_EQ(said.find("t.parquet: "), 0u) << said;
  };
  const Page good{.entries = 1, .values = texts({"a"})};
  const std::string whole = one_text_column({good}, 1).bytes();
  ASSERT_EQ(rows_of(whole), Rows{R"({"text":"a"})"});
  for (size_t size = 0; size < whole.size(); ++size) refused(whole.substr(0, size), "");
  refused("", "is no Parquet file");
  refused(whole.substr(0, whole.size() - 1), "cut off");
  refused("PARE" + whole.substr(4), "encrypted");
  refused(whole.substr(0, whole.size() - 4) + "PARE", "encrypted");
  refused(whole.substr(0, whole.size() - 8) + "\xFF\xFF\0\0PAR1"s, "more than the file has");
  refused("version https://git-lfs.github.com/spec/v1\n", "git-lfs");

  const auto changed = [&](const auto& change) {
    Table table = one_text_column({good}, 1);
    change(table, table.groups[0][0], table.groups[0][0].pages[0]);
    return table.bytes();
  };
  const std::string place = "row group 0, column text: ";
  refused(changed([](Table&, Column& c, Page&) { c.codec = 4; }),
          place + "is compressed with Brotli");
  refused(changed([](Table&, Column& c, Page&) { c.codec = 77; }), "codec 77");
  refused(changed([](Table&, Column& c, Page&) { c.codec = 1; }), "no valid Snappy data");
  refused(changed([](Table&, Column& c, Page&) { c.codec = 2; }), "no valid gzip data");
  refused(changed([](Table&, Column& c, Page&) { c.codec = 6; }), "no valid Zstandard data");
  refused(changed([](Table&, Column&, Page& p) { p.checksum = 1; }), place + "the check sum");
  refused(changed([](Table&, Column&, Page& p) { p.entries = 2; }), "2 entries of the 1");
  refused(changed([](Table&, Column&, Page& p) { p.entries = 0; }), "1 entries too early");
  refused(changed([](Table&, Column&, Page& p) { p.values = number(9) + "a"; }), "ends before");
  refused(changed([](Table&, Column&, Page& p) { p.encoding = 8; }),
          "dictionary, which is missing");
  refused(changed([](Table&, Column&, Page& p) { p.encoding = 5; }), "DELTA_BINARY_PACKED");
  refused(changed([](Table&, Column&, Page& p) { p.encoding = -3; }), "number -3");
  refused(changed([](Table&, Column&, Page& p) { p.size = int64_t{1} << 40; }),
          "more than is accepted");
  refused(changed([](Table&, Column& c, Page& p) {
            c.codec = 6;
            p.size = int64_t{100} << 20;
          }),
          "more than is accepted");
  refused(changed([](Table& t, Column&, Page&) { t.rows = {2}; }),
          place + "ends before its rows do");
  refused(changed([](Table&, Column& c, Page&) { c.entries = -1; }), "has -1 values");
  refused(changed([](Table& t, Column&, Page&) { t.rows = {int64_t{1} << 40}; }),
          "more than a file of");
  refused(changed([](Table&, Column& c, Page&) { c.path = {"other"}; }), "column other stands");
  refused(changed([](Table&, Column& c, Page&) { c.type = kInt32; }), "its type is not");
  refused(changed([](Table& t, Column&, Page&) { t.fields[0].converted = 1; }),
          "column text: is a map");
  refused(changed([](Table& t, Column&, Page&) { t.fields[0].converted = 5; }), "a decimal number");
  refused(changed([](Table& t, Column&, Page&) { t.fields[0].converted = 3; }), "a list without");
  refused(changed([](Table& t, Column& c, Page&) { t.fields[0].type = c.type = kInt96; }), "INT96");
  refused(changed([](Table& t, Column&, Page&) { t.columns = 2; }), "fewer fields");
  refused(changed([](Table& t, Column&, Page&) { t.columns = 0; }), "has no fields");
  refused(changed([](Table& t, Column&, Page&) {
            t.fields.push_back(t.fields[0]);
            t.columns = 2;
          }),
          "\"text\" stands twice");
  refused(changed([](Table& t, Column&, Page&) {
            t.fields.assign(40, {.name = "g", .children = 1});
            t.fields.push_back({.name = "x", .type = kText});
          }),
          "nested deeper");
  refused(changed([](Table& t, Column& c, Page& p) {
            t.fields.insert(t.fields.begin(),
                            {.name = "g", .repetition = kOptional, .children = 1});
            t.fields[1].repetition = kOptional;
            c.path = {"g", "text"};
            p.definitions = {3};
          }),
          "of the levels 0 and 3, above 0 and 2");
  refused(changed([](Table& t, Column&, Page& p) {
            t.fields[0].repetition = kRepeated;
            p.repetitions = {1};
            p.definitions = {1};
          }),
          "begins within a row");
  refused(one_text_column({{.entries = 1, .values = texts({"a"}), .version = 0},
                           {.entries = 1, .values = "\x01\x02\x01", .encoding = 8}},
                          1)
              .bytes(),
          "value 1 of a dictionary of 1");
  refused(one_text_column({{.entries = 9, .values = texts({"a"}), .version = 0}, good}, 1).bytes(),
          "cannot hold 9 values");

  ASSERT_EQ(rows_of(two_lists().bytes()), Rows{R"({"l":[{"a":"a","b":"a"},{"a":"b","b":"b"}]})"});
  Table table = two_lists();
  table.groups[0][1].pages[0].repetitions = {0, 0};
  refused(table.bytes(), "column l.b: does not agree");
  table = two_lists();
  table.groups[0][1].pages[0].definitions = {0, 1};
  refused(table.bytes(), "column l.b: does not agree");
}

TEST(Parquet, AColumnThatIsNotWantedIsNotRead) {
  Table table = one_text_column({{.entries = 1, .values = texts({"a"})}}, 1);
  table.fields.push_back({.name = "when", .type = kInt96});
  table.columns = 2;
  table.groups[0].push_back({{"when"}, kInt96, 1, {}, 3});
  const std::string file = table.bytes();
  const ParquetFile parquet(file, "t.parquet");
  EXPECT_EQ(parquet.columns(), (std::vector<std::string>{"text", "when"}));
  std::string found;
  parquet.each_row(
      [](std::string_view column) {
        return column == "text" ? std::optional<std::string>("content") : std::nullopt;
      },
      [&](const ParquetRow& row) {
        found = row.json;
        return true;
      });
  EXPECT_EQ(found, R"({"content":"a"})");
}

// A row of the file is one text of 1 MB in a dictionary, which a few bytes refer to many times.
TEST(Parquet, RowsThatGrowBeyondTheFileAreRefused) {
  const Page dictionary{.entries = 1,
                        .values = texts({std::string(1 << 20, 'x')}),
                        .version = 0,
                        .compress = in_zstd},
      run{.entries = 100'000,
          .values = "\x01\xC0\x9A\x0C\x00"s,
          .encoding = 8,
          .compress = in_zstd};
  const std::string file = one_text_column({dictionary, run}, 100'000, 6).bytes();
  const std::string said = message_of([&] {
    ParquetFile(file, "t.parquet")
        .each_row([](std::string_view column) { return std::string(column); },
                  [](const ParquetRow&) { return true; });
  });
  EXPECT_NE(said.find("as large as the file"), std::string::npos) << said;
}

}  // namespace
}  // namespace mixtral
