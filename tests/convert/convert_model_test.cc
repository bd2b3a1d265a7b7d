// There and back through every format, and what a receipt notices.
#include "convert/convert_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/file.h"
#include "convert/verify_conversion.h"
#include "io/gguf.h"
#include "io/model_tensors.h"
#include "io/safetensors_writer.h"
#include "tests/support/files.h"
#include "tests/support/fixtures.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Convert : public ::testing::Test {
 protected:
  Receipt convert(const fs::path& from, ModelFormat to, const fs::path& out,
                  const std::string& type = "", Calibration* calibration = nullptr) {
    const ModelSource source = ModelSource::resolve({.model = from.string()});
    return convert_model(source, {.to = to,
                                  .type = TypeChoice(type, to, 32),
                                  .out = out,
                                  .threads = 1,
                                  .calibration = calibration});
  }
  fs::path out(const std::string& name) { return directory_.path() / name; }
  /// The fixture's model in a type, with a companion of each kind.
  fs::path model(const std::string& type) {
    const fs::path path = out("model-" + type);
    convert(testing::fixture("small"), ModelFormat::hugging_face, path, type);
    write_file(path / "generation_config.json", "{\"eos_token_id\": [2, 7]}\n");
    write_file(path / "LICENSE", "of the weights\n");
    return path;
  }

 private:
  TemporaryDirectory directory_;
};

/// Names, types, shapes and bytes of a directory's tensors.
std::map<std::string, std::string> tensors_of(const fs::path& directory) {
  std::map<std::string, std::string> found;
  const ModelTensors tensors(directory);
  for (const std::string& name : tensors.names()) {
    const TensorEntry& entry = tensors.at(name);
    found[name] = entry.type + entry.shape_text() + checksum(tensors.raw(name)).hex();
  }
  return found;
}

TEST_F(Convert, ThereAndBackGivesTheSameBytesTypesAndCompanions) {
  for (const std::string type : {"f32", "bf16", "f16"}) {
    const fs::path from = model(type);
    for (const ModelFormat format :
         {ModelFormat::hugging_face, ModelFormat::gguf, ModelFormat::mlx, ModelFormat::mistral}) {
      const std::string name = type + "-" + std::string(mixtral::name(format));
      const fs::path there = out(name + (format == ModelFormat::gguf ? ".gguf" : ""));
      const fs::path back = out(name + "-back");
      const Receipt receipt = convert(from, format, there);
      EXPECT_TRUE(receipt.lossless) << name;
      EXPECT_LE(receipt.logits.difference, 1e-5) << name;
      convert(there, ModelFormat::hugging_face, back);
      EXPECT_EQ(tensors_of(back), tensors_of(from)) << name;
      for (const char* companion : {"generation_config.json", "LICENSE", "config.json"})
        EXPECT_EQ(read_file(back / companion), read_file(from / companion)) << name;
    }
  }
}

TEST_F(Convert, AReceiptAccountsForEveryTensorOnce) {
  const Receipt receipt = convert(testing::fixture("small"), ModelFormat::gguf, out("m.gguf"));
  EXPECT_EQ(receipt.tensors.size(), 3u + 2 * (7 + 4 * 3));
  EXPECT_EQ(receipt.targets.size(), 3u + 2 * (7 + 3));
  EXPECT_THAT(receipt.unaccounted, IsEmpty());
  const Verification again = verify_conversion(out("m.gguf"), 1);
  EXPECT_THAT(again.problems, IsEmpty());
  EXPECT_TRUE(again.source_present);
  EXPECT_EQ(again.receipt.tensors.size(), receipt.tensors.size());
}

TEST_F(Convert, VerifyNamesTheTensorThatChanged) {
  convert(testing::fixture("small"), ModelFormat::gguf, out("m.gguf"));
  const GgufFile file(out("m.gguf"));
  const GgufEntry& entry = *file.find("blk.1.attn_v.weight");
  std::fstream damage(out("m.gguf"), std::ios::in | std::ios::out | std::ios::binary);
  damage.seekp(static_cast<std::streamoff>(file.header().data_begin() + entry.begin + 5));
  damage.put('\x42');
  damage.close();
  EXPECT_THAT(verify_conversion(out("m.gguf"), 1).problems,
              ElementsAre(HasSubstr("blk.1.attn_v.weight")));
}

TEST_F(Convert, VerifyNamesASourceThatChanged) {
  const fs::path from = model("f32");
  convert(from, ModelFormat::mistral, out("there"));
  convert(testing::fixture("small"), ModelFormat::hugging_face, out("other"), "bf16");
  fs::remove(from / "model.safetensors");
  fs::copy(out("other") / "model.safetensors", from / "model.safetensors");
  EXPECT_FALSE(verify_conversion(out("there"), 1).problems.empty());
  fs::remove_all(from);
  const Verification alone = verify_conversion(out("there"), 1);
  EXPECT_THAT(alone.problems, IsEmpty());
  EXPECT_FALSE(alone.source_present);
}

TEST_F(Convert, WhatATargetCannotSayIsRefusedByName) {
  const fs::path from = model("f32");
  const std::string config = read_file(from / "config.json");
  const auto with = [&](const std::string& was, const std::string& is) {
    std::string changed = config;
    const size_t at = changed.find(was);
    ASSERT_NE(at, std::string::npos);
    write_file(from / "config.json", changed.replace(at, was.size(), is));
  };
  const auto refusal = [&](ModelFormat format, const char* name) {
    const std::string message = message_of([&] { convert(from, format, out(name)); });
    EXPECT_FALSE(fs::exists(out(name)));
    return message;
  };
  with("\"sliding_window\": null", "\"sliding_window\": 16");
  EXPECT_THAT(refusal(ModelFormat::gguf, "w.gguf"), HasSubstr("sliding_window"));
  EXPECT_THAT(refusal(ModelFormat::mlx, "w"), HasSubstr("sliding_window"));
  with("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
  fs::remove(from / "model.safetensors");
  convert(testing::fixture("small"), ModelFormat::hugging_face, out("untied"));
  const ModelTensors tensors(out("untied"));
  std::map<std::string, Tensor> tied;
  for (const std::string& name : tensors.names())
    if (name != "lm_head.weight") tied.emplace(name, tensors.view(name));
  write_safetensors(from / "model.safetensors", tied);
  EXPECT_THAT(refusal(ModelFormat::mistral, "t"), HasSubstr("tie_word_embeddings"));
  EXPECT_TRUE(convert(from, ModelFormat::gguf, out("tied.gguf")).lossless);
  EXPECT_EQ(GgufFile(out("tied.gguf")).find("output.weight"), nullptr);
}

TEST_F(Convert, QuantizedTypesKeepNormsAndRouterAndFallBackWhereRowsAreShort) {
  const Receipt receipt =
      convert(testing::fixture("small"), ModelFormat::gguf, out("q.gguf"), "q8_0");
  EXPECT_FALSE(receipt.lossless);
  // Rows of 16 and 24 numbers are no whole blocks of 32.
  EXPECT_EQ(receipt.targets.at("blk.0.attn_q.weight").type, "f16");
  EXPECT_EQ(receipt.targets.at("blk.0.ffn_gate_inp.weight").type, "f32");
  EXPECT_EQ(receipt.targets.at("output_norm.weight").type, "f32");
}

TEST_F(Convert, NothingIsLeftOfAConversionThatFails) {
  const fs::path from = model("f32");
  write_file(from / "byte_tokenizer.json", "{}");
  EXPECT_THAT(message_of([&] { convert(from, ModelFormat::gguf, out("x.gguf")); }),
              HasSubstr("byte_tokenizer.json"));
  fs::remove(from / "byte_tokenizer.json");
  convert(from, ModelFormat::gguf, out("x.gguf"));
  EXPECT_THAT(message_of([&] { convert(from, ModelFormat::gguf, out("x.gguf")); }),
              HasSubstr("exists"));
  for (const auto& entry : fs::directory_iterator(out("")))
    EXPECT_THAT(entry.path().filename().string(), ::testing::Not(HasSubstr("mixtral-tmp")));
}

}  // namespace
}  // namespace mixtral
