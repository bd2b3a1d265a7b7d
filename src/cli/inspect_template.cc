#include "cli/inspect_template.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/printable.h"
#include "cli/common.h"
#include "cli/data_command.h"
#include "cli/run_config.h"
#include "cli/terminal.h"
#include "data/template_view.h"
#include "eval/expert_page.h"
#include "eval/html.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

struct Options {
  CommonOptions common;
  std::string model, adapter, tokenizer, data, split = "train", html;
  std::optional<std::string> chat_template;
  std::string response_marker = "###Assistant:";
  int64_t record = 0, records = 3, context = 0;
  bool mask_prompt = false;
};

/// A line of the data file with its sequences.
struct ViewedRecord {
  int64_t line = 0;  // from 1
  std::vector<TemplateView> views;
};

Split parse_split(std::string_view name) {
  for (const Split split : kSplits)
    if (split_name(split) == name) return split;
  throw UsageError(fmt::format("--split {}: no such split", printable(name)));
}

std::filesystem::path data_file(const Options& o) {
  const DataFiles files = DataFiles::find(o.data);
  if (!files.texts.empty())
    throw UsageError(fmt::format("--data {}: a folder of texts; name one file of it", o.data));
  if (files.single) return files.train;
  const Split split = parse_split(o.split);
  if (files[split].empty())
    throw UsageError(fmt::format("--data {}: has no {} split", o.data, split_name(split)));
  return files[split];
}

std::string title(const ViewedRecord& record, const TemplateView& view) {
  return fmt::format("line {}: {{{}}}{}", record.line, record_kind_name(view.kind),
                     view.answer.empty() ? "" : ", " + view.answer);
}

std::string summary(const TemplateView& view) {
  const auto length = static_cast<int64_t>(view.ids.size());
  return fmt::format(
      "{} tokens, {} learnt, {} BOS, {} EOS; {}", view.kept, view.learnt_tokens, view.bos, view.eos,
      view.kept < length ? fmt::format("{} cut off", length - view.kept) : "nothing is cut off");
}

enum class Part { masked, learnt, cut };
constexpr std::string_view kPartNames[] = {"masked", "learnt", "cut"};

Part part_of(const TemplateView& view, size_t i) {
  if (static_cast<int64_t>(i) >= view.kept) return Part::cut;
  return view.learnt[i] != 0 ? Part::learnt : Part::masked;
}

bool is_control(const Tokenizer* tokenizer, int32_t id) {
  return tokenizer != nullptr && id >= 0 && id < tokenizer->vocab_size() &&
         tokenizer->is_control(id);
}

/// Calls `run` with the bounds of each stretch of tokens of one part.
template <typename Run>
void for_each_part(const TemplateView& view, const Run& run) {
  for (size_t begin = 0, end = 0; begin < view.ids.size(); begin = end) {
    const Part part = part_of(view, begin);
    while (end < view.ids.size() && part_of(view, end) == part) ++end;
    run(part, begin, end);
  }
}

/// The labels and ids of all tokens; a new line begins where the part changes.
std::string terminal_text(const TemplateView& view, const Tokenizer* tokenizer, bool colour) {
  constexpr std::string_view kColours[] = {"\x1b[2m", "\x1b[32m", "\x1b[31m"};
  std::string text;
  for_each_part(view, [&](Part part, size_t begin, size_t end) {
    const auto p = static_cast<size_t>(part);
    text += fmt::format("  {:<7}", kPartNames[p]);
    for (size_t i = begin; i < end; ++i) {
      const int32_t id = view.ids[i];
      const bool known = tokenizer != nullptr && id < tokenizer->vocab_size();
      const std::string label =
          known ? fmt::format("{}({})", escaped(tokenizer->label(id)), id) : std::to_string(id);
      if (!colour)
        text += " " + label;
      else
        text += fmt::format(" {}{}{}\x1b[0m", kColours[p],
                            is_control(tokenizer, id) ? "\x1b[1m" : "", label);
    }
    text += '\n';
  });
  return text;
}

void print_records(const std::vector<ViewedRecord>& records, const Tokenizer* tokenizer) {
  const bool colour = terminal_style(STDOUT_FILENO).colour;
  for (const ViewedRecord& record : records) {
    for (const TemplateView& view : record.views) {
      put(fmt::format("{}\n  {}\n", title(record, view), summary(view)));
      for (const std::string& warning : view.warnings)
        put(fmt::format("  warning: {}\n", escaped(warning)));
      put(terminal_text(view, tokenizer, colour) + "\n");
    }
  }
}

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --ink: #1d2127; --soft: #626a76; --line: #d9dce2;
  --page: #fbfbfc; --box: #fff; --learnt: #c9ecd2; --cut: #f6d0cd; --warn: #a33b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa3b1; --line: #3a404a;
  --page: #16181c; --box: #1e2126; --learnt: #1d4a2c; --cut: #5a2522; --warn: #ff9c5e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 24px 16px 48px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 28px 0 2px; }
p { margin: 2px 0 8px; } .soft { color: var(--soft); } .warning { color: var(--warn); }
.tokens { white-space: pre-wrap; background: var(--box); border: 1px solid var(--line);
  border-radius: 6px; padding: 12px 14px;
  font: 14px/1.8 ui-monospace, "DejaVu Sans Mono", monospace; }
.t { border-right: 1px solid var(--line); border-radius: 2px; padding: 1px 0; }
.masked { color: var(--soft); } .learnt { background: var(--learnt); }
.cut { background: var(--cut); text-decoration: line-through; } .control { font-weight: 700; }
)";

std::string html_tokens(const TemplateView& view, const Tokenizer* tokenizer) {
  std::string html;
  for_each_part(view, [&](Part part, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const int32_t id = view.ids[i];
      std::string text = html_escaped(token_text(tokenizer, id));
      if (const size_t line_end = text.find('\n'); line_end != std::string::npos)
        text.insert(line_end, "↵");
      html += fmt::format("<span class=\"t {}{}\" title=\"{}\">{}</span>",
                          kPartNames[static_cast<size_t>(part)],
                          is_control(tokenizer, id) ? " control" : "", id, text);
      if (tokenizer == nullptr) html += ' ';
    }
  });
  return html;
}

std::string html_page(const Options& o, const std::vector<ViewedRecord>& records,
                      const Tokenizer* tokenizer) {
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>Records as {0} learns them</title>\n<style>{1}</style></head><body>\n"
      "<h1>Records as training sees them</h1>\n"
      "<p class=\"soft\">Model {0}, data {2}. A token of "
      "<span class=\"t learnt\">this colour</span> is learnt, "
      "<span class=\"t masked\">this</span> is masked, and <span class=\"t cut\">this</span> is "
      "cut "
      "off. Control tokens are bold. Point at a token for its id.</p>\n",
      html_escaped(o.model), kStyle, html_escaped(o.data));
  for (const ViewedRecord& record : records) {
    for (const TemplateView& view : record.views) {
      html += fmt::format("<h2>{}</h2>\n<p class=\"soft\">{}</p>\n",
                          html_escaped(title(record, view)), summary(view));
      for (const std::string& warning : view.warnings)
        html += fmt::format("<p class=\"warning\">Warning: {}</p>\n", html_escaped(warning));
      html += fmt::format("<div class=\"tokens\">{}</div>\n", html_tokens(view, tokenizer));
    }
  }
  return html + "</body></html>\n";
}

ordered_json to_json(const std::vector<ViewedRecord>& records) {
  ordered_json list = ordered_json::array();
  for (const ViewedRecord& record : records) {
    for (const TemplateView& view : record.views) {
      ordered_json row{{"line", record.line}, {"kind", record_kind_name(view.kind)}};
      if (!view.answer.empty()) row["answer"] = view.answer;
      row["ids"] = view.ids;
      row["learnt"] = view.learnt;
      row["kept"] = view.kept;
      row["learnt_tokens"] = view.learnt_tokens;
      row["bos"] = view.bos;
      row["eos"] = view.eos;
      row["warnings"] = view.warnings;
      list.push_back(std::move(row));
    }
  }
  return list;
}

/// The template for conversations: the one asked for, else the one that the model was trained
/// with; `own` is set where the model brings another, which training cannot use.
ChatTemplate conversation_template(const Options& o, const ModelSource& source,
                                   std::optional<OwnChatTemplate>& own) {
  if (o.chat_template) return parse_chat_template(*o.chat_template);
  if (const auto noted = source.chat_template()) return *noted;
  if (!source.tokenizer()) return {};
  own = source.own_chat_template();
  if (!own) return {};
  const auto builtin = own->builtin();
  if (builtin) own.reset();
  return builtin.value_or(ChatTemplate{});
}

void run_template(const Options& o) {
  const ModelSource source = open_source(o.common, {o.model, o.adapter, o.tokenizer});
  source.check_tokenizer();
  const std::shared_ptr<const Tokenizer> tokenizer = source.tokenizer();
  EncodeOptions encode;
  std::optional<OwnChatTemplate> own;
  encode.rules = {source.config().vocab_size, conversation_template(o, source, own)};
  encode.mask_prompt = o.mask_prompt;
  encode.response_marker = o.response_marker;
  const RecordFile file(data_file(o));
  if (file.is_plain_text())
    throw UsageError(fmt::format(
        "{}: plain text is cut into windows without a template; name a file of records (.jsonl)",
        file.path().string()));
  if (o.record >= file.lines())
    throw UsageError(fmt::format("--record {}: {} has {} lines, and the first is record 0",
                                 o.record, file.path().string(), file.lines()));
  std::vector<ViewedRecord> records;
  const int64_t end = o.records == 0 ? file.lines() : std::min(file.lines(), o.record + o.records);
  for (int64_t i = o.record; i < end; ++i) {
    const std::string where = file.source(i);
    const Record record = parse_record(file.line(i), where, encode.rules);
    if (own &&
        (record.kind == RecordKind::messages || record.kind == RecordKind::preference_messages))
      throw Error(fmt::format(
          "{}: a conversation, and the model's own chat template ({}, with {}) is none of those "
          "that are trained with; name one with --chat-template mistral-v1, mistral-hf-old or seed",
          where, own->source(), fmt::join(own->markers(), " ")));
    records.push_back({i + 1, view_record(record, tokenizer.get(), encode, o.context, where)});
  }
  if (!o.html.empty()) write_file(o.html, html_page(o, records, tokenizer.get()));
  if (o.common.json)
    put(to_json(records).dump() + "\n");
  else
    print_records(records, tokenizer.get());
}

}  // namespace

void add_inspect_template(cli::App& inspect) {
  auto o = std::make_shared<Options>();
  cli::App* command = inspect.add_subcommand(
      "template", "Records as training sees them: tokens, loss mask, what is cut off");
  command->footer(
      "Examples:\n"
      "  mixtral inspect template --model runs/first --data data/finetune_data --mask-prompt\n"
      "  mixtral inspect template --model runs/first --data chats.jsonl --context 256 --html "
      "view.html\n");
  command->add_option("-m,--model", o->model, "A model directory, a .gguf file or a run")
      ->required();
  command->add_option("--adapter,--lora", o->adapter, "A LoRA adapter directory (PEFT or mlx-lm)");
  command->add_option("--tokenizer", o->tokenizer, "Another tokenizer than the model's own");
  command
      ->add_option("--data", o->data,
                   "A directory with train, val and test, or one file of records")
      ->required();
  command->add_option("--split", o->split, "Of a directory: train, val or test")
      ->capture_default_str()
      ->check(cli::IsMember({"train", "val", "test"}));
  command->add_option("--record", o->record, "The first record to show, from 0")
      ->capture_default_str()
      ->check(at_least(0));
  command->add_option("--records", o->records, "Show so many records; 0: all")
      ->capture_default_str()
      ->check(at_least(0));
  command
      ->add_option("--context,-c", o->context,
                   "Tokens of a row, behind which records are cut off; 0: as long as the record")
      ->capture_default_str()
      ->check(at_least(0));
  command->add_flag("--mask-prompt", o->mask_prompt,
                    "Texts: learn only what follows the response marker");
  command->add_option("--response-marker", o->response_marker, "What the answer follows in a text")
      ->capture_default_str();
  command->add_option("--chat-template", o->chat_template,
                      "Of messages: mistral-v1, mistral-hf-old or seed; default: the model's");
  command->add_option("--html", o->html, "Write a page with coloured tokens to this file");
  command->add_flag("--quiet,-q", o->common.quiet, "No notes on standard error");
  command->add_flag("--json", o->common.json, "As JSON");
  command->callback([o] { run_template(*o); });
}

}  // namespace mixtral
