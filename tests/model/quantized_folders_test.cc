// Models that MLX, AWQ or GPTQ quantized, and Mistral's params.json.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "base/random.h"
#include "model/mistral_config.h"
#include "model/mlx_tensors.h"
#include "model/packed_tensors.h"
#include "ops/weight_format.h"
#include "tests/support/files.h"
#include "tests/support/safetensors_builder.h"

namespace mixtral {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::SafetensorsBuilder;

Json json(const std::string& text) { return Json::parse(text, "config.json"); }

std::vector<float> read_all(const TensorSource& tensors, const std::string& name) {
  const TensorEntry& entry = tensors.at(name);
  std::vector<float> values(static_cast<size_t>(entry.numel()));
  tensors.read(name, 0, Tensor(std::span(values)));
  return values;
}

/// Codes of `bits` bits end to end in 32-bit words, the first lowest.
std::vector<uint32_t> packed(const std::vector<uint32_t>& codes, uint32_t bits) {
  std::vector<uint32_t> words((codes.size() * bits + 31) / 32);
  for (size_t i = 0; i < codes.size(); ++i)
    for (uint32_t b = 0; b < bits; ++b)
      if (codes[i] >> b & 1) words[(i * bits + b) / 32] |= 1u << ((i * bits + b) % 32);
  return words;
}

// 2 rows of 64, in groups of 32.
struct MlxCase {
  uint32_t bits;
  std::vector<uint32_t> codes;
  std::vector<uint16_t> scales{0x3c00, 0x3800, 0x4000, 0x3400};  // f16: 1, 0.5, 2, 0.25
  std::vector<uint16_t> biases{0, 0xbc00, 0x3c00, 0x4400};       // 0, -1, 1, 4
  std::vector<float> values;

  explicit MlxCase(uint32_t of_bits) : bits(of_bits) {
    constexpr std::array<float, 4> kScales{1, 0.5f, 2, 0.25f}, kBiases{0, -1, 1, 4};
    for (uint32_t i = 0; i < 128; ++i) {
      codes.push_back(i * 7 % (1u << bits));
      values.push_back(static_cast<float>(codes.back()) * kScales[i / 32] + kBiases[i / 32]);
    }
  }
  void write(const std::filesystem::path& folder, bool with_biases = true) const {
    SafetensorsBuilder builder;
    builder.add("a.weight", "U32", {2, static_cast<int64_t>(bits) * 2}, packed(codes, bits))
        .add("a.scales", "F16", {2, 2}, scales)
        .add("b.weight", "F32", {1}, std::vector<float>{3});
    if (with_biases) builder.add("a.biases", "F16", {2, 2}, biases);
    builder.write(folder / "model.safetensors");
  }
};

MlxQuantizations settings(const std::string& text) {
  return *MlxQuantizations::read(json("{\"quantization\":" + text + "}"));
}

TEST(MlxTensors, AreCodesTimesScalePlusBias) {
  for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u}) {
    const TemporaryDirectory directory;
    const MlxCase c(bits);
    c.write(directory.path());
    const MlxTensors tensors(directory.path(),
                             settings(fmt::format(R"({{"group_size":32,"bits":{}}})", bits)));
    EXPECT_EQ(tensors.at("a.weight").shape_text(), "[2, 64]");
    EXPECT_EQ(read_all(tensors, "a.weight"), c.values) << bits;
    EXPECT_EQ(read_all(tensors, "b.weight"), std::vector<float>{3});
    EXPECT_EQ(tensors.names().size(), 2u);
    EXPECT_EQ(tensors.find("a.scales"), nullptr);
    EXPECT_EQ(tensors.at("a.weight").format, bits == 4   ? "int4_g32_f16"
                                             : bits == 8 ? "int8_g32_f16"
                                                         : "");
    std::vector<float> row(64);
    tensors.read("a.weight", 64, Tensor(std::span(row)));
    EXPECT_EQ(row, std::vector<float>(c.values.begin() + 64, c.values.end()));
  }
}

TEST(MlxTensors, GiveTheirCodesAsTheFormatOfThatNameHasThem) {
  const TemporaryDirectory directory;
  const MlxCase c(4);
  c.write(directory.path());
  const MlxTensors tensors(directory.path(), settings(R"({"group_size":32,"bits":4})"));
  std::vector<uint8_t> codes(32);
  std::vector<uint16_t> scales(2), biases(2);
  const std::vector<Tensor> pieces = {Tensor(codes.data(), {1, 32}, Dtype::u8),
                                      Tensor(scales.data(), {1, 2}, Dtype::f16),
                                      Tensor(biases.data(), {1, 2}, Dtype::f16), Tensor()};
  tensors.read_codes("a.weight", 1, pieces);
  std::vector<float> row(64);
  ops::find_weight_format("int4_g32_f16")
      ->row()
      .unpack({.codes = codes.data(), .scales = scales.data(), .minima = biases.data()}, row);
  EXPECT_EQ(row, std::vector<float>(c.values.begin() + 64, c.values.end()));
}

TEST(MlxTensors, FollowOverridesByPath) {
  const TemporaryDirectory directory;
  const MlxCase c(8);
  c.write(directory.path());
  const MlxTensors own(directory.path(),
                       settings(R"({"group_size":64,"bits":4,"a":{"group_size":32,"bits":8}})"));
  EXPECT_EQ(read_all(own, "a.weight"), c.values);
  EXPECT_THAT(message_of([&] {
                MlxTensors(directory.path(), settings(R"({"group_size":32,"bits":8,"a":false})"));
              }),
              AllOf(HasSubstr("a.scales"), HasSubstr("not quantized")));
}

TEST(MlxTensors, ThatDoNotGoTogetherAreRefused) {
  const TemporaryDirectory directory;
  const auto problem = [&](const char* text) {
    return message_of([&] { MlxTensors(directory.path(), settings(text)); });
  };
  MlxCase(4).write(directory.path(), false);
  EXPECT_THAT(problem(R"({"group_size":32,"bits":4})"), HasSubstr("a.biases\" is missing"));
  MlxCase(4).write(directory.path());
  EXPECT_THAT(problem(R"({"group_size":32,"bits":8})"),
              AllOf(HasSubstr("a.weight"), HasSubstr("8 bits"), HasSubstr("config.json")));
  EXPECT_THAT(problem(R"({"group_size":64,"bits":4})"), HasSubstr("groups of 64"));
  EXPECT_THAT(problem(R"({"group_size":32,"bits":7})"), HasSubstr("bits is 7"));
  EXPECT_THAT(problem(R"({"group_size":0,"bits":4})"), HasSubstr("group_size is 0"));
  EXPECT_THAT(problem(R"({"group_size":32,"bits":4,"mode":"mxfp4"})"), HasSubstr("mxfp4"));
}

// 8 outputs and 16 inputs in two groups of 8: code (o + 3 i) % 16, zero point o + group, scale
// 1 / (1 + group).
constexpr int kOutputs = 8, kInputs = 16;
int code_of(int o, int i) { return (o + 3 * i) % 16; }

std::vector<float> expected_values() {
  std::vector<float> values;
  for (int o = 0; o < kOutputs; ++o)
    for (int i = 0; i < kInputs; ++i) {
      const int group = i / 8;
      values.push_back(static_cast<float>(code_of(o, i) - (o + group)) /
                       (group == 0 ? 1.0f : 2.0f));
    }
  return values;
}
const std::vector<uint16_t> kTwoScales = [] {
  std::vector<uint16_t> scales(2 * kOutputs, 0x3c00);
  std::fill(scales.begin() + kOutputs, scales.end(), uint16_t{0x3800});
  return scales;
}();

PackedQuantization quantization(const std::string& text) {
  return *PackedQuantization::read(json("{\"quantization_config\":" + text + "}"));
}

TEST(AwqTensors, HaveEightOutputsAWordTheEvenOnesFirst) {
  const TemporaryDirectory directory;
  constexpr std::array<int, 8> kOrder = {0, 2, 4, 6, 1, 3, 5, 7};
  const auto word = [&](const auto& code) {
    uint32_t bits = 0;
    for (uint32_t place = 0; place < 8; ++place)
      bits |= static_cast<uint32_t>(code(kOrder[place])) << (4 * place);
    return static_cast<int32_t>(bits);
  };
  std::vector<int32_t> codes, zeros;
  for (int i = 0; i < kInputs; ++i) codes.push_back(word([&](int o) { return code_of(o, i); }));
  for (int g = 0; g < 2; ++g) zeros.push_back(word([&](int o) { return o + g; }));
  SafetensorsBuilder()
      .add("a.qweight", "I32", {kInputs, 1}, codes)
      .add("a.qzeros", "I32", {2, 1}, zeros)
      .add("a.scales", "F16", {2, kOutputs}, kTwoScales)
      .write(directory.path() / "model.safetensors");
  const PackedTensors tensors(
      directory.path(),
      quantization(R"({"quant_method":"awq","bits":4,"group_size":8,"version":"gemm"})"));
  EXPECT_EQ(tensors.names(), std::vector<std::string>{"a.weight"});
  EXPECT_EQ(tensors.at("a.weight").shape_text(), "[8, 16]");
  EXPECT_EQ(read_all(tensors, "a.weight"), expected_values());
}

TEST(GptqTensors, HaveNeighbouringInputsAWord) {
  for (const bool less_one : {true, false}) {
    const TemporaryDirectory directory;
    std::vector<int32_t> codes, zeros;
    for (int i = 0; i < kInputs; i += 8)
      for (int o = 0; o < kOutputs; ++o) {
        uint32_t bits = 0;
        for (int k = 0; k < 8; ++k) bits |= static_cast<uint32_t>(code_of(o, i + k)) << (4 * k);
        codes.push_back(static_cast<int32_t>(bits));
      }
    for (int g = 0; g < 2; ++g) {
      uint32_t bits = 0;
      for (int o = 0; o < kOutputs; ++o)
        bits |= (static_cast<uint32_t>(o + g - (less_one ? 1 : 0)) & 15u) << (4 * o);
      zeros.push_back(static_cast<int32_t>(bits));
    }
    std::vector<int32_t> groups;
    for (int i = 0; i < kInputs; ++i) groups.push_back(i / 8);
    SafetensorsBuilder()
        .add("a.qweight", "I32", {2, kOutputs}, codes)
        .add("a.qzeros", "I32", {2, 1}, zeros)
        .add("a.scales", "F16", {2, kOutputs}, kTwoScales)
        .add("a.g_idx", "I32", {kInputs}, groups)
        .add("a.bias", "F16", {kOutputs}, std::vector<uint16_t>(kOutputs))
        .write(directory.path() / "model.safetensors");
    const PackedTensors tensors(
        directory.path(),
        quantization(fmt::format(
            R"({{"quant_method":"gptq","bits":4,"group_size":8,"checkpoint_format":"{}"}})",
            less_one ? "gptq" : "gptq_v2")));
    EXPECT_EQ(tensors.names(), std::vector<std::string>{"a.weight"});
    auto expected = expected_values();
    // Of output 0 and group 0 the zero point is 0, which the first format keeps as 15.
    if (less_one)
      for (int i = 0; i < 8; ++i) expected[static_cast<size_t>(i)] -= 16;
    EXPECT_EQ(read_all(tensors, "a.weight"), expected) << less_one;
  }
}

/// Matrices of several blocks of rows and columns, as a whole and in parts that begin anywhere.
TEST(PackedTensors, GiveAnyPart) {
  constexpr int64_t kRows = 136, kColumns = 528, kGroup = 16, kGroups = kColumns / kGroup;
  RandomStream random(9);
  const auto words = [&](int64_t count) {
    std::vector<int32_t> some(static_cast<size_t>(count));
    for (int32_t& word : some) word = static_cast<int32_t>(random.next() >> 32);
    return some;
  };
  const auto at = [](const auto& values, int64_t index) {
    return values[static_cast<size_t>(index)];
  };
  for (const bool awq : {true, false}) {
    const TemporaryDirectory directory;
    const std::vector<int32_t> codes = words(kRows * kColumns / 8),
                               zeros = words(kGroups * kRows / 8);
    std::vector<float> scales(kGroups * kRows);
    for (float& scale : scales) scale = static_cast<float>(random.normal());
    std::vector<int32_t> groups;  // in no order
    for (int64_t i = 0; i < kColumns; ++i) groups.push_back(static_cast<int32_t>(i * 7 % kGroups));
    SafetensorsBuilder builder;
    const std::vector<int64_t> dims =
        awq ? std::vector<int64_t>{kColumns, kRows / 8} : std::vector<int64_t>{kColumns / 8, kRows};
    builder.add("a.qweight", "I32", dims, codes)
        .add("a.qzeros", "I32", {kGroups, kRows / 8}, zeros)
        .add("a.scales", "F32", {kGroups, kRows}, scales);
    if (!awq) builder.add("a.g_idx", "I32", {kColumns}, groups);
    builder.write(directory.path() / "model.safetensors");
    const PackedTensors tensors(
        directory.path(),
        quantization(awq ? R"({"quant_method":"awq","bits":4,"group_size":16,"version":"gemm"})"
                         : R"({"quant_method":"gptq","bits":4,"group_size":16})"));
    const auto four = [](int32_t word, int64_t place) {
      return static_cast<int>(static_cast<uint32_t>(word) >> (4 * place) & 15u);
    };
    constexpr std::array<int64_t, 8> kPlaces{0, 4, 1, 5, 2, 6, 3, 7};
    std::vector<float> expected;
    for (int64_t o = 0; o < kRows; ++o)
      for (int64_t i = 0; i < kColumns; ++i) {
        const int64_t group = awq ? i / kGroup : at(groups, i), in_word = o % 8;
        const int64_t place = awq ? kPlaces[static_cast<size_t>(in_word)] : in_word;
        const int code = awq ? four(at(codes, i * (kRows / 8) + o / 8), place)
                             : four(at(codes, i / 8 * kRows + o), i % 8);
        const int zero = four(at(zeros, group * (kRows / 8) + o / 8), place) + (awq ? 0 : 1);
        expected.push_back(static_cast<float>(code - zero) * at(scales, group * kRows + o));
      }
    EXPECT_EQ(read_all(tensors, "a.weight"), expected) << awq;
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1},
                                       {kColumns - 1, 2},
                                       {3 * kColumns, 70 * kColumns},
                                       {60 * kColumns + 300, 9 * kColumns + 5}}) {
      std::vector<float> part(static_cast<size_t>(count));
      tensors.read("a.weight", first, Tensor(std::span(part)));
      EXPECT_TRUE(std::ranges::equal(
          part, std::span(expected).subspan(static_cast<size_t>(first), part.size())))
          << awq << " from " << first;
    }
  }
}

TEST(PackedTensors, ThatDoNotGoTogetherAreRefused) {
  const TemporaryDirectory directory;
  const auto problem = [&](int64_t outputs, const std::vector<int32_t>& groups) {
    SafetensorsBuilder builder;
    builder.add("a.qweight", "I32", {2, 8}, std::vector<int32_t>(16))
        .add("a.scales", "F16", {2, outputs},
             std::vector<uint16_t>(static_cast<size_t>(2 * outputs)))
        .add("a.qzeros", "I32", {2, 1}, std::vector<int32_t>(2))
        .add("a.g_idx", "I32", {static_cast<int64_t>(groups.size())}, groups);
    builder.write(directory.path() / "model.safetensors");
    return message_of([&] {
      PackedTensors(directory.path(), quantization(R"({"quant_method":"gptq","bits":4})"));
    });
  };
  EXPECT_EQ(problem(8, std::vector<int32_t>(16)), "no error");
  EXPECT_THAT(problem(16, std::vector<int32_t>(16)), HasSubstr("a.qweight"));
  EXPECT_THAT(problem(8, std::vector<int32_t>(16, 2)), HasSubstr("2 groups"));
  EXPECT_THAT(problem(8, std::vector<int32_t>(3)), HasSubstr("a.g_idx"));
  EXPECT_THAT(message_of([] { quantization(R"({"quant_method":"gptq","bits":3})"); }),
              HasSubstr("3 bits"));
  EXPECT_THAT(
      message_of([] { quantization(R"({"quant_method":"awq","bits":4,"version":"gemv"})"); }),
      HasSubstr("gemv"));
  EXPECT_FALSE(PackedQuantization::read(json(R"({"quantization_config":{"quant_method":"fp8"}})")));
}

constexpr const char* kParams =
    R"({"dim":32,"n_layers":2,"head_dim":8,"hidden_dim":16,"n_heads":4,"n_kv_heads":2,
        "norm_eps":1e-5,"vocab_size":24,"moe":{"num_experts_per_tok":2,"num_experts":3}%s})";

std::string params(const std::string& more) {
  std::string text = kParams;
  return text.replace(text.find("%s"), 2, more);
}

TEST(MistralConfig, IsReadFromParams) {
  const ModelConfig config = mistral_config(json(params("")));
  EXPECT_EQ(config.hidden_size, 32);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.num_experts, 3);
  EXPECT_EQ(config.rope_theta, 1e6);
  EXPECT_EQ(config.sliding_window, 0);
  EXPECT_EQ(mistral_config(json(params(R"(,"rope_theta":1e4)"))).rope_theta, 1e4);
  EXPECT_EQ(mistral_config(json(params(R"(,"sliding_window":7)"))).sliding_window, 7);
  EXPECT_NO_THROW(mistral_config(json(params(R"(,"use_biases":false,"yarn":null)"))));
}

TEST(MistralConfig, RefusesByNameWhatIsMissingOrNotDoneHere) {
  const auto problem = [](std::string text) {
    return message_of([&] { mistral_config(json(text)); });
  };
  std::string dense = params("");
  dense.erase(dense.find(",\"moe\""), dense.find("}}") - dense.find(",\"moe\"") + 1);
  EXPECT_THAT(problem(dense), AllOf(HasSubstr("moe"), HasSubstr("experts")));
  std::string without = params("");
  without.replace(without.find("\"dim\""), 5, "\"dum\"");
  EXPECT_THAT(problem(without), HasSubstr("dum"));
  EXPECT_THAT(problem(params(R"(,"lora":{"rank":8})")), HasSubstr("lora"));
  EXPECT_THAT(problem(params(R"(,"use_biases":true)")), HasSubstr("use_biases"));
  EXPECT_THAT(problem(params(R"(,"sliding_window":[1,2])")), HasSubstr("sliding_window"));
}

}  // namespace
}  // namespace mixtral
