// Conversations, exact-match evaluation, and the commands for them. The model has random weights:
// what it says means nothing, but it must be said, kept and counted as it should.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <iostream>
#include <sstream>

#include "backends/registry.h"
#include "base/file.h"
#include "cli/common.h"
#include "eval/exact_match.h"
#include "infer/conversation.h"
#include "io/json.h"
#include "model/checkpoint.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/models.h"
#include "text/byte_tokenizer.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

ModelConfig small_config() {
  ModelConfig config = testing::minimal_config();
  config.vocab_size = 258;
  config.num_layers = 1;
  config.num_experts = 2;
  config.experts_per_token = 1;
  config.max_positions = 512;
  config.bos_id = 256;
  config.eos_ids = {257};
  return config;
}

class ChatTest : public ::testing::Test {
 protected:
  ChatTest() : backend_(make_backend("cpu", 1)), model_(*backend_, small_config(), {}) {
    nn::initialise(*backend_, model_.parameters(),
                   {.seed = 3, .deviation = 0.3, .embedding_deviation = 0.3});
  }

  TextOptions options(int64_t tokens) const {
    TextOptions o;
    o.tokens.max_tokens = tokens;
    o.tokens.sampling = {.temperature = 1, .seed = 9};
    return o;
  }
  std::string save_model_files() {
    const fs::path directory = scratch_.path() / "model";
    fs::create_directories(directory);
    save_model(*backend_, model_, directory, Dtype::f32);
    tokenizer_.save(directory);
    save_chat_template_name(directory, ChatTemplate::seed);
    return directory.string();
  }

  TemporaryDirectory scratch_;
  std::unique_ptr<Backend> backend_;
  Mixtral model_;
  ByteTokenizer tokenizer_;
};

TEST_F(ChatTest, AReplyIsThatOfTheEncodedConversation) {
  Engine engine(*backend_, model_);
  Conversation conversation(engine, tokenizer_, ChatTemplate::seed, options(20));
  conversation.set_system("Be brief.");
  std::string streamed;
  const GeneratedText reply =
      conversation.say("Hello", [&](std::string_view text) { streamed += text; });
  const std::vector<Message> messages{{"system", "Be brief."}, {"user", "Hello"}};
  const auto prompt = encode_chat(tokenizer_, ChatTemplate::seed, messages).ids;
  TextOptions same = options(20);
  same.stop = {"###user:"};
  const GeneratedText expected = generate(engine, &tokenizer_, prompt, same);
  ASSERT_EQ(reply.tokens.size(), expected.tokens.size());
  for (size_t i = 0; i < reply.tokens.size(); ++i)
    EXPECT_EQ(reply.tokens[i].id, expected.tokens[i].id);
  EXPECT_TRUE(streamed.starts_with(reply.text)) << streamed;
  ASSERT_EQ(conversation.messages().size(), 3u);
  EXPECT_EQ(conversation.messages()[2].content, reply.text);
  conversation.reset();
  EXPECT_EQ(conversation.messages().size(), 1u);  // the system text
}

TEST_F(ChatTest, TheOldestTurnsGoWhenTheContextIsFull) {
  Engine engine(*backend_, model_, {.context = 128});
  Conversation conversation(engine, tokenizer_, ChatTemplate::seed, options(8));
  for (int turn = 0; turn < 6; ++turn) {
    conversation.say("A turn of some length.", {});
    EXPECT_LE(conversation.tokens(), 128);
  }
  EXPECT_GT(conversation.forgotten(), 0);
  EXPECT_EQ(conversation.messages().size(), 12u);  // still there, to be saved
  const std::string long_turn(200, 'x');
  EXPECT_NE(message_of([&] { conversation.say(long_turn, {}); }).find("context"),
            std::string::npos);
  EXPECT_EQ(conversation.messages().size(), 12u);  // taken back
}

TEST_F(ChatTest, AReplyCanBeStopped) {
  Engine engine(*backend_, model_);
  Conversation conversation(engine, tokenizer_, ChatTemplate::seed, options(200));
  int asked = 0;
  const GeneratedText reply = conversation.say("Hello", {}, [&] { return ++asked == 5; });
  EXPECT_EQ(reply.tokens.size(), 5u);
  EXPECT_EQ(reply.reason, FinishReason::cancelled);
}

TEST_F(ChatTest, AReplyCanBeTakenBackAndAConversationLoaded) {
  Engine engine(*backend_, model_);
  Conversation conversation(engine, tokenizer_, ChatTemplate::seed, options(20));
  EXPECT_THROW(conversation.regenerate({}), Error);
  conversation.say("Hello", {});
  const std::vector<Message> before = conversation.messages();
  conversation.regenerate({});
  const std::vector<Message> after = conversation.messages();
  ASSERT_EQ(after.size(), before.size());
  EXPECT_EQ(after[0].content, before[0].content);
  EXPECT_NE(after[1].content, before[1].content);  // drawn with another seed
  conversation.load({{"system", "S"}, {"user", "U"}, {"assistant", "A"}});
  EXPECT_EQ(conversation.system(), "S");
  EXPECT_EQ(conversation.messages().size(), 3u);
  EXPECT_GT(conversation.all_tokens(), 10);
  EXPECT_THROW(conversation.load({{"user", "U"}}), Error);
  EXPECT_EQ(conversation.messages().size(), 3u);
}

TEST_F(ChatTest, IdsThatTheTokenizerLacksAreKeptWithoutText) {
  ModelConfig config = small_config();
  config.vocab_size = 320;
  Mixtral model(*backend_, config, {});
  nn::initialise(*backend_, model.parameters(),
                 {.seed = 3, .deviation = 0.3, .embedding_deviation = 0.3});
  const fs::path directory = scratch_.path() / "wide";
  fs::create_directories(directory);
  save_model(*backend_, model, directory, Dtype::f32);
  tokenizer_.save(directory);
  const auto run = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments{
        "generate", "--model", directory.string(), "-p", "Hello", "--device", "cpu", "-q"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome o = run_command(arguments);
    EXPECT_EQ(o.code, 0) << o.err;
    return o.out;
  };
  const Json json = Json::parse(run({"-n", "100", "--temp", "2", "--ignore-eos", "--json"}), "out");
  int64_t beyond = 0;
  std::string bytes;
  const auto& ids = json.at("ids").items();
  for (size_t i = 6; i < ids.size(); ++i) {  // after BOS and the prompt's five
    const int64_t id = ids[i].as_int();
    beyond += id >= tokenizer_.vocab_size();
    if (id < 128) bytes += static_cast<char>(id);
  }
  EXPECT_EQ(ids.size(), 106u);
  EXPECT_GT(beyond, 0);
  std::string text = json.at("text").as_string();
  std::erase_if(text, [](char c) { return static_cast<unsigned char>(c) >= 128; });
  EXPECT_EQ(text, bytes);
  // Everywhere they are shown, they are numbers.
  for (const char* method : {"generate_raw", "just_generate_one_god_damn_token"})
    EXPECT_NE(run({"--method", method, "--top", "320"}).find(" 319"), std::string::npos) << method;
  EXPECT_NE(run({"--method", "just_generate_one_god_damn_token", "--top", "320", "--json"})
                .find("\"token\":\"319\""),
            std::string::npos);
  EXPECT_NE(run({"-n", "100", "--temp", "2", "--ignore-eos", "--logprobs"}), "");
}

TEST_F(ChatTest, SystemTextWhereTheTemplateHasNoneIsRefused) {
  Engine engine(*backend_, model_);
  Conversation conversation(engine, tokenizer_, ChatTemplate::mistral_hf_old, options(4));
  EXPECT_NE(message_of([&] { conversation.set_system("Be brief."); }).find("no system text"),
            std::string::npos);
}

TEST_F(ChatTest, TheCommandAnswersObeysAndSaves) {
  const std::string model = save_model_files();
  const std::string file = (scratch_.path() / "saved.jsonl").string();
  const Outcome o = run_command(
      {"chat", "--model", model, "--max-tokens", "12", "--device", "cpu", "--threads", "1"},
      "/system Be kind.\nHello\nAnd now?\n/save " + file + "\n/exit\nnever\n");
  ASSERT_EQ(o.code, 0) << o.err;
  const Json saved = Json::parse(read_file(file), file);
  const auto& messages = saved.at("messages").items();
  ASSERT_EQ(messages.size(), 5u);
  EXPECT_EQ(messages[0].at("role").as_string(), "system");
  EXPECT_EQ(messages[3].at("content").as_string(), "And now?");
  EXPECT_NE(o.out.find(messages[4].at("content").as_string()), std::string::npos) << o.out;
  // One turn by generate is the same reply.
  const Outcome once =
      run_command({"generate", "--model", model, "--chat", "--system", "Be kind.", "-p", "Hello",
                   "-n", "12", "--temp", "0.7", "-q", "--device", "cpu"});
  ASSERT_EQ(once.code, 0) << once.err;
  EXPECT_NE(once.out.find(messages[2].at("content").as_string()), std::string::npos) << once.out;
  EXPECT_EQ(run_command({"chat", "--model", model, "--device", "cpu"}, "/dance\n").code, 1);
  // What was saved can be gone on from, and what is drawn can be changed on the way.
  const Outcome loaded = run_command(
      {"chat", "--model", model, "--max-tokens", "4", "--device", "cpu", "--threads", "1"},
      "/load " + file + "\n/set temp 0\n/set\n/tokens\n/regenerate\n/history\n/exit\n");
  ASSERT_EQ(loaded.code, 0) << loaded.err;
  EXPECT_NE(loaded.err.find("loaded 5 turns"), std::string::npos) << loaded.err;
  EXPECT_NE(loaded.err.find("temp 0, top-k 0"), std::string::npos) << loaded.err;
  EXPECT_NE(loaded.err.find("the conversation has "), std::string::npos) << loaded.err;
  EXPECT_NE(loaded.out.find("user: And now?"), std::string::npos) << loaded.out;
  for (const char* wrong : {"/set temp hot\n", "/set top-k 1.5\n", "/set colour 1\n", "/load\n"})
    EXPECT_EQ(run_command({"chat", "--model", model, "--device", "cpu"}, wrong).code, 1) << wrong;
}

TEST_F(ChatTest, APromptComesFromAFileAndInSeveralSamples) {
  const std::string model = save_model_files();
  write_file(scratch_.path() / "prompt.txt", "Hello\n");
  const auto generate = [&](std::vector<std::string> more, const std::string& input = "") {
    std::vector<std::string> all{"generate", "--model", model,      "-n",
                                 "6",        "--json",  "--device", "cpu"};
    all.insert(all.end(), more.begin(), more.end());
    return run_command(all, input);
  };
  const Outcome given = generate({"-p", "Hello"});
  ASSERT_EQ(given.code, 0) << given.err;
  EXPECT_EQ(generate({"-f", (scratch_.path() / "prompt.txt").string()}).out, given.out);
  EXPECT_EQ(generate({"-p", "Hello", "-f", (scratch_.path() / "prompt.txt").string()}).code, 2);
  const Outcome several = generate({"-p", "Hello", "--num-samples", "3"});
  ASSERT_EQ(several.code, 0) << several.err;
  const Json all = Json::parse(several.out, "stdout");
  ASSERT_EQ(all.at("samples").items().size(), 3u);
  EXPECT_EQ(all.at("samples").items()[0].at("ids").items().size(),
            Json::parse(given.out, "stdout").at("ids").items().size());
  // The context ends a text before its tokens do, and a control token spelled out is pointed at.
  const Outcome full = generate({"-p", "<s>Hello", "-c", "12"});
  ASSERT_EQ(full.code, 0) << full.err;
  EXPECT_NE(full.err.find("the context of 12 tokens is full"), std::string::npos) << full.err;
  EXPECT_NE(full.err.find("spells out <s>"), std::string::npos) << full.err;
}

TEST_F(ChatTest, EveryMethodPrintsJson) {
  const std::string model = save_model_files();
  const auto run = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"generate", "--model",  model, "-p",
                                       "Hello",    "--device", "cpu", "-q"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome o = run_command(arguments);
    EXPECT_EQ(o.code, 0) << o.err;
    return o.out;
  };
  const Json raw = Json::parse(run({"--method", "generate_raw", "--top", "3", "--json"}), "raw");
  const auto& positions = raw.at("positions").items();
  ASSERT_EQ(positions.size(), 6u);  // BOS and five bytes
  EXPECT_EQ(positions[1].at("id").as_int(), 'H');
  EXPECT_EQ(positions[1].at("token").as_string(), "H");
  const auto& best = positions[5].at("best").items();
  ASSERT_EQ(best.size(), 3u);
  EXPECT_GE(best[0].at("logit").as_double(), best[1].at("logit").as_double());
  const Json one = Json::parse(
      run({"--method", "just_generate_one_god_damn_token", "--top", "3", "--json"}), "one");
  EXPECT_EQ(best[0].at("id").as_int(), one.at("id").as_int());
  const std::string file = (scratch_.path() / "logits.safetensors").string();
  const Json written =
      Json::parse(run({"--method", "generate_raw", "--out", file, "--json"}), "written");
  EXPECT_EQ(written.at("out").as_string(), file);
  EXPECT_EQ(written.at("shape").items()[0].as_int(), 6);
  EXPECT_TRUE(fs::exists(file));

  const std::vector<std::string> sample{"--method", "generate_after_training", "-n", "12"};
  const std::string streamed = run(sample);
  auto with_json = sample;
  with_json.emplace_back("--json");
  const Json json = Json::parse(run(with_json), "sample");
  EXPECT_EQ(json.at("text").as_string() + "\n", streamed);
  EXPECT_EQ(json.at("prompt_tokens").as_int(), 6);
  EXPECT_EQ(json.at("ids").items().size(),
            6u + static_cast<size_t>(json.at("new_tokens").as_int()));
}

TEST_F(ChatTest, AtATerminalErrorsAreSaidEvenWhenNotesAreNot) {
  const std::string model = save_model_files();
  int terminal = -1;
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(60);  // a test that hangs shall fail
    ::setenv("XDG_STATE_HOME", (scratch_.path() / "state").c_str(), 1);
    ::_exit(run_command_here({"chat", "--model", model, "--device", "cpu", "-t", "1", "-q"}));
  }
  const std::string typed = "/system Be kind.\n/dance\n/exit\n";
  ASSERT_EQ(::write(terminal, typed.data(), typed.size()), static_cast<ssize_t>(typed.size()));
  std::string shown;
  char part[256];
  for (ssize_t n = 0; (n = ::read(terminal, part, sizeof part)) > 0;)
    shown.append(part, static_cast<size_t>(n));
  ::close(terminal);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status)) << shown;
  EXPECT_EQ(WEXITSTATUS(status), 0) << shown;
  EXPECT_NE(shown.find("there is no command /dance"), std::string::npos) << shown;
  EXPECT_EQ(shown.find("system: Be kind."), std::string::npos) << shown;
}

TEST_F(ChatTest, AtATerminalCtrlCClearsTheLineAndASecondOneLeaves) {
  const std::string model = save_model_files();
  int terminal = -1;
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(60);  // a test that hangs shall fail
    ::setenv("XDG_STATE_HOME", (scratch_.path() / "state").c_str(), 1);
    ::_exit(run_command_here({"chat", "--model", model, "--device", "cpu", "-t", "1", "-n", "4"}));
  }
  std::string shown;
  const auto wait_for = [&](const char* text) {
    char part[256];
    size_t found;
    while ((found = shown.find(text)) == std::string::npos) {
      const ssize_t n = ::read(terminal, part, sizeof part);
      if (n <= 0) return;
      shown.append(part, static_cast<size_t>(n));
    }
    shown.erase(0, found + std::strlen(text));  // what stands behind it may be waited for next
  };
  const auto type = [&](std::string_view text) {
    ASSERT_EQ(::write(terminal, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  };
  wait_for("> ");
  type("/set temp 0\n");
  wait_for("temp 0,");
  wait_for("> ");
  // Had the line not been cleared, this would be a command that there is not.
  type("/nonsense\x03/to\t\n");
  wait_for("the conversation has");
  wait_for("> ");
  type("\x03");
  wait_for("again leaves");
  type("\x03");
  char part[256];
  while (::read(terminal, part, sizeof part) > 0) {
  }
  ::close(terminal);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_NE(read_file(scratch_.path() / "state/mixtral/chat_history").find("/set"),
            std::string::npos);
}

TEST_F(ChatTest, OutputThatCannotBeWrittenIsAnError) {
  const std::string model = save_model_files();
  const fs::path said = scratch_.path() / "said.txt";
  const std::vector<std::string> generate{"generate", "--model",  model, "-p", "Hello",
                                          "-q",       "--device", "cpu", "-t", "1"};
  // Streamed and flushed, in one piece at the end, and more than a buffer holds.
  for (const std::vector<std::string>& more : {std::vector<std::string>{"-n", "8"},
                                               {"-n", "8", "--json"},
                                               {"--method", "generate_raw", "--top", "258"},
                                               {"--help"}}) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::vector<std::string> all = generate;
      all.insert(all.end(), more.begin(), more.end());
      ::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO);
      ::dup2(::open(said.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
      ::_exit(run_command_here(all));
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    SCOPED_TRACE(more.back());
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 1);
    EXPECT_EQ(read_file(said),
              "mixtral: cannot write to standard output; is the disk full or the reader gone?\n");
  }
}

TEST_F(ChatTest, ExactMatchCountsAnswersThatAreRightToTheLetter) {
  write_file(scratch_.path() / "q.jsonl",
             "{\"text\": \"###user: Who? ###Assistant: Mia\"}\n"
             "{\"prompt\": \"Who?\", \"completion\": \" Mia \"}\n"
             "{\"messages\": [{\"role\": \"user\", \"content\": \"Who?\"}, "
             "{\"role\": \"assistant\", \"content\": \"Tom\"}]}\n");
  QuestionRules rules;
  rules.records.chat_template = ChatTemplate::seed;
  auto questions = read_questions(scratch_.path() / "q.jsonl", tokenizer_, rules, 0);
  ASSERT_EQ(questions.size(), 3u);
  EXPECT_EQ(questions[0].text, "###user: Who? ###Assistant:");
  EXPECT_EQ(questions[0].answer, "Mia");
  EXPECT_EQ(questions[1].answer, "Mia");
  EXPECT_EQ(questions[2].prompt, questions[0].prompt);
  EXPECT_DOUBLE_EQ(most_common_share(questions), 2.0 / 3);

  Engine engine(*backend_, model_);
  const ExactMatch first = exact_match(engine, tokenizer_, questions, {.max_tokens = 6});
  ASSERT_EQ(first.answers.size(), 3u);
  for (size_t i = 0; i < 3; ++i) questions[i].answer = first.answers[i].given;
  questions[2].answer += "!";
  const ExactMatch second = exact_match(engine, tokenizer_, questions, {.max_tokens = 6});
  EXPECT_EQ(second.right, 2);
  EXPECT_FALSE(second.answers[2].right);
}

TEST_F(ChatTest, ConversationsAreScoredInTheModelsOwnTemplate) {
  const std::string model = save_model_files();
  const std::string data = (scratch_.path() / "chats.jsonl").string();
  write_file(data,
             R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yo"}]})"
             "\n");
  const auto positions = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"evaluate", "--model", model, "--data", data, "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome o = run_command(arguments);
    EXPECT_EQ(o.code, 0) << o.err;
    return Json::parse(o.out, "stdout").at("positions").as_int();
  };
  const int64_t seed = positions({});
  save_chat_template_name(model, ChatTemplate::mistral_v1);
  EXPECT_NE(positions({}), seed);  // its marks have other lengths
  EXPECT_EQ(positions({"--chat-template", "seed"}), seed);
}

TEST_F(ChatTest, QuestionsWithoutAnAnswerAreRefusedByLine) {
  write_file(scratch_.path() / "q.jsonl", "{\"text\": \"###user: Who?\"}\n");
  EXPECT_NE(message_of([&] {
              read_questions(scratch_.path() / "q.jsonl", tokenizer_, {}, 0);
            }).find("q.jsonl:1"),
            std::string::npos);
  write_file(scratch_.path() / "open.jsonl",
             R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": )"
             R"("Yo"}, {"role": "user", "content": "Who?"}]})"
             "\n");
  const std::string open =
      message_of([&] { read_questions(scratch_.path() / "open.jsonl", tokenizer_, {}, 0); });
  EXPECT_NE(open.find("open.jsonl:1: messages: the last turn is the user's"), std::string::npos)
      << open;
  write_file(scratch_.path() / "ids.jsonl", "{\"input_ids\": [1, 2]}\n");
  EXPECT_NE(message_of([&] {
              read_questions(scratch_.path() / "ids.jsonl", tokenizer_, {}, 0);
            }).find("response marker"),
            std::string::npos);
}

TEST_F(ChatTest, TheEvaluateCommandReportsMatchesAndChance) {
  const std::string model = save_model_files();
  write_file(scratch_.path() / "q.jsonl",
             "{\"text\": \"###user: Who? ###Assistant: Mia\"}\n"
             "{\"text\": \"###user: Where? ###Assistant: at home\", \"kind\": \"where\"}\n");
  write_file(scratch_.path() / "chance.json",
             "{\"guess\": 0.25, \"kinds\": {\"where\": {\"guess\": 0.5}}}\n");
  const Outcome o =
      run_command({"evaluate", "--model", model, "--data", (scratch_.path() / "q.jsonl").string(),
                   "--exact-match", "--json", "--device", "cpu", "-n", "4"});
  ASSERT_EQ(o.code, 0) << o.err;
  const Json json = Json::parse(o.out, "stdout");
  EXPECT_EQ(json.at("questions").as_int(), 2);
  EXPECT_EQ(json.at("chance").at("guess").as_double(), 0.25);
  EXPECT_EQ(json.at("chance").at("one_answer").as_double(), 0.5);
  EXPECT_EQ(json.at("answers").items()[1].at("expected").as_string(), "at home");
  EXPECT_EQ(json.at("kinds").at("where").at("questions").as_int(), 1);
  EXPECT_EQ(json.at("kinds").at("where").at("chance").as_double(), 0.5);
  const Outcome told = run_command(
      {"evaluate", "--model", model, "--stories", "2", "--json", "-n", "8", "--device", "cpu"});
  ASSERT_EQ(told.code, 0) << told.err;
  EXPECT_EQ(Json::parse(told.out, "stdout").at("told").items().size(), 2u);
  EXPECT_EQ(run_command({"evaluate", "--model", model}).code, 2);
}

TEST_F(ChatTest, AQuestionThatDoesNotFitIsNamedBeforeAnyIsAnswered) {
  const std::string data = (scratch_.path() / "q.jsonl").string();
  const auto ask = [&](size_t length) {
    write_file(data, "{\"prompt\": \"Who?\", \"completion\": \"Mia\"}\n{\"prompt\": \"" +
                         std::string(length, 'x') + "\", \"completion\": \"Mia\"}\n");
  };
  const std::string model = save_model_files();
  const auto evaluate = [&](const std::string& context) {
    return run_command({"evaluate", "--model", model, "--data", data, "--exact-match", "--device",
                        "cpu", "-n", "4", "--context", context});
  };
  ask(400);
  const Outcome o = evaluate("401");
  EXPECT_EQ(o.code, 1);
  EXPECT_NE(o.err.find("q.jsonl:2: the question's 401 tokens"), std::string::npos) << o.err;
  EXPECT_NE(o.err.find("--context"), std::string::npos) << o.err;
  EXPECT_EQ(evaluate("405").code, 0);  // as it advises
  ask(600);
  const Outcome longest = evaluate("0");  // the model's 512 positions
  EXPECT_EQ(longest.code, 1);
  EXPECT_NE(longest.err.find("q.jsonl:2: the question's 601 tokens"), std::string::npos);
  // None is answered, not even those before it.
  Engine engine(*backend_, model_);
  int64_t answered = 0;
  EXPECT_NE(message_of([&] {
              exact_match(engine, tokenizer_, read_questions(data, tokenizer_, {}, 0), {},
                          [&](int64_t) { ++answered; });
            }),
            "no error");
  EXPECT_EQ(answered, 0);
}

}  // namespace
}  // namespace mixtral
