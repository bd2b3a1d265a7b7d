#include "convert/pre_tokenizer_names.h"

#include <vector>

#include "text/gguf_tokenizer.h"

namespace mixtral {
namespace {

/// What a pre-tokenizer consists of, in order.
struct Steps {
  std::vector<std::string> patterns;  // that texts are cut by
  bool own_pattern = false;           // ByteLevel's, which is GPT-2's
  bool other = false;                 // anything else
};

void add_steps(const Json& json, Steps& steps) {
  if (!json.is_object()) return;
  const std::string& type = json.at("type").as_string();
  if (type == "Sequence") {
    for (const Json& part : json.at("pretokenizers").items()) add_steps(part, steps);
  } else if (type == "Split") {
    const Json* regex = json.at("pattern").find("Regex");
    if (regex)
      steps.patterns.push_back(regex->as_string());
    else
      steps.other = true;
  } else if (type == "ByteLevel") {
    const Json* own = json.find("use_regex");
    steps.own_pattern |= !own || own->as_bool();
    const Json* prefix = json.find("add_prefix_space");
    steps.other |= !prefix || prefix->as_bool();
  } else {
    steps.other = true;
  }
}

}  // namespace

std::optional<std::string> pre_tokenizer_name(const Json& tokenizer) {
  Steps steps;
  if (const Json* json = tokenizer.find("pre_tokenizer")) add_steps(*json, steps);
  if (steps.other) return std::nullopt;
  const Json* ignores = tokenizer.at("model").find("ignore_merges");
  const bool ignores_merges = ignores && ignores->is_bool() && ignores->as_bool();
  if (steps.patterns.empty() && steps.own_pattern && !ignores_merges) return "gpt-2";
  if (steps.patterns.size() != 1 || steps.own_pattern) return std::nullopt;
  const auto name = gguf_pre_tokenizer(steps.patterns.front(), ignores_merges);
  return name ? std::optional(std::string(*name)) : std::nullopt;
}

}  // namespace mixtral
