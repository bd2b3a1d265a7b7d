#include "data/import.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/record.h"
#include "tests/data/files_fixture.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

TEST_F(Files, ImportCutsWhereItHurtsLeast) {
  const std::string text = "Chapter 1\n\n" + std::string(60, 'a') + ".\n\n" + std::string(60, 'b') +
                           ".\n\nChapter 2\n\n" + std::string(60, 'c') + ".\n";
  const auto pieces = split_document(text, 150);
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_TRUE(pieces[1].starts_with("Chapter 2"));
  for (const auto& [piece_text, limit] : std::vector<std::pair<std::string, int64_t>>{
           {std::string(1000, 'x'), 100}, {std::string(1000, '\n'), 100}, {"", 100}}) {
    std::string joined;
    for (const auto& piece : split_document(piece_text, limit)) {
      EXPECT_LE(static_cast<int64_t>(piece.size()), limit);
      EXPECT_FALSE(piece.empty());
      joined += piece;
    }
    if (piece_text[0] == 'x') {
      EXPECT_EQ(joined, piece_text);
    }
  }
}

TEST_F(Files, ImportMendsEncodingsAndSkipsWhatIsNoText) {
  fs::create_directories(root_ / "in/deep");
  write_file(root_ / "in/a.txt", "\xEF\xBB\xBFwith a mark\r\nand CR LF\r\n");
  write_file(root_ / "in/b.txt", std::string("nul\0byte", 8));
  write_file(root_ / "in/c.md", "caf\xE9");
  write_file(root_ / "in/deep/d.txt", std::string("\xFF\xFEh\0i\0", 6));
  write_file(root_ / "in/e.txt", "  \n");
  write_file(root_ / "in/f.png", "picture");
  ImportOptions options;
  options.inputs = {root_ / "in"};
  options.out = root_ / "out";
  options.shares.val = options.shares.test = 0;
  const ImportSummary summary = import_texts(options);
  EXPECT_EQ(summary.files, 3);
  EXPECT_EQ(summary.skipped.size(), 2u);
  EXPECT_EQ(summary.notes.size(), 4u);
  EXPECT_EQ(
      read_file(root_ / "out/train.jsonl"),
      "{\"text\":\"with a mark\\nand CR LF\"}\n{\"text\":\"caf\uFFFD\"}\n{\"text\":\"hi\"}\n");
  options.encoding = TextEncoding::latin1;
  options.overwrite = true;
  options.inputs = {root_ / "in/c.md"};
  import_texts(options);
  EXPECT_EQ(read_file(root_ / "out/train.jsonl"), "{\"text\":\"caf\u00E9\"}\n");
  options.inputs = {root_ / "absent"};
  EXPECT_THROW(import_texts(options), Error);
}

TEST_F(Files, ImportWritesNothingUnlessItCanWriteEverything) {
  fs::create_directories(root_ / "in");
  for (int i = 0; i < 4; ++i)
    write_file(root_ / "in" / (std::to_string(i) + ".txt"), "text " + std::to_string(i));
  ImportOptions options;
  options.inputs = {root_ / "in"};
  options.out = root_ / "out";
  options.shares.val = 0.4;
  options.shares.test = 0.5;
  const std::string none = message_of([&] { import_texts(options); });
  EXPECT_NE(none.find("4 documents leave none to train on with val 0.4 and test 0.5"),
            std::string::npos)
      << none;
  EXPECT_FALSE(fs::exists(root_ / "out"));
  options.shares.test = 0;
  const auto files = [&] {
    const fs::directory_iterator all(root_ / "out");
    return std::distance(begin(all), end(all));
  };
  // Not over a split that is there, and not beside one that it does not make.
  fs::create_directories(root_ / "out");
  for (const auto& [name, says] :
       {std::pair("val.jsonl", "overwrite"), std::pair("test.jsonl", "remove it")}) {
    write_file(root_ / "out" / name, "kept\n");
    const std::string said = message_of([&] { import_texts(options); });
    EXPECT_NE(said.find(std::string(name) + " exists"), std::string::npos) << said;
    EXPECT_NE(said.find(says), std::string::npos) << said;
    EXPECT_EQ(files(), 1);
    EXPECT_EQ(read_file(root_ / "out" / name), "kept\n");
    fs::remove(root_ / "out" / name);
  }
  import_texts(options);
  EXPECT_EQ(files(), 2);
  const std::string before = read_file(root_ / "out/train.jsonl");
  options.inputs = {root_ / "in/0.txt", root_ / "in/1.txt", root_ / "in/2.txt"};
  EXPECT_NE(message_of([&] { import_texts(options); }).find("overwrite"), std::string::npos);
  EXPECT_EQ(read_file(root_ / "out/train.jsonl"), before);
  options.overwrite = true;
  import_texts(options);
  EXPECT_NE(read_file(root_ / "out/train.jsonl"), before);
}

TEST_F(Files, ImportDealsDocumentsOutBySeedWithoutRepeats) {
  fs::create_directories(root_ / "in");
  for (int i = 0; i < 40; ++i) {
    write_file(root_ / "in" / fmt::format("{}.txt", i),
               fmt::format("first part of {0}\n\nsecond part of {0}", i));
  }
  ImportOptions options;
  options.inputs = {root_ / "in"};
  options.shares.val = options.shares.test = 0.2;
  options.out = root_ / "one";
  const ImportSummary summary = import_texts(options);
  EXPECT_EQ(summary.documents[0], 24);
  EXPECT_EQ(summary.documents[1], 8);
  EXPECT_EQ(summary.documents[2], 8);
  options.out = root_ / "two";
  import_texts(options);
  for (const char* name : {"train.jsonl", "val.jsonl", "test.jsonl"}) {
    EXPECT_EQ(read_file(root_ / "one" / name), read_file(root_ / "two" / name));
  }
  options.shares.seed = 2;
  options.out = root_ / "three";
  import_texts(options);
  EXPECT_NE(read_file(root_ / "one/val.jsonl"), read_file(root_ / "three/val.jsonl"));
}

}  // namespace
}  // namespace mixtral
