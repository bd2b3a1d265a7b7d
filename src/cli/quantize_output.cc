#include "cli/quantize_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/conversion_output.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

double bits_per_weight(const QuantizeResult& r) {
  return 8 * static_cast<double>(r.receipt.weight_bytes) /
         static_cast<double>(count_parameters(r.config).total);
}

/// Of each matrix that was rounded for a text, how much of its products changed: the mean of those
/// shares, and the largest.
struct Losses {
  double mean = 0, most = 0;
  std::string worst;
};

Losses losses_of(const Calibration& calibration) {
  Losses losses;
  for (const auto& [id, loss] : calibration.losses()) {
    losses.mean += loss.share() / static_cast<double>(calibration.losses().size());
    if (loss.share() <= losses.most) continue;
    losses.most = loss.share();
    losses.worst = tensor_name(id);
  }
  return losses;
}

ordered_json sensitivity_json(const Sensitivity& sensitivity) {
  ordered_json json = ordered_json::array();
  for (const auto& [id, noise] : sensitivity.noise) {
    ordered_json row{{"tensor", tensor_name(id)}, {"noise", noise}};
    const TensorId w1{.kind = TensorKind::w1, .layer = id.layer, .expert = id.expert};
    if (const auto found = sensitivity.tokens.find(w1); found != sensitivity.tokens.end())
      row["tokens"] = found->second;
    json.push_back(std::move(row));
  }
  return json;
}

void print_json(const QuantizeResult& r) {
  ordered_json json{{"out", r.out},
                    {"receipt", receipt_path(r.out).string()},
                    {"type", r.receipt.type},
                    {"bits_per_weight", bits_per_weight(r)},
                    {"weight_bytes", r.receipt.weight_bytes}};
  if (r.calibration) {
    const Losses losses = losses_of(*r.calibration);
    json["calibration_tokens"] = r.calibration->tokens();
    json["rare_experts"] = r.calibration->rare_experts();
    json["mean_loss"] = losses.mean;
    json["most_loss"] = losses.most;
  }
  if (r.quality)
    json["quality"] = {{"tokens", r.quality->tokens},
                       {"perplexity_before", r.quality->before},
                       {"perplexity_after", r.quality->after},
                       {"kl_divergence", r.quality->divergence},
                       {"top1_agreement", r.quality->top_agreement}};
  if (r.sensitivity && r.print_sensitivity) json["sensitivity"] = sensitivity_json(*r.sensitivity);
  if (r.receipt.logits.compared) json["logits_difference"] = r.receipt.logits.difference;
  fmt::print("{}\n", json.dump());
}

/// A line a layer: queries, keys, values, output, and each expert's three matrices together.
void print_sensitivity(const ModelConfig& config, const Sensitivity& sensitivity) {
  fmt::print(
      "noise in the residual stream with 4 bits, as a share of it (1e-6), of each alone;\n"
      "of experts with the tokens that chose them:\n");
  const auto noise = [&](const TensorId& id) {
    const auto found = sensitivity.noise.find(id);
    return found == sensitivity.noise.end() ? 0 : 1e6 * found->second;
  };
  using enum TensorKind;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    std::string line = fmt::format("layer {:>2}:", layer);
    for (const auto& [kind, name] : {std::pair(query, "q"), std::pair(key, "k"),
                                     std::pair(value, "v"), std::pair(attention_output, "o")})
      line += fmt::format("  {} {:.1f}", name, noise({.kind = kind, .layer = layer}));
    line += "  experts";
    for (int64_t e = 0; e < config.num_experts; ++e) {
      double sum = 0;
      for (const TensorKind kind : {w1, w2, w3})
        sum += noise({.kind = kind, .layer = layer, .expert = e});
      line += fmt::format(" {:.1f} ({})", sum,
                          sensitivity.tokens.at({.kind = w1, .layer = layer, .expert = e}));
    }
    fmt::print("{}\n", line);
  }
  if (!config.tie_embeddings) fmt::print("head:  {:.1f} of the logits\n", noise({.kind = head}));
}

void print_text(const QuantizeResult& r) {
  print_receipt(r.receipt, r.out);
  fmt::print("{:.2f} bits a weight\n", bits_per_weight(r));
  if (r.calibration && !r.calibration->losses().empty()) {
    const Losses losses = losses_of(*r.calibration);
    fmt::print(
        "rounded for {} tokens: products change by {:.2f}% (root mean square), at most by "
        "{:.2f}% in {}\n",
        r.calibration->tokens(), 100 * std::sqrt(losses.mean), 100 * std::sqrt(losses.most),
        losses.worst);
    if (r.calibration->rare_experts() > 0)
      fmt::print(
          "{} experts were chosen by fewer than {} of them, and were shown other tokens of "
          "their layers as well\n",
          r.calibration->rare_experts(), LayerInputs::kSharedTokens);
  } else if (r.calibration) {
    fmt::print("no tensor of {} is rounded for a text: all round to the nearest\n", r.receipt.type);
  }
  if (r.sensitivity && r.print_sensitivity) print_sensitivity(r.config, *r.sensitivity);
  if (!r.quality) return;
  fmt::print(
      "perplexity {:.4f} before, {:.4f} after ({:+.2f}%); KL divergence {:.5f} nats; the same most "
      "likely token at {:.1f}% of {} places\n",
      r.quality->before, r.quality->after, 100 * r.quality->increase(), r.quality->divergence,
      100 * r.quality->top_agreement, r.quality->tokens);
}

}  // namespace

void print_quantized(const QuantizeResult& result, bool json) {
  if (json)
    print_json(result);
  else
    print_text(result);
}

}  // namespace mixtral
