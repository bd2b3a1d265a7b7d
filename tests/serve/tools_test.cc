#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "constrain/matcher.h"
#include "serve/tool_format.h"
#include "serve/tool_grammar.h"
#include "serve/tool_reader.h"
#include "tests/constrain/sampler.h"
#include "tests/support/files.h"

namespace mixtral::serve {
namespace {

using constrain::toy_vocabulary;
using nlohmann::ordered_json;
using testing::HasSubstr;

ChatRequest two_tools(ToolChoice::Kind kind, std::string name = {}) {
  ChatRequest request;
  request.tools = {{.name = "plan_trip",
                    .description = "Plans a trip",
                    .parameters = ordered_json::parse(R"({"type":"object","properties":{
                        "city":{"enum":["Oslo","R}\"m"]},"days":{"type":"integer","minimum":1,"maximum":7}},
                        "required":["city","days"],"additionalProperties":false})")},
                   {.name = "tell_time", .parameters = nullptr}};
  request.tool_choice = {.kind = kind, .name = std::move(name)};
  return request;
}

struct Read {
  std::string content;
  std::vector<ChatDelta::ToolCall> calls;  // joined
};

/// What a reader makes of a text that comes in pieces of `size` bytes.
Read read(ToolFormat format, const std::string& text, size_t size) {
  ToolReader reader(format);
  Read result;
  const auto take = [&](const ChatDelta& delta) {
    result.content += delta.content;
    for (const auto& call : delta.tool_calls) {
      if (call.index == result.calls.size()) {
        EXPECT_FALSE(call.id.empty() || call.name.empty()) << "the first delta of a call";
        result.calls.push_back(call);
      } else {
        EXPECT_EQ(call.index + 1, result.calls.size());
        EXPECT_TRUE(call.id.empty() && call.name.empty()) << "a later delta";
        result.calls.back().arguments += call.arguments;
      }
    }
  };
  for (size_t at = 0; at < text.size(); at += size) take(reader.push(text.substr(at, size)));
  take(reader.finish());
  EXPECT_EQ(reader.calls_tools(), !result.calls.empty());
  return result;
}

TEST(Tools, CallsAreReadInPiecesOfAnySize) {
  struct Case {
    ToolFormat format;
    std::string text, content;
    std::vector<std::pair<std::string, std::string>> calls;
  };
  const std::vector<Case> cases = {
      {ToolFormat::mistral,
       R"([TOOL_CALLS] [{"name": "f", "arguments": {"a": "]}\"{"}}, {"name": "g", "arguments": {}}])",
       "",
       {{"f", R"({"a": "]}\"{"})"}, {"g", "{}"}}},
      {ToolFormat::mistral,
       R"( [{"name": "f", "arguments": {"a": [1]}}])",
       "",
       {{"f", R"({"a": [1]})"}}},
      {ToolFormat::mistral, "[TOOL_X", "[TOOL_X", {}},
      {ToolFormat::mistral, " [1, 2]", " [1, 2]", {}},
      {ToolFormat::mistral,
       R"(Well. [TOOL_CALLS][{"name": "f", "arguments": {}}])",
       "Well. ",
       {{"f", "{}"}}},
      {ToolFormat::hermes,
       "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": "
       "{}}}\n</tool_call>\n<tool_call>\n"
       "{\"name\": \"g\", \"arguments\": {}}\n</tool_call>",
       "Let me see.\n",
       {{"f", "{\"x\": {}}"}, {"g", "{}"}}},
      {ToolFormat::hermes, "a < b <tool_callx> <tool", "a < b <tool_callx> <tool", {}},
      {ToolFormat::hermes, "<tool_call>no", "<tool_call>no", {}},
      {ToolFormat::generic,
       "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
       "",
       {{"f", "{}"}}},
  };
  for (const Case& c : cases)
    for (const size_t size : {1, 2, 3, 7, 1000}) {
      const Read result = read(c.format, c.text, size);
      EXPECT_EQ(result.content, c.content) << c.text;
      ASSERT_EQ(result.calls.size(), c.calls.size()) << c.text;
      for (size_t i = 0; i < c.calls.size(); ++i) {
        EXPECT_EQ(result.calls[i].name, c.calls[i].first);
        EXPECT_EQ(result.calls[i].arguments, c.calls[i].second);
      }
    }
}

TEST(Tools, WhatIsDrawnIsAValidCall) {
  for (const ToolFormat format : {ToolFormat::mistral, ToolFormat::hermes, ToolFormat::generic}) {
    ChatRequest request = two_tools(ToolChoice::Kind::named, "plan_trip");
    const auto named = tool_grammar(request, format, MarkerText::shown);
    request.tool_choice = {.kind = ToolChoice::Kind::required};
    request.parallel_tool_calls = false;
    const auto required = tool_grammar(request, format, MarkerText::shown);
    RandomStream random(4);
    for (const auto* grammar : {&named, &required}) {
      const auto text = sample_text({*grammar, toy_vocabulary()}, *toy_vocabulary(), random, 2000);
      if (!text) continue;
      const Read result = read(format, *text, 3);
      ASSERT_FALSE(result.calls.empty()) << *text;
      EXPECT_EQ(result.content, "");
      for (const auto& call : result.calls) {
        const Json arguments = Json::parse(call.arguments, "arguments");
        EXPECT_TRUE(arguments.is_object());
        if (grammar == &named) {
          EXPECT_EQ(call.name, "plan_trip");
        }
        if (call.name == "plan_trip") {
          EXPECT_LE(arguments.at("days").as_int(), 7);
        }
      }
    }
  }
}

TEST(Tools, TheChoiceSaysWhatAnAnswerMayBe) {
  const std::string call = R"(<tool_call>{"name": "tell_time", "arguments": {}}</tool_call>)";
  const auto grammar = [](ToolChoice::Kind kind, MarkerText marker = MarkerText::shown) {
    return tool_grammar(two_tools(kind), ToolFormat::generic, marker);
  };
  const auto automatic = grammar(ToolChoice::Kind::automatic);
  EXPECT_TRUE(automatic.accepts("It is {\"late\": [<1>]} é."));
  EXPECT_TRUE(automatic.accepts(call));
  EXPECT_TRUE(automatic.accepts("I look. " + call));
  EXPECT_FALSE(automatic.accepts("I look. " + call + " and")) << "nothing follows";
  EXPECT_FALSE(automatic.accepts(call + call)) << "one call, by a model that learnt no tools";
  EXPECT_FALSE(automatic.accepts("<tool_call>{\"name\": \"fly\", \"arguments\": {}}</tool_call>"));
  EXPECT_FALSE(automatic.accepts("{\"name\": \"fly\"")) << "text that reads as a call";
  const auto required = grammar(ToolChoice::Kind::required);
  EXPECT_TRUE(required.accepts(call));
  EXPECT_FALSE(required.accepts("It is late."));
  EXPECT_FALSE(grammar(ToolChoice::Kind::automatic, MarkerText::hidden).accepts("I look. " + call));
}

TEST(Tools, ParametersThatCannotBeKeptAreRefused) {
  ChatRequest request = two_tools(ToolChoice::Kind::automatic);
  const auto message = [&](const char* schema) {
    request.tools[1].parameters = ordered_json::parse(schema);
    return message_of([&] { tool_grammar(request, ToolFormat::hermes, MarkerText::shown); });
  };
  EXPECT_THAT(message(R"({"type":"string"})"), HasSubstr("tools[1].function.parameters"));
  EXPECT_THAT(message(R"({"properties":{"a":{"not":{}}},"required":["a"]})"),
              HasSubstr("tools[1].function.parameters: properties.a: the keyword not"));
  EXPECT_EQ(message(R"({"properties":{"a":{"type":"null"}}})"), "no error");
}

TEST(Tools, ATemplateSaysItsFormat) {
  EXPECT_EQ(tool_format("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]"),
            ToolFormat::mistral);
  EXPECT_EQ(tool_format("{% if tools %}<tools>{% endif %}<tool_call>"), ToolFormat::hermes);
  EXPECT_EQ(tool_format("{{ messages }}"), ToolFormat::generic);
}

TEST(Tools, WithoutATemplateForThemToolsAreText) {
  ChatRequest request = two_tools(ToolChoice::Kind::automatic);
  request.messages = ordered_json::parse(R"([{"role":"user","content":"Plan"},
      {"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function",
       "function":{"name":"plan_trip","arguments":"{\"city\": \"Oslo\"}"}}]},
      {"role":"tool","tool_call_id":"call_1","content":"done"}])");
  const ordered_json messages = messages_with_tools(ToolFormat::generic, request);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_THAT(messages[0]["content"].get<std::string>(),
              testing::AllOf(HasSubstr("\"plan_trip\""), testing::EndsWith("\n\nPlan")));
  EXPECT_EQ(messages[1]["content"],
            R"(<tool_call>{"name": "plan_trip", "arguments": {"city": "Oslo"}}</tool_call>)");
  EXPECT_FALSE(messages[1].contains("tool_calls"));
  EXPECT_EQ(messages[2]["role"], "user");
  EXPECT_EQ(messages[2]["content"], "<tool_response>done</tool_response>");
  request.tool_choice.kind = ToolChoice::Kind::none;
  EXPECT_EQ(messages_with_tools(ToolFormat::generic, request)[0]["content"], "Plan");
  EXPECT_TRUE(tools_for_template(request).is_null());
  const ordered_json kept = messages_with_tools(ToolFormat::hermes, request);
  EXPECT_EQ(kept[1]["tool_calls"][0]["function"]["arguments"]["city"], "Oslo");
}

}  // namespace
}  // namespace mixtral::serve
