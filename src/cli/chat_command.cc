#include "cli/chat_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/messages.h"
#include "base/numbers.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/line_editor.h"
#include "cli/run_config.h"
#include "cli/sampling_options.h"
#include "cli/speculation_options.h"
#include "data/record.h"
#include "infer/conversation.h"
#include "io/json.h"
#include "train/stop_signal.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kContext = 4096;  // at most, unless --context says otherwise

constexpr const char* kHelp =
    "/regenerate   take the last reply back and ask for another one\n"
    "/set NAME X   how replies are drawn: temp, top-k, top-p, min-p, repeat-penalty, max-tokens,\n"
    "              seed (alone: shows them)\n"
    "/tokens       how much of the context the conversation takes\n"
    "/reset        forget the conversation\n"
    "/system TEXT  what stands before the first turn (alone: shows it; /system - removes it)\n"
    "/history      show the conversation\n"
    "/save FILE    write it as a line {\"messages\"}, which finetune can learn from\n"
    "/load FILE    go on from a conversation that was saved so\n"
    "/exit         leave (or Ctrl-D)\n"
    "Ctrl-C stops a reply; at the prompt it clears the line, and a second one leaves. Tab "
    "completes\n"
    "commands. A line that ends in \\ goes on with the next one.";

const std::vector<std::string> kCommands = {"/regenerate", "/set",  "/tokens", "/reset", "/system",
                                            "/history",    "/save", "/load",   "/help",  "/exit"};

/// While it exists, Ctrl-C is only remembered, however often it comes.
class ReplyInterrupt {
 public:
  ReplyInterrupt() {
    pressed_ = 0;
    struct sigaction action{};
    action.sa_handler = [](int) { pressed_ = 1; };
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGINT, &action, &before_);
  }
  ~ReplyInterrupt() { ::sigaction(SIGINT, &before_, nullptr); }
  ReplyInterrupt(const ReplyInterrupt&) = delete;
  ReplyInterrupt& operator=(const ReplyInterrupt&) = delete;
  bool arrived() const { return pressed_ != 0; }

 private:
  static inline volatile std::sig_atomic_t pressed_ = 0;  // a signal handler reaches only globals
  struct sigaction before_{};
};

struct ChatOptions {
  CommonOptions common;
  SamplingOptions sampling;
  SpeculationFlags speculation;
  std::string model, adapter, tokenizer, chat_template, system;
  int64_t context = 0;
};

void save_conversation(const Conversation& conversation, const std::string& path) {
  ordered_json messages = ordered_json::array();
  for (const Message& message : conversation.messages())
    messages.push_back({{"role", message.role}, {"content", message.content}});
  write_file(path, ordered_json{{"messages", messages}}.dump(
                       -1, ' ', false, ordered_json::error_handler_t::replace) +
                       "\n");
}

class Chat {
 public:
  Chat(const ChatOptions& options, Conversation& conversation, int64_t context)
      : o_(options),
        conversation_(conversation),
        context_(context),
        editor_({.commands = kCommands, .history = state_file("chat_history")}) {}

  void run() {
    if (editor_.interactive()) note("/help lists the commands");
    while (auto line = editor_.read("> ")) {
      const size_t begin = line->find_first_not_of(" \t");
      if (begin == std::string::npos) continue;
      *line = line->substr(begin);
      try {
        if (line->front() != '/')
          reply([&](const TextSink& sink, const std::function<bool()>& cancelled) {
            return conversation_.say(*line, sink, cancelled);
          });
        else if (!obey(*line))
          return;
      } catch (const Error& error) {
        // Said, and the conversation goes on; where nobody can type again, it is a failure.
        if (!editor_.interactive()) throw;
        messages::line(error.what());  // also where notes are silenced
      }
    }
    if (editor_.interactive()) fmt::print("\n");
  }

 private:
  void note(std::string_view text) const { say(o_.common, text); }

  /// Returns whether the conversation goes on.
  bool obey(const std::string& line) {
    const size_t space = std::min(line.find(' '), line.size());
    const std::string command = line.substr(0, space);
    std::string rest = line.substr(space);
    rest.erase(0, std::min(rest.find_first_not_of(' '), rest.size()));
    if (command == "/exit" || command == "/quit" || command == "/bye") return false;
    if (command == "/reset") {
      conversation_.reset();
      note("the conversation is forgotten");
    } else if (command == "/system") {
      if (!rest.empty()) conversation_.set_system(rest == "-" ? "" : rest);
      note(conversation_.system().empty() ? "there is no system text"
                                          : "system: " + conversation_.system());
    } else if (command == "/history") {
      for (const Message& message : conversation_.messages())
        fmt::print("{}: {}\n", message.role, message.content);
    } else if (command == "/save") {
      if (rest.empty()) throw Error("/save needs a file's name");
      save_conversation(conversation_, rest);
      note("saved " + rest);
    } else if (command == "/load") {
      if (rest.empty()) throw Error("/load needs a file's name");
      load_conversation(rest);
    } else if (command == "/regenerate") {
      reply([&](const TextSink& sink, const std::function<bool()>& cancelled) {
        return conversation_.regenerate(sink, cancelled);
      });
    } else if (command == "/set") {
      set(rest);
    } else if (command == "/tokens") {
      note(fmt::format("the conversation has {} tokens; the context holds {}",
                       conversation_.all_tokens(), context_));
    } else if (command == "/help") {
      if (!o_.common.quiet) messages::lines(kHelp);
    } else {
      throw Error(fmt::format("there is no command {}; /help lists them", command));
    }
    std::fflush(stdout);
    return true;
  }

  void load_conversation(const std::string& path) {
    const std::string text = read_file(path, uint64_t{64} << 20);
    // A reply may hold what records may not: a NUL that a young model has drawn.
    const std::string line = mend_line(std::string_view(text).substr(0, text.find('\n')));
    Record record = parse_record(line, path, {.chat_template = conversation_.chat_template()});
    if (record.kind != RecordKind::messages)
      throw Error(fmt::format("{}: holds no conversation; expected a line {{\"messages\"}}", path));
    conversation_.load(std::move(record.messages));
    note(fmt::format("loaded {} turns from {}", conversation_.messages().size(), path));
  }

  /// "temp 0.5"; nothing: shows what is set.
  void set(const std::string& text) {
    GenerationOptions& tokens = conversation_.options().tokens;
    ops::SamplingSettings& sampling = tokens.sampling;
    const size_t space = std::min(text.find_first_of(" ="), text.size());
    const std::string name = text.substr(0, space);
    if (!name.empty()) {
      const auto number = [&](double least, double most) {
        const std::string value = text.substr(std::min(space + 1, text.size()));
        const auto result = parse_number(value);
        if (!result || !(*result >= least && *result <= most))
          throw Error(fmt::format("/set {}: expected {} to {}, found \"{}\"", name, least, most,
                                  printable(value)));
        return *result;
      };
      const auto whole = [&](double least, double most) {
        const double value = number(least, most);
        if (value != std::floor(value))
          throw Error(fmt::format("/set {}: expected a whole number, found {}", name, value));
        return static_cast<int64_t>(value);
      };
      if (name == "temp" || name == "temperature")
        sampling.temperature = static_cast<float>(number(0, 100));
      else if (name == "top-k")
        sampling.top_k = static_cast<int32_t>(whole(0, 1 << 30));
      else if (name == "top-p")
        sampling.top_p = static_cast<float>(number(0, 1));
      else if (name == "min-p")
        sampling.min_p = static_cast<float>(number(0, 1));
      else if (name == "repeat-penalty")
        sampling.repeat_penalty = static_cast<float>(number(0.01, 100));
      else if (name == "max-tokens")
        tokens.max_tokens = whole(1, 1 << 30);
      else if (name == "seed")
        sampling.seed = static_cast<uint64_t>(whole(0, 1e15));
      else
        throw Error(
            fmt::format("/set: there is no {}; /help lists what there is", printable(name)));
    }
    note(
        fmt::format("temp {:g}, top-k {}, top-p {:g}, min-p {:g}, repeat-penalty {:g}, max-tokens "
                    "{}, seed {}",
                    sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p,
                    sampling.repeat_penalty, tokens.max_tokens, sampling.seed));
  }

  using Ask = std::function<GeneratedText(const TextSink&, const std::function<bool()>&)>;

  GeneratedText stream(const Ask& ask, const std::function<bool()>& cancelled) {
    GeneratedText reply = ask(
        [](std::string_view piece) {
          std::fwrite(piece.data(), 1, piece.size(), stdout);
          std::fflush(stdout);
        },
        cancelled);
    fmt::print("\n");
    std::fflush(stdout);
    return reply;
  }

  void reply(const Ask& ask) {
    GeneratedText reply;
    if (editor_.interactive()) {
      const ReplyInterrupt interrupt;
      reply = stream(ask, [&] { return interrupt.arrived(); });
    } else {
      const StopSignal stop;
      reply = stream(ask, [&] { return stop.arrived() != 0; });
      if (stop.arrived() != 0) throw ExitStatus{128 + stop.arrived()};
    }
    if (conversation_.forgotten() > 0)
      note(fmt::format("(the first {} turns no longer fit the context of {} tokens)",
                       conversation_.forgotten(), context_));
    if (reply.text.empty()) {
      note("(no reply; that turn is taken back)");
      return;
    }
    const auto decoded = static_cast<double>(reply.tokens.size()) - 1;
    const std::string rate = decoded > 0 && reply.decode_seconds > 0
                                 ? fmt::format(", {:.1f} tok/s", decoded / reply.decode_seconds)
                                 : "";
    if (editor_.interactive())
      note(fmt::format("[{} tokens{}; {} of {} tokens of context{}]", reply.tokens.size(), rate,
                       conversation_.tokens(), context_,
                       reply.reason == FinishReason::cancelled ? "; stopped"
                       : reply.reason == FinishReason::length  ? "; cut off at --max-tokens"
                                                               : ""));
  }

  const ChatOptions& o_;
  Conversation& conversation_;
  int64_t context_;
  LineEditor editor_;
};

void run_chat(const ChatOptions& o) {
  const ModelSource source = open_source(o.common, {o.model, o.adapter, o.tokenizer});
  const auto tokenizer = source.require_tokenizer();
  ChatTemplate chat = ChatTemplate::mistral_v1;
  std::optional<OwnChatTemplate> own;
  if (!o.chat_template.empty())
    chat = parse_chat_template(o.chat_template);
  else if (const auto noted = source.chat_template())
    chat = *noted;
  else if (own = source.own_chat_template(); own)
    say(o.common, fmt::format("the chat template is the model's own ({})", own->source()));
  else
    say(o.common, fmt::format("the model does not say how it was taught to converse; trying "
                              "--chat-template {}",
                              name(chat)));
  const int64_t context =
      o.context > 0 ? o.context : std::min(source.config().max_positions, kContext);
  OpenOptions open_options = o.common.open_options(context);
  o.speculation.apply(open_options);
  const OpenedModel open = open_model(o.common, source, open_options);
  Engine engine(*open.backend, *open.model, open.engine_options());
  TextOptions options = o.sampling.text_options(o.common.seed, source.stop_ids());
  Conversation conversation = own ? Conversation(engine, *tokenizer, *own, std::move(options))
                                  : Conversation(engine, *tokenizer, chat, std::move(options));
  conversation.set_system(o.system);
  Chat(o, conversation, context).run();
}

}  // namespace

void add_chat_command(cli::App& app) {
  auto o = std::make_shared<ChatOptions>();
  o->sampling.max_tokens = 512;
  o->sampling.temperature = 0.7f;
  cli::App* command = app.add_subcommand("chat", "Converse with a model in the terminal");
  command->footer(std::string("In the conversation:\n") + kHelp +
                  "\n\nExample: mixtral chat --model runs/qa --chat-template seed --temp 0\n");
  command->add_option("-m,--model", o->model, "A model directory, or a run (also of an adapter)")
      ->required();
  command->add_option("--adapter,--lora", o->adapter, "A LoRA adapter directory (PEFT or mlx-lm)");
  command->add_option("--tokenizer", o->tokenizer, "Another tokenizer than the model's own");
  command
      ->add_option("--chat-template", o->chat_template,
                   "mistral-v1, mistral-hf-old, or seed (###user: ... ###Assistant:); default: "
                   "what the model was trained with")
      ->check(cli::IsMember({"mistral-v1", "mistral-hf-old", "seed"}));
  command->add_option("--system", o->system, "What stands before the first turn");
  command->add_option("-c,--context", o->context, "Tokens of context; 0: the model's, at most 4096")
      ->check(count_between(0, kMostContext));
  o->sampling.add_to(*command);
  o->speculation.add_to(*command);
  o->common.add_model_flags(*command);
  o->common.add_expert_memory(*command);
  o->common.add_cache_dtype(*command);
  o->common.add_to(*command);
  command->remove_option(command->get_option("--json"));  // a conversation is text
  command->callback([o] { run_chat(*o); });
}

}  // namespace mixtral
