// GGUF files, good and bad, made byte by byte.
#include "io/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/files.h"
#include "tests/support/gguf_builder.h"

namespace mixtral {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;

GgufHeader parse(const std::string& bytes) {
  return GgufHeader::parse(std::as_bytes(std::span(bytes)), "model.gguf");
}

GgufBuilder small() {
  GgufBuilder builder;
  builder.key("general.architecture", "llama")
      .key("a.u8", uint8_t{200})
      .key("a.i16", int16_t{-3})
      .key("a.u64", uint64_t{1} << 40)
      .key("a.f32", 0.5f)
      .key("a.f64", 1e-5)
      .key("a.yes", true)
      .key("a.texts", std::vector<std::string>{"", "two", "\xe2\x96\x81"})
      .key("a.floats", std::vector<float>{1, -2.5f})
      .key("a.whole", std::vector<int32_t>{3, -1});
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  builder.tensor("first", {2, 3}, values);
  builder.tensor("second", {1, 2, 32}, 8, std::string(2 * 34, 'x'));
  return builder;
}

TEST(Gguf, GivesItsKeysWithTheirTypes) {
  const std::string bytes = small().bytes();
  const GgufHeader header = parse(bytes);
  EXPECT_EQ(header.text("general.architecture"), "llama");
  EXPECT_EQ(header.integer("a.u8"), 200);
  EXPECT_EQ(header.integer("a.i16"), -3);
  EXPECT_EQ(header.integer("a.u64"), int64_t{1} << 40);
  EXPECT_EQ(header.number("a.f32"), 0.5);
  EXPECT_EQ(header.number("a.f64"), 1e-5);
  EXPECT_EQ(header.number("a.u8"), 200.0);
  EXPECT_EQ(header.boolean("a.yes"), true);
  EXPECT_THAT(*header.texts("a.texts"), ElementsAre("", "two", "\xe2\x96\x81"));
  EXPECT_THAT(*header.floats("a.floats"), ElementsAre(1, -2.5f));
  EXPECT_THAT(*header.integers("a.whole"), ElementsAre(3, -1));
  EXPECT_EQ(header.text("absent"), std::nullopt);
  EXPECT_EQ(header.texts("absent"), std::nullopt);
}

TEST(Gguf, RefusesAKeyOfAnotherTypeThanIsAskedFor) {
  const std::string bytes = small().bytes();
  const GgufHeader header = parse(bytes);
  const auto expect = [](const auto& action, const char* key, const char* what) {
    EXPECT_THAT(message_of(action),
                AllOf(HasSubstr("model.gguf"), HasSubstr(key), HasSubstr(what)));
  };
  expect([&] { header.integer("a.f32"); }, "a.f32", "whole number");
  expect([&] { header.integer("a.yes"); }, "a.yes", "bool");
  expect([&] { header.number("a.texts"); }, "a.texts", "an array of text");
  expect([&] { header.boolean("a.u8"); }, "a.u8", "true or false");
  expect([&] { header.text("a.u8"); }, "a.u8", "a text");
  expect([&] { header.texts("a.floats"); }, "a.floats", "array of texts");
  expect([&] { header.floats("a.texts"); }, "a.texts", "array of numbers");
  expect([&] { header.integers("a.floats"); }, "a.floats", "whole numbers");
  expect([&] { header.integers("a.u8"); }, "a.u8", "array");
}

TEST(Gguf, GivesItsTensorsOutermostDimensionFirst) {
  const TemporaryDirectory directory;
  const GgufFile file(small().write(directory.path() / "m.gguf"));
  const GgufEntry* first = file.find("first");
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->shape_text(), "[2, 3]");
  EXPECT_EQ(first->dtype, Dtype::f32);
  EXPECT_EQ(file.bytes(*first).size(), 24U);
  const GgufEntry* second = file.find("second");
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->type, "Q8_0");
  EXPECT_EQ(second->dtype, std::nullopt);
  EXPECT_EQ(second->shape_text(), "[1, 2, 32]");
  EXPECT_EQ(file.bytes(*second)[0], std::byte{'x'});
  EXPECT_EQ(file.find("third"), nullptr);
  EXPECT_TRUE(is_gguf_file(directory.path() / "m.gguf"));
  EXPECT_FALSE(is_gguf_file(directory.path()));
}

TEST(Gguf, IsReadInVersion2AndWithAnotherAlignment) {
  GgufBuilder builder = small();
  builder.version = 2;
  EXPECT_EQ(parse(builder.bytes()).version(), 2U);
  GgufBuilder wide;
  wide.alignment = 256;
  wide.key("general.alignment", uint32_t{256});
  const std::vector<float> values{1, 2};
  wide.tensor("a", {2}, values).tensor("b", {2}, values);
  const std::string bytes = wide.bytes();
  const GgufHeader header = parse(bytes);
  EXPECT_EQ(header.data_begin() % 256, 0U);
  EXPECT_EQ(header.entries()[1].begin, 256U);
}

TEST(Gguf, IsRefusedCutAnywhereBeforeItsDataEnd) {
  const std::string bytes = small().bytes();
  const size_t data_end = bytes.size() - 28;  // what follows pads the last tensor
  for (size_t length = 0; length < data_end; ++length)
    EXPECT_NE(message_of([&] { parse(bytes.substr(0, length)); }), "no error") << length;
  EXPECT_EQ(message_of([&] { parse(bytes.substr(0, data_end)); }), "no error");
}

struct Bad {
  const char* name;
  std::function<std::string()> bytes;
  std::vector<const char*> words;
};

std::string with(const std::function<void(GgufBuilder&)>& change) {
  GgufBuilder builder = small();
  change(builder);
  return builder.bytes();
}
std::string length_only(uint64_t length) {
  std::string text;
  GgufBuilder::append(text, length);
  return text;
}
std::string array_of(uint32_t type, uint64_t count, const std::string& items) {
  std::string text;
  GgufBuilder::append(text, type);
  GgufBuilder::append(text, count);
  return text + items;
}
std::string nested_arrays(int depth) {
  return depth == 0 ? array_of(0, 1, "x") : array_of(9, 1, nested_arrays(depth - 1));
}

const std::vector<Bad>& bad_files() {
  static const std::vector<Bad> cases = {
      {"other magic", [] { return with([](auto& b) { b.magic = "GGML"; }); }, {"GGUF"}},
      {"version 1", [] { return with([](auto& b) { b.version = 1; }); }, {"version 1"}},
      {"version 4", [] { return with([](auto& b) { b.version = 4; }); }, {"version 4"}},
      {"big-endian", [] { return with([](auto& b) { b.version = 3u << 24; }); }, {"endian"}},
      {"a pointer of git-lfs",
       [] { return std::string("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"); },
       {"git"}},
      {"too many tensors",
       [] { return small().bytes(uint64_t{1} << 62, 1); },
       {"4611686018427387904 tensors"}},
      {"too many keys",
       [] { return small().bytes(1, uint64_t{1} << 60); },
       {"1152921504606846976 keys"}},
      {"long key",
       [] { return with([](auto& b) { b.key(std::string(70'000, 'k'), uint8_t{1}); }); },
       {"a key", "65535"}},
      {"empty key", [] { return with([](auto& b) { b.key("", uint8_t{1}); }); }, {"key", "empty"}},
      {"unknown type of a key",
       [] { return with([](auto& b) { b.key("x.a", 13, "x"); }); },
       {"x.a", "type 13"}},
      {"long string",
       [] { return with([](auto& b) { b.key("x.a", 8, length_only(uint64_t{1} << 60)); }); },
       {"x.a", "string"}},
      {"long array",
       [] { return with([](auto& b) { b.key("x.a", 9, array_of(4, uint64_t{1} << 60, "")); }); },
       {"x.a", "array"}},
      {"long array of strings",
       [] { return with([](auto& b) { b.key("x.a", 9, array_of(8, uint64_t{1} << 60, "")); }); },
       {"x.a", "array"}},
      {"deep arrays",
       [] { return with([](auto& b) { b.key("x.a", 9, nested_arrays(9)); }); },
       {"x.a", "deeper"}},
      {"bad truth value",
       [] { return with([](auto& b) { b.key("x.a", 7, "\x02"); }); },
       {"x.a", "truth"}},
      {"a key twice",
       [] { return with([](auto& b) { b.key("a.u8", uint8_t{1}); }); },
       {"a.u8", "twice"}},
      {"alignment 0",
       [] { return with([](auto& b) { b.key("general.alignment", uint32_t{0}); }); },
       {"alignment"}},
      {"alignment 3",
       [] { return with([](auto& b) { b.key("general.alignment", uint32_t{3}); }); },
       {"alignment"}},
      {"alignment as text",
       [] { return with([](auto& b) { b.key("general.alignment", "32"); }); },
       {"alignment"}},
      {"a tensor without a name",
       [] { return with([](auto& b) { b.tensor_at("", {1}, 0, 160); }); },
       {"empty name"}},
      {"a long name",
       [] { return with([](auto& b) { b.tensor_at(std::string(5000, 'n'), {1}, 0, 160); }); },
       {"name", "5000"}},
      {"five dimensions",
       [] { return with([](auto& b) { b.tensor_at("t", {1, 1, 1, 1, 1}, 0, 160); }); },
       {"\"t\"", "5 dimensions"}},
      {"no dimension",
       [] { return with([](auto& b) { b.tensor_at("t", {}, 0, 160); }); },
       {"\"t\"", "dimensions"}},
      {"dimension 0",
       [] { return with([](auto& b) { b.tensor_at("t", {2, 0}, 0, 160); }); },
       {"\"t\"", "dimension of 0"}},
      {"dimensions that overflow",
       [] {
         return with(
             [](auto& b) { b.tensor_at("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, 160); });
       },
       {"\"t\"", "overflow"}},
      {"bytes that overflow",
       [] { return with([](auto& b) { b.tensor_at("t", {uint64_t{1} << 61}, 28, 160); }); },
       {"\"t\""}},
      {"unknown type of a tensor",
       [] { return with([](auto& b) { b.tensor_at("t", {1}, 999, 160); }); },
       {"\"t\"", "999"}},
      {"a type that ggml has taken back",
       [] { return with([](auto& b) { b.tensor_at("t", {1}, 4, 160); }); },
       {"\"t\"", "type number 4"}},
      {"rows of half a block",
       [] { return with([](auto& b) { b.tensor_at("t", {32, 30}, 8, 160); }); },
       {"\"t\"", "30", "32", "Q8_0"}},
      {"an offset off the alignment",
       [] { return with([](auto& b) { b.tensor_at("t", {1}, 0, 161); }); },
       {"\"t\"", "offset", "align"}},
      {"an offset behind the end",
       [] { return with([](auto& b) { b.tensor_at("t", {1}, 0, 1 << 20); }); },
       {"\"t\"", "beyond the end"}},
      {"a huge offset",
       [] { return with([](auto& b) { b.tensor_at("t", {1}, 0, ~uint64_t{31}); }); },
       {"\"t\""}},
      {"a tensor twice",
       [] { return with([](auto& b) { b.tensor_at("first", {1}, 0, 160); }); },
       {"\"first\"", "twice"}},
      {"overlapping tensors",
       [] { return with([](auto& b) { b.tensor_at("t", {2}, 0, 0); }); },
       {"\"first\"", "overlaps", "\"t\""}},
      {"a hole",
       [] {
         GgufBuilder builder;
         return builder.tensor_at("t", {1}, 0, 32).bytes() + std::string(64, '\0');
       },
       {"\"t\"", "hole"}},
  };
  return cases;
}

TEST(Gguf, RefusesMalformedFilesNamingTheRule) {
  for (const Bad& bad : bad_files()) {
    const std::string message = message_of([&] { parse(bad.bytes()); });
    EXPECT_THAT(message, HasSubstr("model.gguf")) << bad.name;
    for (const char* word : bad.words) EXPECT_THAT(message, HasSubstr(word)) << bad.name;
  }
}

TEST(GgufTypes, AreFoundByNumberAndByName) {
  for (const GgufType& type : gguf_types()) {
    EXPECT_EQ(find_gguf_type(type.number), &type);
    EXPECT_EQ(find_gguf_type(type.name), &type);
    if (!type.dtype) continue;
    EXPECT_EQ(size_of(*type.dtype), type.bytes) << type.name;
  }
  EXPECT_EQ(find_gguf_type("q4_k")->number, 12U);
  EXPECT_EQ(find_gguf_type("q4"), nullptr);
  EXPECT_EQ(find_gguf_type(uint32_t{4}), nullptr);
}

}  // namespace
}  // namespace mixtral
