#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "model/adapter_file.h"
#include "model/mixtral.h"

namespace mixtral {

/// Where the model keeps the projection that a module changes.
std::unique_ptr<nn::Projection>& projection_of(Mixtral& model, const AdapterModule& module);

/// The first output column that a target changes in the projection that holds it.
int64_t first_column(const ModelConfig& config, std::string_view target);

/// Copies an adapter's values into a tensor of f32 or f64 on the device.
void send_values(Backend& backend, const std::vector<float>& values, const Tensor& device);

}  // namespace mixtral
