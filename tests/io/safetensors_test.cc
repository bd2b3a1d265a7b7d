#include "io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/random.h"
#include "io/convert.h"
#include "io/safetensors_writer.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A file with this header and data.
std::string file_of(const std::string& header, size_t data_bytes = 0) {
  std::string text(8, '\0');
  for (size_t i = 0; i < 8; ++i) text[i] = static_cast<char>(header.size() >> 8 * i & 0xff);
  return text + header + std::string(data_bytes, '\1');
}

SafetensorsHeader parse(const std::string& file) {
  return SafetensorsHeader::parse(std::as_bytes(std::span(file)), "m.safetensors");
}

std::string entry(const std::string& type, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::string one(const std::string& type, const std::string& shape, const std::string& offsets) {
  return R"({"a":)" + entry(type, shape, offsets) + "}";
}

TEST(Safetensors, ReadsAHeader) {
  const auto header = parse(file_of(
      R"({"b":)" + entry("BF16", "[3]", "[8,14]") + R"(,"__metadata__":{"format":"pt"},"a":)" +
          entry("F32", "[1,2]", "[0,8]") + R"(,"e":)" + entry("F32", "[0,5]", "[14,14]") + "}   ",
      14));
  ASSERT_EQ(header.entries.size(), 3u);
  EXPECT_EQ(header.entries[0].name, "a");
  EXPECT_EQ(header.entries[0].dims, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(header.entries[1].dtype, Dtype::bf16);
  EXPECT_EQ(header.entries[2].numel(), 0);
  EXPECT_EQ(header.metadata.at("format"), "pt");
}

TEST(Safetensors, AcceptsTheEdgesOfTheFormat) {
  EXPECT_TRUE(parse(file_of("{}")).entries.empty());
  EXPECT_TRUE(parse(file_of(R"({"__metadata__":null})")).metadata.empty());  // as MLX writes it
  EXPECT_EQ(parse(file_of(one("F32", "[]", "[0,4]"), 4)).entries[0].numel(), 1);
  EXPECT_EQ(parse(file_of(one("F4", "[3,2]", "[0,3]"), 3)).entries[0].bytes(), 3u);
  EXPECT_EQ(parse(file_of(one("F64", "[1,1,1,1,1,1]", "[0,8]"), 8)).entries[0].dims.size(), 6u);
  for (const char* type : {"I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"})
    EXPECT_EQ(parse(file_of(one(type, "[2]", "[0,2]"), 2)).entries[0].type, type);
}

TEST(Safetensors, RefusesHostileFiles) {
  const std::string a = R"("a":)" + entry("F32", "[2]", "[0,8]");
  const auto two = [&](const std::string& offsets) {
    return "{" + a + R"(,"b":)" + entry("F32", "[2]", offsets) + "}";
  };
  std::string huge = file_of("{}");
  huge[7] = '\x7f';
  std::string past = file_of("{}");
  past[0] = 100;
  std::string deep = R"({"a":{"dtype":"F32","shape":)" + std::string(500, '[') +
                     std::string(500, ']') + R"(,"data_offsets":[0,4]}})";
  const std::pair<std::string, const char*> cases[] = {
      {"", "too few"},
      {"1234567", "too few"},
      {std::string(8, '\0'), "does not start with '{'"},
      {huge, "at most 100000000"},
      {past, "past the end"},
      {file_of("[]"), "does not start with '{'"},
      {file_of(" {}"), "does not start with '{'"},
      {file_of("\xff\xfe{}"), "does not start with '{'"},
      {file_of("{\"\xff\":1}"), "UTF-8"},
      {file_of("{}x"), "not valid JSON"},
      {file_of("{}{}"), "not valid JSON"},
      {file_of("{"), "not valid JSON"},
      {file_of(std::string("{}\0", 3)), "not valid JSON"},
      {file_of("{" + a + "," + a + "}", 8), "\"a\" appears twice"},
      {file_of(R"({"a":3})"), "tensor \"a\" is not described by an object"},
      {file_of(R"({"a":{}})"), "lacks the key \"dtype\""},
      {file_of(R"({"a":{"dtype":"F32"}})"), "lacks the key \"shape\""},
      {file_of(R"({"a":{"dtype":"F32","shape":[1]}})"), "lacks the key \"data_offsets\""},
      {file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4),
       "unknown key \"x\""},
      {file_of(R"({"a":{"dtype":3,"shape":[1],"data_offsets":[0,4]}})", 4),
       "dtype that is not a string"},
      {file_of(one("F31", "[1]", "[0,4]"), 4), "unknown dtype \"F31\""},
      {file_of(one("f32", "[1]", "[0,4]"), 4), "unknown dtype \"f32\""},
      {file_of(one("F32", "1", "[0,4]"), 4), "shape that is not an array"},
      {file_of(one("F32", "[-1]", "[0,4]"), 4), "dimension that is not a whole number"},
      {file_of(one("F32", "[1.5]", "[0,4]"), 4), "dimension that is not a whole number"},
      {file_of(one("F32", "[1.0]", "[0,4]"), 4), "dimension that is not a whole number"},
      {file_of(one("F32", "[\"1\"]", "[0,4]"), 4), "dimension that is not a whole number"},
      {file_of(one("F32", "[18446744073709551616]", "[0,4]"), 4), "not a whole number"},
      {file_of(one("F32", "[18446744073709551615]", "[0,4]"), 4), "not a whole number"},
      {file_of(one("F32", "[4294967296,4294967296]", "[0,4]"), 4), "overflows"},
      {file_of(one("F32", "[4611686018427387905]", "[0,4]"), 4), "overflows"},
      {file_of(one("F32", "[4294967296,4294967296,0]", "[0,0]")), "overflows"},
      {file_of(one("F32", "[1]", "[0]"), 4), "not a pair"},
      {file_of(one("F32", "[1]", "[0,4,8]"), 4), "not a pair"},
      {file_of(one("F32", "[1]", "4"), 4), "not a pair"},
      {file_of(one("F32", "[1]", "[-4,0]"), 4), "data offset that is not a whole number"},
      {file_of(one("F32", "[1]", "[0,4.5]"), 4), "data offset that is not a whole number"},
      {file_of(one("F32", "[1]", "[4,0]"), 4), "run backwards"},
      {file_of(one("F32", "[2]", "[0,4]"), 4), "must have 8 bytes, but data_offsets hold 4"},
      {file_of(one("F32", "[1]", "[0,8]"), 8), "must have 4 bytes, but data_offsets hold 8"},
      {file_of(one("F4", "[3]", "[0,1]"), 1), "does not fill whole bytes"},
      {file_of(one("F32", "[2]", "[0,8]"), 4), "cut short"},
      {file_of(one("F32", "[2]", "[0,8]"), 9), "1 bytes follow the last tensor"},
      {file_of("{}", 1), "1 bytes follow the last tensor"},
      {file_of(one("F32", "[1]", "[4,8]"), 8), "leaves a hole after byte 0"},
      {file_of(two("[12,20]"), 20), "leaves a hole after byte 8"},
      {file_of(two("[4,12]"), 12), "overlaps tensor \"a\""},
      {file_of(two("[0,8]"), 8), "overlaps tensor \"a\""},
      {file_of(R"({"__metadata__":3})"), "__metadata__ must be an object"},
      {file_of(R"({"__metadata__":{"x":3}})"), "__metadata__ must hold only strings"},
      {file_of(R"({"__metadata__":{"x":null}})"), "__metadata__ must hold only strings"},
      {file_of(R"({"__metadata__":{},"__metadata__":{}})"), "appears twice"},
      {file_of(R"({"":)" + entry("F32", "[1]", "[0,4]") + "}", 4), "empty name"},
      {file_of("{\"" + std::string(2000, 'n') + "\":" + entry("F32", "[1]", "[0,4]") + "}", 4),
       "name of 2000 bytes"},
      {file_of(one(
                   "F32",
                   "[1" + std::string(80, ' ') +
                       [] {
                         std::string ones;
                         for (int i = 0; i < 40; ++i) ones += ",1";
                         return ones;
                       }() +
                       "]",
                   "[0,4]"),
               4),
       "41 dimensions"},
      {file_of(deep, 4), "deeper than"},
  };
  for (const auto& row : cases) {
    const auto& text = row.first;
    const char* words = row.second;
    const std::string message = message_of([&] { parse(text); });
    EXPECT_THAT(message, HasSubstr(words)) << text.substr(0, 120);
    EXPECT_THAT(message, StartsWith("m.safetensors: ")) << text.substr(0, 120);
  }
}

TEST(Safetensors, NoDamageToAHeaderCrashes) {
  const std::string good =
      file_of(R"({"__metadata__":{"format":"pt"},"a":)" + entry("F32", "[2]", "[0,8]") +
                  R"(,"b":)" + entry("BF16", "[2,2]", "[8,16]") + "}",
              16);
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_THROW(parse(good.substr(0, length)), Error) << length;
  RandomStream random(7);
  for (int round = 0; round < 5000; ++round) {
    std::string bad = good;
    const uint64_t edits = 1 + random.below(3);
    for (uint64_t i = 0; i < edits; ++i)
      bad[random.below(bad.size())] = static_cast<char>(random.below(256));
    message_of([&] { parse(bad); });
  }
}

TEST(Safetensors, EveryDtypeRoundTrips) {
  const TemporaryDirectory directory;
  RandomStream random(11);
  for (const Dtype dtype :
       {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::i64, Dtype::i32, Dtype::u8}) {
    for (const Shape& shape :
         {Shape{}, Shape{0}, Shape{1}, Shape{7}, Shape{3, 5}, Shape{2, 0, 3}, Shape{1, 2, 3, 5}}) {
      std::vector<std::byte> bytes(static_cast<size_t>(shape.numel() * size_of(dtype)));
      for (auto& byte : bytes) byte = static_cast<std::byte>(random.below(256));
      const fs::path path = directory.path() / "x.safetensors";
      const FileChecksum sum =
          write_safetensors(path, {{"odd", Tensor(bytes.data(), shape, dtype)}});
      EXPECT_EQ(sum, checksum_file(path));
      const SafetensorsFile file(path);
      const Tensor view = file.view("odd");
      EXPECT_EQ(view.shape(), shape);
      EXPECT_EQ(view.dtype(), dtype);
      EXPECT_TRUE(std::ranges::equal(file.bytes(file.at("odd")), bytes));
      std::vector<std::byte> copy(bytes.size());
      file.read_into("odd", Tensor(copy.data(), shape, dtype));
      EXPECT_EQ(copy, bytes) << to_string(dtype) << " " << shape.to_string();
    }
  }
}

TEST(Safetensors, ConvertsBetweenFloats) {
  const TemporaryDirectory directory;
  std::vector<float> values = {0.f, -0.f, 1.f, -2.5f, 3.14159265f, 65504.f, 1e-3f, 7e-8f, 1e30f};
  const fs::path path = directory.path() / "x.safetensors";
  for (const Dtype stored : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16}) {
    const auto source = [&](const PlannedTensor&) { return Tensor(std::span(values)); };
    write_safetensors(path, {{"x", Shape{9}, stored}}, source);
    const SafetensorsFile file(path);
    std::vector<double> read(9);
    file.read_into("x", Tensor(std::span(read)));
    for (size_t i = 0; i < values.size(); ++i) {
      const double expected = stored == Dtype::bf16  ? static_cast<float>(bf16(values[i]))
                              : stored == Dtype::f16 ? static_cast<float>(f16(values[i]))
                                                     : values[i];
      EXPECT_EQ(read[i], expected) << to_string(stored) << " " << values[i];
    }
  }
}

TEST(Convert, RoundsOnceFromDouble) {
  // Just above the middle of two bf16 values, by less than a float can show.
  const double above = 1.0 + 0x1p-8 + 0x1p-40;
  std::vector<double> from = {above, -above, 1.0 + 0x1p-8, 1.0 + 0x1p-11 + 0x1p-50};
  std::vector<bf16> to(from.size());
  convert_elements(reinterpret_cast<std::byte*>(from.data()), Dtype::f64,
                   reinterpret_cast<std::byte*>(to.data()), Dtype::bf16, 3);
  EXPECT_EQ(static_cast<float>(to[0]), 1.0f + 0x1p-7f);
  EXPECT_EQ(static_cast<float>(to[1]), -1.0f - 0x1p-7f);
  EXPECT_EQ(static_cast<float>(to[2]), 1.0f);  // the middle itself goes to even
  f16 half;
  convert_elements(reinterpret_cast<std::byte*>(&from[3]), Dtype::f64,
                   reinterpret_cast<std::byte*>(&half), Dtype::f16, 1);
  EXPECT_EQ(static_cast<float>(half), 1.0f + 0x1p-10f);
}

TEST(Convert, FindsTheFirstNonFinite) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int64_t place : {0, 1, 4095, 4096, 9999}) {
    std::vector<float> values(10000, 1.f);
    values[static_cast<size_t>(place)] = place % 2 ? -inf : std::nanf("");
    values.back() = inf;
    const auto* data = reinterpret_cast<const std::byte*>(values.data());
    EXPECT_EQ(find_non_finite(data, Dtype::f32, 10000), place);
    std::vector<std::byte> halves(20000);
    for (const Dtype dtype : {Dtype::bf16, Dtype::f16}) {
      convert_elements(data, Dtype::f32, halves.data(), dtype, 10000);
      EXPECT_EQ(find_non_finite(halves.data(), dtype, 10000), place);
    }
  }
  const std::vector<float> fine(100, std::numeric_limits<float>::max());
  EXPECT_EQ(find_non_finite(reinterpret_cast<const std::byte*>(fine.data()), Dtype::f32, 100), -1);
}

TEST(Safetensors, TensorsNeedNotBeAligned) {
  const TemporaryDirectory directory;
  const std::string path = (directory.path() / "x.safetensors").string();
  const float value = 1.5f;
  std::string text = file_of(R"({"u":)" + entry("U8", "[1]", "[0,1]") + R"(,"f":)" +
                             entry("F32", "[1]", "[1,5]") + "}");
  text += '\7';
  text.append(reinterpret_cast<const char*>(&value), 4);
  write_file(path, text);
  const SafetensorsFile file(path);
  float read = 0;
  file.read_into("f", Tensor(&read, {1}, Dtype::f32));
  EXPECT_EQ(read, 1.5f);
  double wide = 0;
  file.read_into("f", Tensor(&wide, {1}, Dtype::f64));
  EXPECT_EQ(wide, 1.5);
  const auto misaligned =
      reinterpret_cast<uintptr_t>(file.bytes(file.at("f")).data()) % alignof(float) != 0;
  EXPECT_THAT(message_of([&] { file.view("f"); }),
              HasSubstr(misaligned ? "not aligned" : "no error"));
}

TEST(Safetensors, UseErrorsNameFileAndTensor) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "x.safetensors";
  write_file(path, file_of(R"({"q":)" + entry("F8_E4M3", "[2]", "[0,2]") + R"(,"r":)" +
                               entry("U8", "[1,1,1,1,2]", "[2,4]") + "}",
                           4));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.at("q").bytes(), 2u);
  EXPECT_EQ(file.find("absent"), nullptr);
  std::vector<float> to(2);
  const std::string name = path.string();
  EXPECT_THAT(message_of([&] { file.view("q"); }), HasSubstr(name + ": tensor \"q\" has dtype F8"));
  EXPECT_THAT(message_of([&] { file.read_into("q", Tensor(std::span(to))); }),
              HasSubstr("F8_E4M3"));
  EXPECT_THAT(message_of([&] { file.view("r"); }), HasSubstr("at most 4 dimensions"));
  EXPECT_THAT(message_of([&] { file.view("absent"); }), HasSubstr("there is no tensor \"absent\""));
  EXPECT_THAT(message_of([&] { file.read_into("r", Tensor(std::span(to))); }),
              HasSubstr("has shape [1, 1, 1, 1, 2], but [2] is needed"));
  std::vector<uint8_t> bytes(2);
  const TemporaryDirectory other;
  write_safetensors(other.path() / "y.safetensors", {{"u", Tensor(std::span(bytes))}});
  EXPECT_THAT(
      message_of([&] {
        SafetensorsFile(other.path() / "y.safetensors").read_into("u", Tensor(std::span(to)));
      }),
      HasSubstr("has dtype U8, but f32 is needed"));
  EXPECT_THAT(message_of([&] { SafetensorsFile(directory.path() / "absent.safetensors"); }),
              HasSubstr("No such file"));
  EXPECT_THAT(message_of([&] { SafetensorsFile folder(directory.path()); }),
              HasSubstr("directory"));
}

}  // namespace
}  // namespace mixtral
