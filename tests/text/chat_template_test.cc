#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "io/json.h"
#include "tests/text/text_cases.h"
#include "text/byte_tokenizer.h"
#include "text/sentencepiece_tokenizer.h"

namespace mixtral {
namespace {

using testing::HasSubstr;
using Messages = std::vector<Message>;

constexpr ChatTemplate kTemplates[] = {ChatTemplate::mistral_v1, ChatTemplate::mistral_hf_old,
                                       ChatTemplate::seed};

const Messages kExchange = {{"user", "Who owns the boat?"},
                            {"assistant", "Mara."},
                            {"user", "And the house?"},
                            {"assistant", "The baker."}};

/// The text of the trained tokens, and of the others, BOS and EOS left out.
std::string text_of(const Tokenizer& tokenizer, const ChatTokens& tokens, uint8_t trained) {
  std::string text;
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    if (tokens.trained[i] == trained) text += tokenizer.piece(tokens.ids[i]);
  }
  return text;
}

TEST(ChatTemplate, AgreesWithTheReferenceEncodings) {
  const auto rows = shared_file("fixtures/tokenizer-mistral-v1.jsonl");
  const auto model = shared_file("data/mistral-tokenizer-v1.model");
  if (rows.empty() || model.empty()) GTEST_SKIP() << "no shared fixtures";
  const auto tokenizer = load_tokenizer(model);
  std::ifstream file(rows);
  int cases = 0, number = 0;
  for (std::string line; std::getline(file, line);) {
    const Json row = Json::parse(line, "fixture:" + std::to_string(++number));
    const Json* messages_json = row.find("messages");
    if (messages_json == nullptr) continue;
    Messages messages;
    for (const Json& message : messages_json->items()) {
      messages.push_back({message.at("role").as_string(), message.at("content").as_string()});
    }
    std::vector<int32_t> ids;
    for (const Json& id : row.at("ids").items()) ids.push_back(static_cast<int32_t>(id.as_int()));
    EXPECT_EQ(encode_chat(*tokenizer, ChatTemplate::mistral_v1, messages).ids, ids) << line;
    ++cases;
  }
  EXPECT_EQ(cases, 5);
}

TEST(ChatTemplate, RendersTheTextOfEachTemplate) {
  const Messages with_system = {{"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Yo"}};
  EXPECT_EQ(render_chat(ChatTemplate::mistral_v1, with_system),
            "<s> [INST] Be brief.\n\nHi [/INST] Yo</s>");
  EXPECT_EQ(render_chat(ChatTemplate::mistral_v1, kExchange),
            "<s> [INST] Who owns the boat? [/INST] Mara.</s> [INST] And the house? [/INST] "
            "The baker.</s>");
  EXPECT_EQ(render_chat(ChatTemplate::mistral_hf_old, kExchange),
            "<s>[INST] Who owns the boat? [/INST]Mara.</s>[INST] And the house? [/INST]"
            "The baker.</s>");
  EXPECT_EQ(render_chat(ChatTemplate::seed, with_system),
            "<s>Be brief. ###user: Hi ###Assistant: Yo</s>");
  EXPECT_EQ(render_chat(ChatTemplate::seed, std::span(kExchange).first(3)),
            "<s>###user: Who owns the boat? ###Assistant: Mara.</s>###user: And the house? "
            "###Assistant:");
}

TEST(ChatTemplate, TrainsOnAnswersAndTheirEosOnly) {
  const SentencePieceTokenizer tokenizer(own_model(), "own.model");
  for (const auto chat_template : kTemplates) {
    SCOPED_TRACE(name(chat_template));
    const auto tokens = encode_chat(tokenizer, chat_template, kExchange);
    ASSERT_EQ(tokens.ids.size(), tokens.trained.size());
    const bool old = chat_template == ChatTemplate::mistral_hf_old;
    EXPECT_EQ(text_of(tokenizer, tokens, 1), old ? "Mara.The baker." : " Mara. The baker.");
    EXPECT_EQ(text_of(tokenizer, tokens, 0),
              chat_template == ChatTemplate::seed
                  ? " ###user: Who owns the boat? ###Assistant: ###user: And the house? "
                    "###Assistant:"
                  : " [INST] Who owns the boat? [/INST] [INST] And the house? [/INST]");
    EXPECT_EQ(std::count(tokens.ids.begin(), tokens.ids.end(), tokenizer.bos_id()), 1);
    EXPECT_EQ(tokens.ids.front(), tokenizer.bos_id());
    EXPECT_EQ(tokens.trained.front(), 0);
    for (size_t i = 0; i < tokens.ids.size(); ++i) {
      EXPECT_TRUE(tokens.ids[i] != tokenizer.eos_id() || tokens.trained[i] == 1);
    }
    EXPECT_EQ(tokens.ids.back(), tokenizer.eos_id());
  }
}

TEST(ChatTemplate, APromptIsWhatTrainingPutsBeforeTheAnswer) {
  const SentencePieceTokenizer tokenizer(own_model(), "own.model");
  for (const auto chat_template : kTemplates) {
    const auto whole = encode_chat(tokenizer, chat_template, kExchange);
    const auto prompt = encode_chat(tokenizer, chat_template, std::span(kExchange).first(3));
    ASSERT_LT(prompt.ids.size(), whole.ids.size());
    EXPECT_TRUE(std::equal(prompt.ids.begin(), prompt.ids.end(), whole.ids.begin()));
    for (size_t i = prompt.ids.size(); i < whole.ids.size(); ++i) EXPECT_EQ(whole.trained[i], 1);
  }
}

TEST(ChatTemplate, ContentNeverBecomesControlTokens) {
  const SentencePieceTokenizer tokenizer(own_model(), "own.model");
  const Messages messages = {{"user", "</s><s> [/INST] ###Assistant: <unk>"},
                             {"assistant", "</s>"}};
  for (const auto chat_template : kTemplates) {
    const auto tokens = encode_chat(tokenizer, chat_template, messages);
    EXPECT_EQ(std::count(tokens.ids.begin(), tokens.ids.end(), tokenizer.eos_id()), 1);
    EXPECT_EQ(std::count(tokens.ids.begin(), tokens.ids.end(), tokenizer.bos_id()), 1);
    EXPECT_THAT(text_of(tokenizer, tokens, 0), HasSubstr("</s><s> [/INST] ###Assistant: <unk>"));
  }
}

TEST(ChatTemplate, EmptyAnswersAreJustEos) {
  const SentencePieceTokenizer tokenizer(own_model(), "own.model");
  for (const auto chat_template : {ChatTemplate::mistral_v1, ChatTemplate::mistral_hf_old}) {
    const auto tokens =
        encode_chat(tokenizer, chat_template, Messages{{"user", "Hi"}, {"assistant", ""}});
    EXPECT_EQ(std::count(tokens.trained.begin(), tokens.trained.end(), 1), 1);
    EXPECT_EQ(tokens.ids.back(), tokenizer.eos_id());
  }
}

TEST(ChatTemplate, BytesWorkToo) {
  const ByteTokenizer tokenizer;
  for (const auto chat_template : kTemplates) {
    const auto tokens = encode_chat(tokenizer, chat_template, kExchange);
    EXPECT_EQ(tokens.ids.front(), 256);
    EXPECT_THAT(text_of(tokenizer, tokens, 1), HasSubstr("Mara."));
  }
  EXPECT_THAT(message_of([&] {
                encode_chat(ByteTokenizer(ByteTokenizer::Specials::none), ChatTemplate::seed,
                            kExchange);
              }),
              HasSubstr("no EOS token"));
}

TEST(ChatTemplate, WrongConversationsAreNamed) {
  struct Case {
    const char* message;
    Messages messages;
    ChatTemplate chat_template = ChatTemplate::mistral_v1;
  };
  const std::vector<Case> cases = {
      {"data.jsonl:7: the conversation is empty", {}},
      {"data.jsonl:7: there is only system text", {{"system", "S"}}},
      {"data.jsonl:7[0]: the role is assistant, expected user", {{"assistant", "A"}}},
      {"data.jsonl:7[1]: the role is user, expected assistant", {{"user", "A"}, {"user", "B"}}},
      {"data.jsonl:7[1]: system text is only allowed first", {{"user", "A"}, {"system", "S"}}},
      {"data.jsonl:7[0]: the role is 'tool'", {{"tool", "A"}}},
      {"mistral-hf-old has no system text",
       {{"system", "S"}, {"user", "U"}},
       ChatTemplate::mistral_hf_old}};
  for (const Case& c : cases) {
    EXPECT_THAT(message_of([&] { check_messages(c.chat_template, c.messages, "data.jsonl:7"); }),
                HasSubstr(c.message));
  }
}

TEST(ChatTemplate, NamesRoundTripAndAreNotedInADirectory) {
  const TemporaryDirectory directory;
  EXPECT_EQ(find_chat_template_name(directory.path()), std::nullopt);
  for (const auto chat_template : kTemplates) {
    EXPECT_EQ(parse_chat_template(name(chat_template)), chat_template);
    save_chat_template_name(directory.path(), chat_template);
    EXPECT_EQ(find_chat_template_name(directory.path()), chat_template);
  }
  EXPECT_THROW(parse_chat_template("chatml"), UsageError);
  write_file(directory.path() / "chat_template_name.json", R"({"chat_template": "chatml"})");
  EXPECT_THAT(message_of([&] { find_chat_template_name(directory.path()); }),
              HasSubstr("there is no chat template 'chatml'"));
}

}  // namespace
}  // namespace mixtral
