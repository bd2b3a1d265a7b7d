#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/model_tensors.h"
#include "io/safetensors_writer.h"
#include "model/mixtral.h"

namespace mixtral {

/// The configuration with what the weights decide: the dtype where config.json leaves it open, and
/// a head of its own, which counts beside tie_word_embeddings where it is there and differs from
/// the embedding, as in transformers 5. `note` is told of that.
ModelConfig settle_config(ModelConfig config, const TensorSource& tensors,
                          const std::function<void(const std::string&)>& note = {});

/// Throws Error, naming file and tensor, when one that the configuration asks for is missing, has
/// another shape or holds no floating-point numbers, or when one has no place in the model. Takes
/// no memory for weights.
void check_weights(const ModelConfig& config, const TensorSource& tensors);

/// Reads every parameter from a model's files, under the names of any of naming_schemes(). What
/// check_weights() and a look for non-finite values find is refused before anything is copied
/// (Error, naming file and tensor).
void load_weights(Backend& backend, Mixtral& model, const TensorSource& tensors);

/// Opens a model's files (find_model_files) on `backend`, having checked that the two
/// agree before it takes memory for them.
std::unique_ptr<Mixtral> load_model(Backend& backend, const std::filesystem::path& directory,
                                    const Mixtral::Options& options);

/// Writes config.json, generation_config.json and the weights in `dtype` under the names every tool
/// reads. Returns the checksum of each weight file. The directory must exist.
std::map<std::string, FileChecksum> save_model(Backend& backend, Mixtral& model,
                                               const std::filesystem::path& directory, Dtype dtype);

/// Name and shape of each tensor of a model's files, one an expert.
std::vector<std::pair<std::string, Shape>> on_disk_tensors(const ModelConfig& config);

/// Writes every parameter under its on-disk name, in f32, to one safetensors file, and beside them
/// tensors of zeros.
FileChecksum save_parameters(Backend& backend, const nn::ParameterSource& parameters,
                             const std::filesystem::path& path,
                             const std::vector<std::pair<std::string, Shape>>& zeros = {});

/// Writes every parameter's gradient under its on-disk name, in f32, to one safetensors file.
void save_gradients(Backend& backend, const nn::ParameterSource& parameters,
                    const std::filesystem::path& path);

}  // namespace mixtral
