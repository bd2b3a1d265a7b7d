#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "convert/conversion.h"
#include "convert/gguf_vocabulary.h"
#include "io/gguf_types.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kQuantizationVersion = 2;  // of ggml's blocks

uint32_t as_u32(int64_t value, const char* what) {
  if (value < 0 || value > int64_t{0xffffffff})
    throw Error(fmt::format("{} is {}, which GGUF cannot say", what, value));
  return static_cast<uint32_t>(value);
}

void add_shape(const ModelConfig& c, GgufKeys& keys) {
  const auto add = [&](const char* key, int64_t value) { keys.add_u32(key, as_u32(value, key)); };
  add("llama.block_count", c.num_layers);
  add("llama.context_length", c.max_positions);
  add("llama.embedding_length", c.hidden_size);
  add("llama.feed_forward_length", c.intermediate_size);
  add("llama.attention.head_count", c.num_heads);
  add("llama.attention.head_count_kv", c.num_kv_heads);
  add("llama.attention.key_length", c.head_dim);
  add("llama.attention.value_length", c.head_dim);
  keys.add_f32("llama.attention.layer_norm_rms_epsilon", static_cast<float>(c.rms_norm_eps));
  add("llama.rope.dimension_count", c.head_dim);
  keys.add_f32("llama.rope.freq_base", static_cast<float>(c.rope_theta));
  add("llama.expert_count", c.num_experts);
  add("llama.expert_used_count", c.experts_per_token);
  add("llama.vocab_size", c.vocab_size);
}

/// llama.cpp's number for what most of the file is in.
uint32_t file_type(const Conversion& conversion) {
  if (!conversion.options().type.keeps()) return conversion.options().type.file_type();
  if (const GgufFile* from = conversion.gguf())
    if (const auto type = from->header().integer("general.file_type"))
      return static_cast<uint32_t>(*type);
  switch (conversion.dtype()) {
    case Dtype::f16:
      return 1;
    case Dtype::bf16:
      return 32;
    default:
      return 0;
  }
}

GgufKeys keys_of(const Conversion& conversion) {
  const ConvertOptions& options = conversion.options();
  GgufKeys keys;
  keys.add_text("general.architecture", "llama");
  keys.add_text("general.type", "model");
  std::string title = conversion.source().tensors().path().stem().string();
  if (const GgufFile* from = conversion.gguf())
    if (const auto name = from->header().text("general.name")) title = *name;
  keys.add_text("general.name", title);
  keys.add_u32("general.file_type", file_type(conversion));
  keys.add_u32("general.quantization_version", kQuantizationVersion);
  add_shape(conversion.config(), keys);
  if (!options.vocabulary) {
    keys.add_text("tokenizer.ggml.model", "none");
  } else if (const GgufFile* from = conversion.gguf()) {
    for (const auto& [key, value] : from->header().values())
      if (key.starts_with("tokenizer.")) keys.add_copy(key, value);
  } else {
    add_vocabulary(gguf_vocabulary(conversion.source().directory(), conversion.config()), keys);
  }
  add_original_types(conversion.original_types(), keys);
  add_kept_files(conversion.kept(), keys);
  return keys;
}

uint32_t type_number(const StoredType& type) {
  const GgufType* found = find_gguf_type(type.format.name());
  CHECK(found != nullptr, type.name());
  return found->number;
}

std::vector<PlannedGgufTensor> plan_of(const Conversion& conversion) {
  std::vector<PlannedGgufTensor> plan;
  for (const OutputTensor& output : conversion.outputs()) {
    const int64_t row_bytes = output.type.format.row_bytes(output.columns());
    plan.push_back({.name = output.name,
                    .dims = output.dims(),
                    .type = type_number(output.type),
                    .bytes = static_cast<uint64_t>(output.count() * output.rows() * row_bytes)});
  }
  return plan;
}

}  // namespace

void write_gguf(Conversion& conversion, const fs::path& file) {
  GgufWriter writer(file, keys_of(conversion), plan_of(conversion));
  for (const OutputTensor& output : conversion.outputs()) {
    Checksummer sum;
    for (const TensorId& id : output.parts) {
      const PackedPart part = conversion.pack(output, id);
      const std::span bytes(static_cast<const std::byte*>(part.codes.data()),
                            static_cast<size_t>(part.codes.bytes()));
      sum.update(bytes);
      writer.write(bytes);
    }
    conversion.note_target(output.name, output.type.name(), output.dims(), sum.result());
  }
  conversion.receipt().files[conversion.options().out.filename().string()] = writer.finish();
  for (const auto& [name, contents] : conversion.kept())
    conversion.receipt().companions.push_back(name);
}

}  // namespace mixtral
