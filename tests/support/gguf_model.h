#pragma once

#include <filesystem>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "ops/weight_format.h"
#include "tests/support/gguf_builder.h"

/// A model of one layer as a GGUF file.
namespace mixtral::testing::toy_gguf {

/// Width 32 with 2 heads of 16, 3 experts of width 64, 8 tokens.
constexpr uint64_t kWidth = 32, kExpertWidth = 64, kExperts = 3, kTokens = 8;

inline void add_keys(GgufBuilder& b, const std::string& without = "") {
  const auto add = [&](const char* key, auto value) {
    if (without != key) b.key(key, value);
  };
  add("general.architecture", "llama");
  add("llama.block_count", uint32_t{1});
  add("llama.context_length", uint32_t{64});
  add("llama.embedding_length", uint32_t{kWidth});
  add("llama.feed_forward_length", uint32_t{kExpertWidth});
  add("llama.attention.head_count", uint32_t{2});
  add("llama.attention.head_count_kv", uint32_t{1});
  add("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  add("llama.rope.freq_base", 1e6f);
  add("llama.expert_count", uint32_t{kExperts});
  add("llama.expert_used_count", uint32_t{2});
}

/// Numbers that tell places apart.
inline std::vector<float> counted(uint64_t count, float start) {
  std::vector<float> values(count);
  for (size_t i = 0; i < values.size(); ++i) values[i] = start + static_cast<float>(i % 61) / 64;
  return values;
}

/// The tensor in a format of blocks, or in f32.
inline void add_tensor(GgufBuilder& b, const std::string& name, std::vector<uint64_t> dims,
                       std::string_view format, float start) {
  const uint64_t count =
      std::accumulate(dims.begin(), dims.end(), uint64_t{1}, std::multiplies<>());
  const auto values = counted(count, start);
  if (format == "f32") {
    b.tensor(name, dims, values);
    return;
  }
  const ops::WeightFormat packed = *ops::find_weight_format(format);
  std::string bytes(static_cast<size_t>(packed.row_bytes(static_cast<int64_t>(count))), '\0');
  packed.row().pack(values, {.codes = bytes.data()});
  b.tensor(name, dims, find_gguf_type(format)->number, bytes);
}

struct NamedShape {
  const char* name;
  std::vector<uint64_t> dims;
  bool packed = true;
};
inline const std::vector<NamedShape>& tensor_list() {
  static const std::vector<NamedShape> list = {
      {"token_embd.weight", {kTokens, kWidth}},
      {"blk.0.attn_norm.weight", {kWidth}, false},
      {"blk.0.attn_q.weight", {kWidth, kWidth}},
      {"blk.0.attn_k.weight", {kWidth / 2, kWidth}},
      {"blk.0.attn_v.weight", {kWidth / 2, kWidth}},
      {"blk.0.attn_output.weight", {kWidth, kWidth}},
      {"blk.0.ffn_norm.weight", {kWidth}, false},
      {"blk.0.ffn_gate_inp.weight", {kExperts, kWidth}, false},
      {"blk.0.ffn_gate_exps.weight", {kExperts, kExpertWidth, kWidth}},
      {"blk.0.ffn_up_exps.weight", {kExperts, kExpertWidth, kWidth}},
      {"blk.0.ffn_down_exps.weight", {kExperts, kWidth, kExpertWidth}},
      {"output_norm.weight", {kWidth}, false},
      {"output.weight", {kTokens, kWidth}},
  };
  return list;
}

inline void add_tensors(GgufBuilder& b, std::string_view format,
                        const std::function<bool(std::string_view)>& wanted = {}) {
  float start = 0;
  for (const NamedShape& tensor : tensor_list()) {
    start += 0.25f;
    if (!wanted || wanted(tensor.name))
      add_tensor(b, tensor.name, tensor.dims, tensor.packed ? format : "f32", start);
  }
}

/// Writes the model.
inline std::filesystem::path model_file(const std::filesystem::path& path,
                                        std::string_view format) {
  GgufBuilder b;
  add_keys(b);
  add_tensors(b, format);
  return b.write(path);
}

}  // namespace mixtral::testing::toy_gguf
