#include "serve/model_identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string_view>

#include "io/checksum.h"

namespace mixtral::serve {
namespace {

constexpr size_t kEndBytes = 64 << 10;  // bytes at each end of a tensor

void add(Checksummer& sum, std::string_view text) {
  sum.update(std::as_bytes(std::span(text)));
  sum.update(std::as_bytes(std::span("\n", 1)));
}

}  // namespace

std::string model_identity(const ModelSource& source, const OpenOptions& options,
                           const Precision& precision) {
  const ModelConfig& c = source.config();
  Checksummer sum;
  add(sum, fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {}", c.vocab_size, c.hidden_size,
                       c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim,
                       c.num_experts, c.experts_per_token, c.rope_theta, c.rms_norm_eps,
                       c.sliding_window, c.tie_embeddings));
  add(sum, fmt::format("{} {} {} {} {}", to_string(precision.weights), to_string(precision.compute),
                       static_cast<int>(precision.operands), to_string(options.rope_frequencies),
                       options.quantization ? options.quantization->name() : "as stored"));
  if (options.random_weights || source.is_builtin()) {
    add(sum, fmt::format("random {}", options.seed));
  } else {
    const TensorSource& tensors = source.tensors();
    for (const std::string& each : tensors.names()) {
      const TensorEntry& entry = tensors.at(each);
      const std::span<const std::byte> bytes = tensors.raw(each);
      add(sum, fmt::format("{} {} {}", each, entry.type, entry.shape_text()));
      sum.update(bytes.first(std::min(bytes.size(), kEndBytes)));
      sum.update(bytes.last(std::min(bytes.size(), kEndBytes)));
    }
  }
  if (const auto adapter = source.load_adapter())
    for (const AdapterModule& module : adapter->modules) {
      add(sum, fmt::format("{} {} {}", module.layer, module.target, module.scale));
      sum.update(std::as_bytes(std::span(module.a)));
      sum.update(std::as_bytes(std::span(module.b)));
    }
  return sum.result().hex();
}

}  // namespace mixtral::serve
