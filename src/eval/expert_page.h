#pragma once

#include <string>

#include "eval/expert_report.h"

namespace mixtral {

/// What the page says beside the figures.
struct ExpertPageText {
  std::string model, data;               // what was looked at, for people
  const Tokenizer* tokenizer = nullptr;  // may be null: tokens are shown as ids
};

/// A report as one HTML page that needs nothing else, neither files nor a network: the load of each
/// layer's experts as a heat map, and for one layer at a time the lifts of kinds and positions, who
/// is chosen together, typical tokens, and the sample coloured by its experts. "#layer-3" behind
/// the page's address opens it at that layer.
std::string expert_page(const ExpertReport& report, const ExpertPageText& text);

/// A token for people: its text where that is whole characters, else as the vocabulary writes it.
std::string token_text(const Tokenizer* tokenizer, int32_t id);

}  // namespace mixtral
