#include "data/template_view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "ops/vocab.h"
#include "text/spelled_controls.h"

namespace mixtral {
namespace {

/// The texts of a record that people wrote.
std::vector<std::string_view> written_texts(const Record& record) {
  std::vector<std::string_view> texts{record.text, record.prompt, record.completion, record.chosen,
                                      record.rejected};
  for (const auto* messages : {&record.messages, &record.rejected_messages})
    for (const Message& message : *messages) texts.push_back(message.content);
  return texts;
}

std::vector<std::string> spelled_controls(const Record& record, const Tokenizer& tokenizer) {
  const SpelledControls controls(tokenizer);
  std::vector<std::string> found;
  for (const std::string_view text : written_texts(record))
    for (std::string& control : controls.find(text))
      if (std::ranges::find(found, control) == found.end()) found.push_back(std::move(control));
  return found;
}

/// The stretches of learnt tokens: [begin, end) of each.
std::vector<std::pair<int64_t, int64_t>> responses(const std::vector<uint8_t>& learnt) {
  std::vector<std::pair<int64_t, int64_t>> found;
  for (size_t i = 0; i < learnt.size(); ++i) {
    if (learnt[i] == 0) continue;
    const auto at = static_cast<int64_t>(i);
    if (found.empty() || found.back().second != at) found.emplace_back(at, at);
    found.back().second = at + 1;
  }
  return found;
}

void warn_of_responses(const Record& record, TemplateView& view) {
  const auto found = responses(view.learnt);
  if (found.empty()) {
    view.warnings.emplace_back("nothing is learnt: every token is masked");
    return;
  }
  const auto lost = std::ranges::count_if(
      found, [&](const auto& response) { return response.first >= view.kept; });
  if (lost == std::ssize(found)) {
    view.warnings.push_back(
        fmt::format("nothing is learnt: the first {} tokens hold none of the response", view.kept));
  } else if (lost > 0) {
    view.warnings.push_back(
        fmt::format("{} of {} responses are never trained on: they begin after token {}", lost,
                    found.size(), view.kept));
  }
  for (const auto& [begin, end] : found)
    if (begin < view.kept && end > view.kept)
      view.warnings.push_back(fmt::format(
          "a response is cut off: its last {} tokens, with its end, are never trained on",
          end - view.kept));
  const auto unweighted = std::ranges::count_if(record.messages, [](const Message& message) {
    return message.role == "assistant" && !message.learnt;
  });
  if (unweighted > 0)
    view.warnings.push_back(fmt::format("{} of the assistant's turns {} weight 0: never trained on",
                                        unweighted, unweighted == 1 ? "has" : "have"));
}

}  // namespace

std::vector<TemplateView> view_record(const Record& record, const Tokenizer* tokenizer,
                                      const EncodeOptions& options, int64_t context,
                                      std::string_view source) {
  const std::vector<Example> examples = encode_record(record, tokenizer, options, source);
  std::vector<std::string> spelled;
  if (tokenizer != nullptr) spelled = spelled_controls(record, *tokenizer);
  std::vector<TemplateView> views;
  for (const Example& example : examples) {
    TemplateView view{.kind = record.kind, .answer = "", .ids = example.tokens, .warnings = {}};
    if (is_preference(record.kind)) view.answer = views.empty() ? "chosen" : "rejected";
    const auto length = static_cast<int64_t>(view.ids.size());
    view.kept = context > 0 ? std::min(context, length) : length;
    for (int64_t i = 0; i < length; ++i) {
      const auto at = static_cast<size_t>(i);
      // Nothing precedes the first token, so that it cannot be predicted.
      const bool learnt = i > 0 && example.labels[at] != ops::kIgnoredLabel;
      view.learnt.push_back(learnt ? 1 : 0);
      if (i >= view.kept) continue;
      view.learnt_tokens += learnt ? 1 : 0;
      if (tokenizer == nullptr) continue;
      view.bos += view.ids[at] == tokenizer->bos_id() ? 1 : 0;
      view.eos += view.ids[at] == tokenizer->eos_id() ? 1 : 0;
    }
    if (tokenizer != nullptr && length > 1 && tokenizer->bos_id() >= 0 &&
        view.ids[0] == tokenizer->bos_id() && view.ids[1] == tokenizer->bos_id())
      view.warnings.emplace_back("BOS is doubled: two stand in front");
    if (!spelled.empty())
      view.warnings.push_back(
          fmt::format("the text spells out {}: encoded as ordinary pieces, not as control tokens",
                      fmt::join(spelled, ", ")));
    warn_of_responses(record, view);
    views.push_back(std::move(view));
  }
  return views;
}

}  // namespace mixtral
