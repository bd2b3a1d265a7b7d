#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "io/tensor_source.h"
#include "model/config.h"

namespace mixtral {

// A dense model of Mistral's or Llama's architecture computes what a Mixtral with one expert does:
// the softmax over one router logit is 1, whatever the logit.

/// Whether a config.json is that of such a model.
bool is_dense_config(const Json& json);

/// The configuration of a dense model as a Mixtral's with one expert, from the text of its
/// config.json, which `source` names, and its generation_config.json (may be null). Absent keys
/// have the defaults of transformers' MistralConfig or LlamaConfig. Throws Error naming source, key
/// and rule as ModelConfig::parse() does, and for biases, which a Mixtral has not.
ModelConfig dense_config(std::string_view text, std::string_view source, const Json* generation);

/// The weights of a dense model, with a router of zeros [1, D] in each layer.
class DenseTensors : public TensorSource {
 public:
  DenseTensors(std::shared_ptr<const TensorSource> dense, const ModelConfig& config);

  const std::filesystem::path& path() const override { return dense_->path(); }
  const std::vector<std::string>& names() const override { return names_; }
  const TensorEntry* find(std::string_view name) const override;
  const std::filesystem::path& file_of(std::string_view name) const override;
  /// Of a router nothing: it stands in no file.
  std::span<const std::byte> raw(std::string_view name) const override;
  void read(std::string_view name, int64_t first, const Tensor& to) const override;
  void read_codes(std::string_view name, int64_t first_row,
                  std::span<const Tensor> pieces) const override;

 private:
  const TensorEntry* find_router(std::string_view name) const;

  std::shared_ptr<const TensorSource> dense_;
  std::vector<TensorEntry> routers_;
  std::vector<std::string> names_;
};

}  // namespace mixtral
