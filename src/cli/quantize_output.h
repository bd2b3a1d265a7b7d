#pragma once

#include <optional>
#include <string>

#include "convert/calibration.h"
#include "convert/quality.h"
#include "convert/receipt.h"
#include "convert/sensitivity.h"

namespace mixtral {

/// What `quantize` has to say.
struct QuantizeResult {
  std::string out;
  const ModelConfig& config;
  const Calibration* calibration = nullptr;  // or null
  Receipt receipt = {};
  std::optional<Quality> quality = {};
  std::optional<Sensitivity> sensitivity = {};
  bool print_sensitivity = false;
};

/// On standard output, in lines for people or as one JSON object.
void print_quantized(const QuantizeResult& result, bool json);

}  // namespace mixtral
