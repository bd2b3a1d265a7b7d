#include "text/own_chat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/file.h"
#include "tests/support/files.h"
#include "tests/text/hf_cases.h"
#include "text/hf_tokenizer.h"
#include "text/spelled_controls.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;
using testing::ElementsAre;

constexpr const char* kChatMl =
    "{% for m in messages %}{{ '<|turn|>' + m.role + '\n' + m.content + '<|bos|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}";

/// A model's directory with a byte-level tokenizer and a template.
class OwnChat : public testing::Test {
 protected:
  std::unique_ptr<Tokenizer> with(const std::string& chat, const char* bos, const char* eos) {
    write_file(directory_.path() / "tokenizer.json", byte_level_tokenizer().dump());
    const ordered_json config{{"bos_token", bos}, {"eos_token", eos}, {"chat_template", chat}};
    write_file(directory_.path() / "tokenizer_config.json", config.dump());
    return load_tokenizer(directory_.path());
  }
  TemporaryDirectory directory_;
};

TEST_F(OwnChat, ControlTokensComeFromTheTemplateAlone) {
  const auto tokenizer = with(kChatMl, "<|bos|>", "<|bos|>");
  const auto own = OwnChatTemplate::find(directory_.path(), *tokenizer);
  ASSERT_TRUE(own.has_value());
  const std::vector<Message> messages = {{"user", "he<|turn|><|bos|>"}};
  EXPECT_EQ(own->render(messages), "<|turn|>user\nhe<|turn|><|bos|><|bos|><|turn|>assistant\n");
  const std::vector<int32_t> ids = own->encode(messages);
  EXPECT_EQ(std::ranges::count(ids, 260), 2) << "one for each turn, none for what was typed";
  EXPECT_EQ(std::ranges::count(ids, 259), 1);
  EXPECT_EQ(tokenizer->decode(ids), "<|turn|>user\nhe<|turn|><|bos|><|turn|>assistant\n");
  EXPECT_THAT(own->markers(), ElementsAre("<|turn|>", "<|bos|>"));
}

TEST_F(OwnChat, TheFormsOfMistralsTemplatesAreKnown) {
  const char* v1 =
      "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
      "{{ ' [INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
      "{% endif %}{% endfor %}";
  const char* old =
      "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
      "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}"
      "{% endif %}{% endfor %}";
  const auto builtin = [&](const char* chat) {
    const auto tokenizer = with(chat, "<|bos|>", "<|turn|>");
    return OwnChatTemplate::find(directory_.path(), *tokenizer)->builtin();
  };
  EXPECT_EQ(builtin(v1), ChatTemplate::mistral_v1);
  EXPECT_EQ(builtin(old), ChatTemplate::mistral_hf_old);
  EXPECT_EQ(builtin(kChatMl), std::nullopt);
}

TEST_F(OwnChat, AnAnswerEndsAtEveryEosThatTheFilesName) {
  const auto tokenizer = with(kChatMl, "<|bos|>", "<|bos|>");
  write_file(directory_.path() / "generation_config.json", R"({"eos_token_id": [2, 7]})");
  EXPECT_THAT(answer_ends({2}, directory_.path(), tokenizer.get()), ElementsAre(2, 7, 259));
  EXPECT_THAT(answer_ends({5}, "", nullptr), ElementsAre(5));
}

TEST(SpelledControls, AreFoundOnceEach) {
  const HfTokenizer tokenizer(byte_level_tokenizer().dump(), "t.json");
  EXPECT_THAT(SpelledControls(tokenizer).find("a<|turn|>b<|bos|><|turn|>"),
              ElementsAre("<|turn|>", "<|bos|>"));
  const std::string marked = mark_as_plain("a<|turn|>", tokenizer.control_texts());
  EXPECT_THAT(tokenizer.encode_prompt(marked), testing::Not(testing::Contains(260)));
  EXPECT_EQ(without_plain_marks(marked), "a<|turn|>");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode_prompt(marked)), "a<|turn|>");
}

TEST(ChatTemplate, InstructionsAreControlTokensWhereTheVocabularyHasThem) {
  auto json = byte_level_tokenizer();
  json["added_tokens"] = {hf_added(259, "<s>"), hf_added(260, "</s>"), hf_added(261, "[INST]"),
                          hf_added(262, "[/INST]")};
  const HfTokenizer tokenizer(json.dump(), "t.json");
  const std::vector<Message> messages = {{"user", "he"}, {"assistant", "ll"}};
  for (const ChatTemplate chat : {ChatTemplate::mistral_v1, ChatTemplate::mistral_hf_old}) {
    const ChatTokens tokens = encode_chat(tokenizer, chat, messages);
    EXPECT_THAT(tokens.ids, ElementsAre(259, 261, 256, 262, 257, 260));
    EXPECT_THAT(tokens.trained, ElementsAre(0, 0, 0, 0, 1, 1));
  }
}

}  // namespace
}  // namespace mixtral
