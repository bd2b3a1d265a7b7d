#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/model_tensors.h"
#include "io/safetensors_writer.h"
#include "model/mixtral.h"

namespace mixtral {

/// Throws Error, naming file and tensor, when one that the configuration asks for is missing, has
/// another shape or holds no floating-point numbers, or when one has no place in the model. Takes
/// no memory for weights.
void check_weights(const ModelConfig& config, const ModelTensors& tensors);

/// Reads every parameter from a model's files, under the names of Hugging Face's Mixtral, either
/// one tensor an expert ("block_sparse_moe.experts.0.w1.weight") or transformers 5's packed ones
/// ("mlp.experts.gate_up_proj"). What check_weights() and a look for non-finite values find is
/// refused before anything is copied (Error, naming file and tensor).
void load_weights(Backend& backend, Mixtral& model, const ModelTensors& tensors);

/// Opens a model directory (config.json and weights) on `backend`, having checked that the two
/// agree before it takes memory for them.
std::unique_ptr<Mixtral> load_model(Backend& backend, const std::filesystem::path& directory,
                                    const Mixtral::Options& options);

/// Writes config.json, generation_config.json and the weights in `dtype` under the names every tool
/// reads. Returns the checksum of each weight file. The directory must exist.
std::map<std::string, FileChecksum> save_model(Backend& backend, Mixtral& model,
                                               const std::filesystem::path& directory, Dtype dtype);

/// Name and shape of each tensor of a model's files, one an expert.
std::vector<std::pair<std::string, Shape>> on_disk_tensors(const ModelConfig& config);

/// Writes every parameter under its on-disk name, in f32, to one safetensors file.
FileChecksum save_parameters(Backend& backend, const nn::ParameterSource& parameters,
                             const std::filesystem::path& path);

/// Writes every parameter's gradient under its on-disk name, in f32, to one safetensors file.
void save_gradients(Backend& backend, const nn::ParameterSource& parameters,
                    const std::filesystem::path& path);

}  // namespace mixtral
