#include "convert/adapter_updates.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace mixtral {
namespace {

struct TargetPart {
  std::string_view target;
  TensorKind kind;
  int part = 0, parts = 1;  // which share of the rows
};

constexpr TargetPart kParts[] = {{"q_proj", TensorKind::query},
                                 {"k_proj", TensorKind::key},
                                 {"v_proj", TensorKind::value},
                                 {"o_proj", TensorKind::attention_output},
                                 {"gate", TensorKind::router},
                                 {"w1", TensorKind::w1},
                                 {"w2", TensorKind::w2},
                                 {"w3", TensorKind::w3},
                                 {"gate_up_proj", TensorKind::w1, 0, 2},
                                 {"gate_up_proj", TensorKind::w3, 1, 2},
                                 {"down_proj", TensorKind::w2},
                                 {"lm_head", TensorKind::head}};

bool touches(const AdapterModule& module, int64_t expert) {
  return module.experts.empty() || std::ranges::count(module.experts, expert) > 0;
}

}  // namespace

std::vector<AdapterUpdate> updates_of(const AdapterFile& adapter, const ModelConfig& config) {
  std::vector<AdapterUpdate> updates;
  for (const AdapterModule& module : adapter.modules) {
    const TargetShape shape = target_shape(config, module.target);
    const AdapterTarget& target = adapter_target(module.target);
    const bool experts = target.per_expert || target.fused;
    for (const TargetPart& part : kParts) {
      if (part.target != module.target) continue;
      for (int64_t g = 0; g < shape.groups; ++g) {
        if (experts && !touches(module, g)) continue;
        AdapterUpdate& update = updates.emplace_back();
        update.id = {.kind = part.kind, .layer = module.layer, .expert = experts ? g : -1};
        update.rank = module.rank;
        update.scale = module.scale;
        update.inputs = shape.inputs;
        update.rows = shape.rows / part.parts;
        const auto a = module.a.begin() + g * module.rank * shape.inputs;
        update.a.assign(a, a + module.rank * shape.inputs);
        const auto b = module.b.begin() + (g * shape.rows + part.part * update.rows) * module.rank;
        update.b.assign(b, b + update.rows * module.rank);
      }
    }
  }
  std::ranges::stable_sort(updates, {}, [](const AdapterUpdate& update) {
    return std::tuple(update.id.kind == TensorKind::head, update.id.layer, update.id.kind,
                      update.id.expert);
  });
  return updates;
}

void rescale(AdapterUpdate& update, double scale, const char* reason) {
  if (update.scale == scale) return;
  const double ratio = update.scale / scale;
  int exponent = 0;
  const bool exact = scale != 0 && std::frexp(ratio, &exponent) == 0.5;
  if (!exact)
    throw Error(fmt::format(
        "{}: its update is scaled by {}, others by {}, and {}; train with one alpha / rank, or "
        "choose another format",
        tensor_name(update.id), update.scale, scale, reason));
  for (float& value : update.b) value *= static_cast<float>(ratio);  // a power of two: exact
  update.scale = scale;
}

}  // namespace mixtral
