// The Responses protocol: what its requests become, what is refused and by which name, and which
// events an answer is sent as.
#include "serve/responses.h"

#include <gtest/gtest.h>

#include "serve/fields.h"
#include "tests/serve/recorded_reply.h"

namespace mixtral::serve {
namespace {

using nlohmann::json;

ResponsesRequest read(const json& fields) {
  json body = {{"model", "m"}, {"input", "Hi"}};
  if (!fields.empty()) body.update(fields);
  return read_responses_request(parse_body(body.dump()));
}

TEST(ResponsesRequest, InputBecomesTurns) {
  EXPECT_EQ(json(read({{"instructions", "Be brief."}}).chat.messages), json::parse(R"([
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])"));
  const json items = json::parse(R"([
    {"role": "developer", "content": "Rules."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
                                                    {"type": "input_text", "text": "b"}]},
    {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{}",
     "status": "completed"},
    {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "done"},
    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
     "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]}])");
  EXPECT_EQ(json(read({{"input", items}}).chat.messages), json::parse(R"([
    {"role": "system", "content": "Rules."},
    {"role": "user", "content": "a\nb"},
    {"role": "assistant", "content": null, "tool_calls": [
      {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
      {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "done"},
    {"role": "assistant", "content": "c"}])"));
}

TEST(ResponsesRequest, FieldsBecomeThoseOfAConversation) {
  const ResponsesRequest request = read(json::parse(R"({
    "max_output_tokens": 5, "temperature": 0, "top_p": 0.5, "stream": true, "store": true,
    "metadata": {"a": "b"}, "reasoning": {"effort": null}, "truncation": "disabled", "include": [],
    "background": false, "parallel_tool_calls": false, "previous_response_id": null,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
    "tool_choice": {"type": "function", "name": "f"}})"));
  EXPECT_TRUE(request.stream);
  EXPECT_EQ(request.chat.answer.max_tokens, 5);
  EXPECT_EQ(request.chat.answer.temperature, 0);
  EXPECT_EQ(request.chat.answer.top_p, 0.5F);
  EXPECT_EQ(request.chat.answer.rule.kind, OutputRule::Kind::json_schema);
  EXPECT_EQ(request.chat.tool_choice.kind, ToolChoice::Kind::named);
  EXPECT_FALSE(request.chat.parallel_tool_calls);
  EXPECT_EQ(request.echoed["metadata"]["a"], "b");
  EXPECT_EQ(request.echoed["max_output_tokens"], 5);
}

TEST(ResponsesRequest, WhatCannotBeDoneIsRefusedByName) {
  struct Case {
    json fields;
    std::string_view field;
  };
  const Case cases[] = {
      {{{"input", json::array()}}, "input"},
      {{{"input", 5}}, "input"},
      {{{"input", {{{"type", "item_reference"}, {"id", "x"}}}}}, "input[0].type"},
      {{{"input", {{{"role", "user"}, {"content", {{{"type", "input_image"}}}}}}}},
       "input[0].content[0].type"},
      {{{"previous_response_id", "resp_1"}}, "previous_response_id"},
      {{{"conversation", "conv_1"}}, "conversation"},
      {{{"background", true}}, "background"},
      {{{"truncation", "auto"}}, "truncation"},
      {{{"include", {"reasoning.encrypted_content"}}}, "include"},
      {{{"reasoning", {{"effort", "high"}}}}, "reasoning.effort"},
      {{{"tools", {{{"type", "web_search"}}}}}, "tools[0].type"},
      {{{"tool_choice", "required"}}, "tool_choice"},
      {{{"max_output_tokens", 0}}, "max_output_tokens"},
      {{{"temperature", 3}}, "temperature"},
      {{{"max_tool_calls", 3}}, "max_tool_calls"},
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

TEST(Response, TextIsSentInTheProtocolsOrderOfEvents) {
  const auto play = [](bool stream) {
    const auto reply = std::make_shared<RecordedReply>();
    const auto answer = make_response(reply, "m", read({{"stream", stream}}));
    answer->on_delta(0, {.content = "Once "});  // faster than the thread that has asked for it
    answer->started(7);
    answer->on_delta(0, {.content = "more"});
    answer->on_finish(0, {.reason = ChatFinish::Reason::length, .tokens = 3, .cached_tokens = 2});
    answer->on_done();
    EXPECT_TRUE(reply->ended);
    return reply;
  };
  const auto events = play(true)->events();
  std::vector<std::string> names;
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].data["type"], events[i].name);
    EXPECT_EQ(events[i].data["sequence_number"], i);
    names.push_back(events[i].name);
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"response.created", "response.in_progress",
                                      "response.output_item.added", "response.content_part.added",
                                      "response.output_text.delta", "response.output_text.delta",
                                      "response.output_text.done", "response.content_part.done",
                                      "response.output_item.done", "response.incomplete"}));
  json streamed = events.back().data["response"], whole = play(false)->json();
  EXPECT_EQ(whole["status"], "incomplete");
  EXPECT_EQ(whole["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(whole["output"][0]["content"][0]["text"], "Once more");
  EXPECT_EQ(whole["usage"]["total_tokens"], 10);
  EXPECT_EQ(whole["usage"]["input_tokens_details"]["cached_tokens"], 2);
  for (json* response : {&streamed, &whole}) {
    response->erase("id");
    response->erase("created_at");
    (*response)["output"][0].erase("id");
  }
  EXPECT_EQ(streamed, whole);
}

TEST(Response, CallsAreItems) {
  const auto reply = std::make_shared<RecordedReply>();
  const auto answer = make_response(reply, "m", read({}));
  answer->started(1);
  answer->on_delta(0, {.tool_calls = {{.index = 0, .id = "c0", .name = "f", .arguments = "{"}}});
  answer->on_delta(0, {.tool_calls = {{.index = 0, .arguments = "}"}}});
  answer->on_finish(0, {.reason = ChatFinish::Reason::tool_calls, .tokens = 2});
  const json response = reply->json();
  EXPECT_EQ(response["status"], "completed");
  ASSERT_EQ(response["output"].size(), 1U);
  EXPECT_EQ(response["output"][0]["type"], "function_call");
  EXPECT_EQ(response["output"][0]["call_id"], "c0");
  EXPECT_EQ(response["output"][0]["arguments"], "{}");
}

}  // namespace
}  // namespace mixtral::serve
