#include "cli/common_options.h"

#include <algorithm>

namespace mixtral {
namespace {

constexpr size_t kMostUnchosen = 12;

/// Options that every command has and few people need.
bool is_rare(const std::string& name) {
  for (const char* rare : {"--help", "--help-all", "--rope-frequencies", "--random-weights",
                           "--threads", "--quiet", "--version"})
    if (name == rare) return true;
  return false;
}

}  // namespace

const std::vector<std::pair<std::string, std::vector<HelpGroup>>>& chosen_options() {
  static const std::vector<std::pair<std::string, std::vector<HelpGroup>>> chosen = {
      {"mixtral pretrain",
       {{"Model", {"--model", "--init", "--layers", "--hidden-size"}},
        {"Data", {"--data", "--tokenizer", "--context", "--batch-size"}},
        {"Training", {"--iters", "--lr"}},
        {"Run", {"--out", "--resume", "--config", "--device"}}}},
      {"mixtral finetune",
       {{"Model", {"--model", "--method", "--targets", "--rank", "--quantize-base"}},
        {"Data", {"--data", "--mask-prompt", "--context", "--batch-size"}},
        {"Training", {"--iters", "--epochs", "--lr"}},
        {"Run", {"--out", "--resume"}}}},
      {"mixtral generate",
       {{"Model", {"--model", "--adapter", "--quantize-base"}},
        {"Prompt", {"--prompt", "--chat", "--system"}},
        {"Sampling", {"--max-tokens", "--temp", "--top-p", "--stop", "--seed"}},
        {"Run", {"--device", "--dtype", "--speculate", "--json"}}}},
      {"mixtral chat",
       {{"Model", {"--model", "--adapter", "--quantize-base", "--context"}},
        {"Conversation", {"--system", "--chat-template"}},
        {"Sampling", {"--max-tokens", "--temp", "--top-p", "--seed"}},
        {"Run", {"--device", "--dtype"}}}},
      {"mixtral serve",
       {{"Model", {"--model", "--adapter", "--quantize-base", "--context"}},
        {"Address", {"--host", "--port", "--api-key", "--allow-origin"}},
        {"Load", {"--parallel", "--queue", "--speculate", "--metrics"}},
        {"Run", {"--device", "--dtype"}}}},
      {"mixtral evaluate",
       {{"Model", {"--model", "--adapter", "--quantize-base"}},
        {"Data", {"--data", "--split", "--context", "--batch-size"}},
        {"Questions", {"--exact-match", "--limit", "--show"}},
        {"Run", {"--device", "--json"}}}},
      {"mixtral convert",
       {{"Model", {"--model", "--adapter", "--to", "--type", "--out"}},
        {"Check", {"--verify", "--no-check"}},
        {"Run", {"--overwrite", "--no-tokenizer", "--json"}}}},
      {"mixtral quantize",
       {{"Model", {"--model", "--type", "--out"}},
        {"Budget", {"--target-size", "--max-perplexity-increase"}},
        {"Text", {"--calibrate", "--data", "--tokens", "--context"}},
        {"Run", {"--overwrite", "--group-size", "--json"}}}},
      {"mixtral info",
       {{"Model", {"--model", "--gpu", "--quantize-base"}},
        {"Batches", {"--context", "--batch-size", "--recompute"}},
        {"Adapter", {"--targets", "--rank"}},
        {"Run", {"--device", "--json"}}}},
      {"mixtral data check",
       {{"Data", {"--data", "--tokenizer", "--fix", "--sample"}},
        {"Batches", {"--context", "--batch-size", "--iters", "--pack"}},
        {"Training", {"--mask-prompt", "--chat-template"}},
        {"Output", {"--problems", "--json"}}}},
  };
  return chosen;
}

std::vector<HelpGroup> common_options(const CommandRow& command) {
  for (const auto& [path, groups] : chosen_options())
    if (path == command.path) return groups;
  HelpGroup group{.heading = "Options", .options = {}};
  for (const OptionRow& row : command.options)
    if (!is_rare(row.name()) && group.options.size() < kMostUnchosen)
      group.options.push_back(row.name());
  if (group.options.empty()) return {};
  return {group};
}

}  // namespace mixtral
