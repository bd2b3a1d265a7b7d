#include "convert/calibration.h"

#include <algorithm>

namespace mixtral {

Calibration::Calibration(Backend& backend, const TensorSource& source, const ModelConfig& config,
                         const HostBatch& text)
    : inputs_(backend, source, config, text) {}

void Calibration::round(ThreadPool& threads, const TensorId& id, const Tensor& values,
                        const RowRounders& rounders, const Tensor& packed) {
  const Tensor rows = inputs_.rows(id);
  losses_[id] = round_compensated(inputs_.context(), threads, values, rows, rounders, packed);
  if (id.kind == TensorKind::w1) chosen_[id] = inputs_.tokens_of(id.expert);
}

int64_t Calibration::rare_experts() const {
  return std::ranges::count_if(
      chosen_, [](const auto& expert) { return expert.second < LayerInputs::kSharedTokens; });
}

}  // namespace mixtral
