// The Messages protocol: what its requests become, what is refused and by which name, and which
// events a message is sent as.
#include "serve/anthropic.h"

#include <gtest/gtest.h>

#include "serve/anthropic_request.h"
#include "serve/fields.h"
#include "tests/serve/recorded_reply.h"

namespace mixtral::serve {
namespace {

using nlohmann::json;

/// A request with these fields beside, or in place of, the least that one needs; null takes out.
std::string body_of(const json& fields) {
  json body = {
      {"model", "m"}, {"max_tokens", 9}, {"messages", {{{"role", "user"}, {"content", "Hi"}}}}};
  if (!fields.empty()) body.update(fields);
  for (const auto& [name, value] : fields.items())
    if (value.is_null()) body.erase(name);
  return body.dump();
}

MessagesRequest read(const json& fields) {
  return read_messages_request(parse_body(body_of(fields)));
}

json user(const json& content) { return {{{"role", "user"}, {"content", content}}}; }
json text(const std::string& words) { return {{"type", "text"}, {"text", words}}; }

TEST(MessagesRequest, FieldsBecomeThoseOfAConversation) {
  const MessagesRequest request = read({{"stop_sequences", {"a", "b"}},
                                        {"temperature", 0.5},
                                        {"top_p", 0.25},
                                        {"top_k", 7},
                                        {"stream", true},
                                        {"metadata", {{"user_id", "u"}}},
                                        {"service_tier", "auto"},
                                        {"thinking", {{"type", "disabled"}}}});
  EXPECT_TRUE(request.stream);
  EXPECT_EQ(request.chat.model, "m");
  EXPECT_EQ(request.chat.answer.max_tokens, 9);
  EXPECT_EQ(request.chat.answer.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(request.chat.answer.temperature, 0.5F);
  EXPECT_EQ(request.chat.answer.top_p, 0.25F);
  EXPECT_EQ(request.chat.answer.top_k, 7);
}

TEST(MessagesRequest, BlocksAreTheirTextTogether) {
  const json marked = {
      {"type", "text"}, {"text", "b."}, {"cache_control", {{"type", "ephemeral"}}}};
  const json plain = read({{"system", "a\nb."}, {"messages", user("x\ny")}}).chat.messages;
  const json blocks =
      read({{"system", {text("a"), marked}}, {"messages", user({text("x"), text("y")})}})
          .chat.messages;
  EXPECT_EQ(plain, blocks);
  EXPECT_EQ(plain, json::parse(R"([{"role": "system", "content": "a\nb."},
                                   {"role": "user", "content": "x\ny"}])"));
}

TEST(MessagesRequest, CallsAndResultsBecomeTurns) {
  const json messages = json::parse(R"([
    {"role": "user", "content": "Plan"},
    {"role": "assistant", "content": [
      {"type": "text", "text": "Well."},
      {"type": "tool_use", "id": "1", "name": "f", "input": {"a": [2], "b": 1}},
      {"type": "tool_use", "id": "2", "name": "g", "input": {}}]},
    {"role": "user", "content": [
      {"type": "tool_result", "tool_use_id": "1", "content": "done"},
      {"type": "tool_result", "tool_use_id": "2", "is_error": true,
       "content": [{"type": "text", "text": "lost"}]},
      {"type": "text", "text": "And now?"}]}])");
  EXPECT_EQ(json(read({{"messages", messages}}).chat.messages), json::parse(R"([
    {"role": "user", "content": "Plan"},
    {"role": "assistant", "content": "Well.", "tool_calls": [
      {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":[2],\"b\":1}"}},
      {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "done"},
    {"role": "tool", "tool_call_id": "2", "content": "Error: lost"},
    {"role": "user", "content": "And now?"}])"));
}

TEST(MessagesRequest, ChoicesOfToolsAreKept) {
  const json tools = {{{"name", "f"}, {"input_schema", {{"type", "object"}}}}};
  struct Case {
    json choice;
    ToolChoice::Kind kind;
    bool parallel;
  };
  for (const Case& c : {Case{{{"type", "auto"}}, ToolChoice::Kind::automatic, true},
                        Case{{{"type", "none"}}, ToolChoice::Kind::none, true},
                        Case{{{"type", "any"}, {"disable_parallel_tool_use", true}},
                             ToolChoice::Kind::required,
                             false},
                        Case{{{"type", "tool"}, {"name", "f"}}, ToolChoice::Kind::named, true}}) {
    const ChatRequest chat = read({{"tools", tools}, {"tool_choice", c.choice}}).chat;
    EXPECT_EQ(chat.tool_choice.kind, c.kind) << c.choice;
    EXPECT_EQ(chat.parallel_tool_calls, c.parallel) << c.choice;
    ASSERT_EQ(chat.tools.size(), 1U);
    EXPECT_EQ(chat.tools[0].name, "f");
  }
}

TEST(MessagesRequest, WhatCannotBeDoneIsRefusedByName) {
  const json tool = {{"name", "f"}, {"input_schema", {{"type", "object"}}}};
  struct Case {
    json fields;
    std::string_view field;
  };
  const Case cases[] = {
      {{{"max_tokens", nullptr}}, "max_tokens"},
      {{{"max_tokens", 0}}, "max_tokens"},
      {{{"model", nullptr}}, "model"},
      {{{"temperature", -1}}, "temperature"},
      {{{"top_k", 1.5}}, "top_k"},
      {{{"stop_sequences", {""}}}, "stop_sequences[0]"},
      {{{"stop_sequences", "x"}}, "stop_sequences"},
      {{{"unheard_of", 1}}, "unheard_of"},
      {{{"metadata", {{"other", 1}}}}, "metadata.other"},
      {{{"thinking", {{"type", "enabled"}, {"budget_tokens", 9}}}}, "thinking"},
      {{{"messages", json::array()}}, "messages"},
      {{{"messages", user(json::array())}}, "messages[0].content"},
      {{{"messages", user(5)}}, "messages[0].content"},
      {{{"messages", {{{"role", "tool"}, {"content", "x"}}}}}, "messages[0].role"},
      {{{"messages", user({{{"type", "image"}}})}}, "messages[0].content[0].type"},
      {{{"messages", user({{{"type", "tool_use"}}})}}, "messages[0].content[0].type"},
      {{{"tools", {tool, tool}}}, "tools[1].name"},
      {{{"tools", {{{"type", "web_search"}, {"name", "f"}}}}}, "tools[0].type"},
      {{{"tools", {{{"name", "f"}}}}}, "tools[0].input_schema"},
      {{{"tool_choice", {{"type", "any"}}}}, "tool_choice.type"},
      {{{"tools", {tool}}, {"tool_choice", {{"type", "tool"}, {"name", "g"}}}}, "tool_choice.name"},
      {{{"tools", {tool}}, {"tool_choice", {{"type", "maybe"}}}}, "tool_choice.type"},
  };
  for (const Case& c : cases) {
    try {
      read(c.fields);
      ADD_FAILURE() << c.fields << " was taken";
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status(), 400) << c.fields;
      EXPECT_EQ(error.param(), c.field) << c.fields << ": " << error.what();
    }
  }
}

TEST(MessagesRequest, CountingNeedsNoMaxTokensAndKnowsNone) {
  json body = json::parse(body_of({}));
  EXPECT_THROW(read_count_request(parse_body(body.dump())), ApiError);
  body.erase("max_tokens");
  EXPECT_EQ(read_count_request(parse_body(body.dump())).messages.size(), 1U);
}

std::vector<std::string> names(const RecordedReply& reply) {
  std::vector<std::string> all;
  for (const RecordedReply::Event& event : reply.events()) {
    EXPECT_EQ(event.data["type"], event.name);
    all.push_back(event.name);
  }
  return all;
}

TEST(Message, TextIsSentInTheProtocolsOrderOfEvents) {
  const auto reply = std::make_shared<RecordedReply>();
  const auto answer = make_message(reply, "m", true);
  answer->on_delta(0, {.content = "Once "});  // faster than the thread that has asked for it
  answer->started(7);
  answer->on_delta(0, {.content = "more"});
  answer->on_finish(0, {.reason = ChatFinish::Reason::stop, .stop_text = "END", .tokens = 3});
  answer->on_done();
  EXPECT_TRUE(reply->ended);
  EXPECT_EQ(names(*reply),
            (std::vector<std::string>{"message_start", "ping", "content_block_start",
                                      "content_block_delta", "content_block_delta",
                                      "content_block_stop", "message_delta", "message_stop"}));
  const auto events = reply->events();
  EXPECT_EQ(events[0].data["message"]["usage"]["input_tokens"], 7);
  EXPECT_EQ(events[0].data["message"]["content"], json::array());
  EXPECT_EQ(events[2].data["content_block"], text(""));
  EXPECT_EQ(events[3].data["delta"]["text"], "Once ");
  EXPECT_EQ(events[6].data["delta"],
            json({{"stop_reason", "stop_sequence"}, {"stop_sequence", "END"}}));
  EXPECT_EQ(events[6].data["usage"]["output_tokens"], 3);
}

TEST(Message, EachCallIsABlock) {
  const auto play = [](const std::shared_ptr<ChatAnswer>& answer) {
    answer->started(1);
    answer->on_delta(0, {.content = "So:"});
    answer->on_delta(0, {.tool_calls = {{.index = 0, .id = "c0", .name = "f"}}});
    answer->on_delta(0, {.tool_calls = {{.index = 0, .arguments = "{\"a\":"}}});
    answer->on_delta(0, {.tool_calls = {{.index = 0, .arguments = "1}"}}});
    answer->on_delta(0, {.tool_calls = {{.index = 1, .id = "c1", .name = "g", .arguments = "{}"}}});
    answer->on_finish(0, {.reason = ChatFinish::Reason::tool_calls, .tokens = 9});
    answer->on_done();
  };
  const auto streamed = std::make_shared<RecordedReply>();
  play(make_message(streamed, "m", true));
  std::vector<int> places;
  std::string arguments;
  for (const RecordedReply::Event& event : streamed->events()) {
    if (event.name == "content_block_start") places.push_back(event.data["index"]);
    if (event.name == "content_block_delta" && event.data["index"] == 1)
      arguments += event.data["delta"]["partial_json"];
  }
  EXPECT_EQ(places, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(arguments, "{\"a\":1}");
  const auto whole = std::make_shared<RecordedReply>();
  play(make_message(whole, "m", false));
  const json message = whole->json();
  EXPECT_EQ(message["stop_reason"], "tool_use");
  EXPECT_EQ(message["content"], json::parse(R"([
    {"type": "text", "text": "So:"},
    {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}},
    {"type": "tool_use", "id": "c1", "name": "g", "input": {}}])"));
}

TEST(Message, ErrorsHaveTheProtocolsShape) {
  for (const auto& [status, type] :
       std::vector<std::pair<int, std::string>>{{400, "invalid_request_error"},
                                                {401, "authentication_error"},
                                                {404, "not_found_error"},
                                                {413, "request_too_large"},
                                                {429, "rate_limit_error"},
                                                {500, "api_error"},
                                                {503, "overloaded_error"}}) {
    const HttpResponse response = anthropic_error(ApiError(status, "why"));
    EXPECT_EQ(response.status, status);
    EXPECT_EQ(json::parse(response.body),
              json({{"type", "error"}, {"error", {{"type", type}, {"message", "why"}}}}));
  }
  const auto reply = std::make_shared<RecordedReply>();
  const auto answer = make_message(reply, "m", true);
  answer->started(1);
  answer->on_error(ApiError(500, "why"));
  EXPECT_EQ(reply->events().back().name, "error");
  EXPECT_TRUE(reply->ended);
}

}  // namespace
}  // namespace mixtral::serve
