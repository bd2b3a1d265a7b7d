#include "serve/tool_grammar.h"

#include <fmt/format.h>

#include <deque>

#include "constrain/char_automaton.h"
#include "constrain/json_schema.h"
#include "serve/api_error.h"

namespace mixtral::serve {
namespace {

using constrain::CharSet;
using constrain::Expression;
using Part = Expression::Part;
using nlohmann::ordered_json;

constexpr uint64_t kMostCalls = 32;
constexpr constrain::JsonLayout kLayout{.most_indent = 20};

class Writer {
 public:
  Writer(const ChatRequest& request, ToolFormat format, MarkerText marker)
      : request_(request), format_(format), marker_(marker), json_(expression_, kLayout) {}

  constrain::Grammar write() {
    const auto root = expression_.add_rule("the answer");
    const Part called = calls();
    if (request_.tool_choice.kind == ToolChoice::Kind::automatic) {
      const Part text = free_text();
      const Part before = marker_ == MarkerText::shown ? text : expression_.empty();
      expression_.define(root, expression_.choice({text, expression_.sequence({before, called})}));
    } else {
      expression_.define(root, called);
    }
    return constrain::Grammar(expression_.compile(root));
  }

 private:
  // {"name": "f", "arguments": {...}} of any tool that may be called.
  Part call() {
    std::vector<Part> tools;
    for (size_t i = 0; i < request_.tools.size(); ++i) {
      const Tool& tool = request_.tools[i];
      if (request_.tool_choice.kind == ToolChoice::Kind::named &&
          request_.tool_choice.name != tool.name)
        continue;
      tools.push_back(expression_.sequence({expression_.text("{\"name\": "), json_.text(tool.name),
                                            expression_.text(", \"arguments\": "),
                                            arguments(tool, i), expression_.text("}")}));
    }
    const auto rule = expression_.add_rule("a call");
    expression_.define(rule, expression_.choice(std::move(tools)));
    return expression_.call(rule);
  }

  Part arguments(const Tool& tool, size_t index) {
    if (tool.parameters.is_null() || tool.parameters.empty()) return json_.any_object();
    const std::string field = fmt::format("tools[{}].function.parameters", index);
    ordered_json schema = tool.parameters;
    if (!schema.contains("type")) schema["type"] = "object";
    if (schema["type"] != "object") throw bad_field(field, "expected a schema of type object");
    try {
      schemas_.push_back(Json::parse(schema.dump(), field));
      return constrain::JsonSchema(schemas_.back(), expression_, json_).write();
    } catch (const ApiError&) {
      throw;
    } catch (const Error& error) {
      throw ApiError(400, error.what(), field);
    }
  }

  Part calls() {
    auto& e = expression_;
    const Part one = call();
    const bool many = request_.parallel_tool_calls && format_ != ToolFormat::generic;
    const uint64_t more = many ? kMostCalls - 1 : 0;
    const Part marker = e.text(tool_marker(format_));
    if (format_ == ToolFormat::mistral)
      return e.sequence({marker, e.optional(e.text(" ")), e.text("["), one,
                         e.repeat(e.sequence({e.text(", "), one}), 0, more), e.text("]")});
    const Part line = e.text(format_ == ToolFormat::hermes ? "\n" : "");
    const Part whole = e.sequence({marker, line, one, line, e.text("</tool_call>")});
    return e.sequence({whole, e.repeat(e.sequence({line, whole}), 0, more)});
  }

  // Text that could not be taken for a call: the marker is nowhere in it, and it does not begin as
  // a call does where the marker is hidden.
  Part free_text() {
    const auto anything = [](Expression& e) { return e.repeat(e.chars(CharSet::all()), 0); };
    constrain::TextConditions conditions;
    conditions.matched.push_back(constrain::network_of(anything));
    conditions.refused.push_back(constrain::network_of([&](Expression& e) {
      return e.sequence({anything(e), e.text(tool_marker(format_)), anything(e)});
    }));
    conditions.refused.push_back(constrain::network_of([&](Expression& e) {
      const Part blanks = e.repeat(e.chars(CharSet::of(" \n")), 0, 2);
      const Part open = e.text(format_ == ToolFormat::mistral ? "[{\"name\": " : "{\"name\": ");
      return e.sequence({blanks, open, anything(e)});
    }));
    return constrain::add_conditions(
        expression_, conditions, [&](const CharSet& set) { return expression_.chars(set); },
        "tools");
  }

  const ChatRequest& request_;
  const ToolFormat format_;
  const MarkerText marker_;
  Expression expression_;
  constrain::JsonText json_;
  std::deque<Json> schemas_;
};

}  // namespace

constrain::Grammar tool_grammar(const ChatRequest& request, ToolFormat format, MarkerText marker) {
  try {
    return Writer(request, format, marker).write();
  } catch (const ApiError&) {
    throw;
  } catch (const Error& error) {
    throw ApiError(400, fmt::format("tools: {}", error.what()), "tools");
  }
}

}  // namespace mixtral::serve
