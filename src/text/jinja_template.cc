#include "text/jinja_template.h"

#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_parser.h"

namespace mixtral {
namespace {

using jinja::Value;

constexpr size_t kLongestTemplate = size_t{1} << 20;

bool has_generation(const jinja::Body& body) {
  return std::ranges::any_of(body, [](const jinja::Statement& statement) {
    return statement.kind == jinja::Statement::Kind::generation || has_generation(statement.body) ||
           has_generation(statement.otherwise);
  });
}

jinja::Body parsed(std::string_view text, std::string_view source) {
  if (text.size() > kLongestTemplate) {
    throw Error(fmt::format("{}: the chat template has {} bytes; at most {} are accepted", source,
                            text.size(), kLongestTemplate));
  }
  return jinja::parse_template(text, source);
}

}  // namespace

JinjaTemplate::JinjaTemplate(std::string_view text, std::string_view source)
    : text_(text), source_(source), body_(parsed(text, source)) {
  marks_answers_ = has_generation(body_);
}

JinjaTemplate::Rendered JinjaTemplate::render(const Value& variables) const {
  jinja::Interpreter interpreter(source_);
  Rendered rendered;
  rendered.text = interpreter.render(body_, variables);
  rendered.generated = interpreter.generated();
  return rendered;
}

Value template_messages(const Value& messages, std::string_view source) {
  if (!messages.is(Value::Kind::list) || messages.items().items.empty())
    throw Error(fmt::format("{}: expected a list of at least one message", source));
  std::vector<Value> result;
  for (const Value& message : messages.items().items) {
    if (!message.is(Value::Kind::dict))
      throw Error(
          fmt::format("{}: a message is a '{}', expected an object", source, message.type_name()));
    const auto given = [&](const char* key) {
      const Value* value = message.find(Value::of(key));
      return value != nullptr && value->is(Value::Kind::none) ? nullptr : value;
    };
    const Value* reasoning = given("reasoning_content");
    if (reasoning == nullptr) reasoning = given("thinking");
    if (reasoning == nullptr) reasoning = given("reasoning");
    Value kept = Value::dict();
    if (reasoning != nullptr) kept.set(Value::of("thinking"), *reasoning);
    for (const auto& [key, value] : message.members().items)
      if (!value.is(Value::Kind::none)) kept.set(key, value);
    if (reasoning != nullptr) kept.set(Value::of("reasoning_content"), *reasoning);
    result.push_back(std::move(kept));
  }
  return Value::list(std::move(result));
}

}  // namespace mixtral
