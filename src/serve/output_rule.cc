#include "serve/output_rule.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "serve/tool_grammar.h"

namespace mixtral::serve {
namespace {

constexpr size_t kKept = 32;

constrain::Grammar compile(const OutputRule& rule) {
  switch (rule.kind) {
    case OutputRule::Kind::json_object:
      return constrain::json_object();
    case OutputRule::Kind::json_schema:
      return constrain::compile_json_schema(rule.text, rule.field);
    case OutputRule::Kind::grammar:
      return constrain::compile_gbnf(rule.text);
    case OutputRule::Kind::regex:
      return constrain::compile_regex(rule.text);
    case OutputRule::Kind::none:
      break;
  }
  throw InternalError("there is no rule to compile");
}

class RuleFilter : public TokenFilter {
 public:
  explicit RuleFilter(const constrain::Matcher& matcher) : matcher_(matcher) {}
  void allow(TokenMask& mask) override { (void)matcher_.allow(mask); }
  void accept(int32_t token) override {
    CHECK(matcher_.accept(token), "a token came that was not allowed");
  }
  bool can_end() const override { return matcher_.can_end(); }

 private:
  constrain::Matcher matcher_;
};

}  // namespace

OutputRules::OutputRules(const Tokenizer& tokenizer, ToolFormat format)
    : format_(format),
      vocabulary_(std::make_shared<const constrain::Vocabulary>(tokenizer)),
      tool_vocabulary_(vocabulary_) {
  const std::array<std::string, 2> markers{std::string(tool_marker(format)), "</tool_call>"};
  const int32_t id = tokenizer.find(markers[0]);
  hidden_marker_ = id >= 0 && tokenizer.is_control(id);
  if (hidden_marker_)
    tool_vocabulary_ = std::make_shared<const constrain::Vocabulary>(
        tokenizer, std::span<const int64_t>(), markers);
}

FilterFactory OutputRules::find(std::string key, const Compile& compile_it) {
  const auto factory = [](std::shared_ptr<const constrain::Matcher> matcher) {
    return [matcher = std::move(matcher)] { return std::make_unique<RuleFilter>(*matcher); };
  };
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(kept_, key, &Kept::key);
    if (found != kept_.end()) {
      kept_.splice(kept_.begin(), kept_, found);
      return factory(kept_.front().matcher);
    }
  }
  const auto matcher = std::make_shared<const constrain::Matcher>(compile_it());
  const std::lock_guard lock(mutex_);
  kept_.push_front({.key = std::move(key), .matcher = matcher});
  if (kept_.size() > kKept) kept_.pop_back();
  return factory(matcher);
}

FilterFactory OutputRules::filter(const OutputRule& rule) {
  if (rule.kind == OutputRule::Kind::none) return {};
  try {
    return find(fmt::format("{}:{}", static_cast<int>(rule.kind), rule.text),
                [&] { return constrain::Matcher(compile(rule), vocabulary_); });
  } catch (const Error& error) {
    throw bad_field(rule.field, error.what());
  }
}

FilterFactory OutputRules::tool_filter(const ChatRequest& request) {
  const std::string key = fmt::format(
      "tools:{}:{}:{}:{}", static_cast<int>(request.tool_choice.kind), request.tool_choice.name,
      request.parallel_tool_calls, tools_for_template(request).dump());
  return find(key, [&] {
    const MarkerText marker = hidden_marker_ ? MarkerText::hidden : MarkerText::shown;
    return constrain::Matcher(tool_grammar(request, format_, marker), tool_vocabulary_);
  });
}

}  // namespace mixtral::serve
