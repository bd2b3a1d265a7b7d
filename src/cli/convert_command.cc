#include "cli/convert_command.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/detailed_error.h"
#include "cli/common.h"
#include "cli/conversion_output.h"
#include "convert/verify_conversion.h"
#include "convert/write_adapter.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

struct ConvertCommandOptions : TargetOptions {
  std::string model, adapter, to, type, verify;
};

ordered_json summary(const Receipt& receipt, const std::string& out) {
  ordered_json json{{"out", out},
                    {"receipt", receipt_path(out).string()},
                    {"tensors", receipt.tensors.size()},
                    {"written", receipt.targets.size()},
                    {"lossless", receipt.lossless}};
  if (receipt.logits.compared) {
    json["logits_difference"] = receipt.logits.difference;
    json["top_agreement"] = receipt.logits.top_agreement;
  }
  return json;
}

void run_verify(const ConvertCommandOptions& o) {
  const Verification found = verify_conversion(o.verify, o.common.threads);
  if (!found.problems.empty()) {
    std::string lines;
    for (const std::string& problem : found.problems) lines += problem + "\n";
    throw DetailedError(
        fmt::format("{} is not as its receipt says, in {} places; convert the model again",
                    o.verify, found.problems.size()),
        lines);
  }
  if (o.common.json) {
    ordered_json json = summary(found.receipt, o.verify);
    json["source_present"] = found.source_present;
    if (found.logits.compared) json["logits_difference"] = found.logits.difference;
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{}: {} tensors are as the receipt says\n", o.verify, found.receipt.targets.size());
  fmt::print("{}\n", found.source_present
                         ? fmt::format("the source, {}, is unchanged", found.receipt.source)
                         : fmt::format("the source, {}, is not there any more; logits were "
                                       "compared with the receipt's",
                                       found.receipt.source));
  if (found.logits.compared) fmt::print("{}\n", in_words(found.logits));
}

void run_adapter(const ConvertCommandOptions& o) {
  if (!o.type.empty()) throw UsageError("--type: adapters are written in f32");
  const AdapterFormat to = parse_adapter_format(o.to);
  // Without a base that is named, the one that the adapter names.
  const ModelSource source = open_source(
      o.common, o.model.empty() ? ModelSource::Names{.model = o.adapter, .setting = "adapter"}
                                : ModelSource::Names{.model = o.model, .adapter = o.adapter});
  const auto adapter = source.load_adapter();
  if (!adapter) throw UsageError(fmt::format("--adapter {} is no adapter", o.adapter));
  std::error_code error;
  if (std::filesystem::exists(o.out, error))
    throw Error(fmt::format("--out {} exists; choose another name", o.out));
  if ((to == AdapterFormat::gguf) != (std::filesystem::path(o.out).extension() == ".gguf"))
    throw UsageError(
        fmt::format("--out {}: expected {}", o.out,
                    to == AdapterFormat::gguf ? "a name that ends in .gguf" : "a directory"));
  const int64_t tensors = write_adapter(*adapter, source.config(), to, o.out);
  if (o.common.json)
    fmt::print("{}\n", ordered_json{{"out", o.out}, {"tensors", tensors}}.dump());
  else
    fmt::print("{}: {} tensors, which read again give the same updates\n", o.out, tensors);
}

void run_convert(const ConvertCommandOptions& o) {
  if (!o.verify.empty()) {
    if (!o.model.empty() || !o.adapter.empty() || !o.to.empty() || !o.out.empty() ||
        !o.type.empty())
      throw UsageError(
          "--verify checks what was converted: it goes without --model, --to, --type "
          "and --out");
    return run_verify(o);
  }
  const std::string& source_name = o.adapter.empty() ? o.model : o.adapter;
  for (const auto& [flag, value] :
       {std::pair("--model", &source_name), std::pair("--to", &o.to), std::pair("--out", &o.out)})
    if (value->empty()) throw UsageError(fmt::format("{} is missing", flag));
  if (!o.adapter.empty()) return run_adapter(o);
  const ModelFormat to = parse_model_format(o.to);
  const ModelSource source = open_source(o.common, {.model = o.model});
  source.refuse_adapter();
  const ConvertOptions options{.to = to,
                               .type = TypeChoice(o.type, to, o.group_size),
                               .out = o.out,
                               .overwrite = o.overwrite,
                               .vocabulary = !o.no_tokenizer,
                               .compare = !o.no_check,
                               .threads = o.common.threads};
  if (o.overwrite) refuse_foreign(o.out);
  const Receipt receipt = convert_model(source, options, conversion_progress(o.common));
  if (o.common.json)
    fmt::print("{}\n", summary(receipt, o.out).dump());
  else
    print_receipt(receipt, o.out);
}

}  // namespace

void add_convert_command(cli::App& app) {
  auto o = std::make_shared<ConvertCommandOptions>();
  cli::App* command = app.add_subcommand(
      "convert", "Write a model for other programs: GGUF, MLX, Mistral's or Hugging Face's files");
  command->footer(
      "Without --type each tensor keeps its type, and nothing is lost on the way there and back.\n"
      "Every conversion leaves a receipt: what became of each tensor, and how logits compare.\n"
      "Example: mixtral convert --model DIR --to gguf --type q8_0 --out model.gguf\n"
      "         mixtral convert --model model.gguf --to hf --out DIR\n"
      "         mixtral convert --verify model.gguf\n"
      "         mixtral convert --adapter runs/tuned --to gguf --out tuned.gguf\n");
  command->add_option("-m,--model", o->model, "The model: a directory, a .gguf file or a run");
  command->add_option("--adapter,--lora", o->adapter,
                      "Write this adapter instead, of --model or of the model that it names");
  command->add_option("--to", o->to, "hf, gguf, mlx or mistral; of an adapter also peft");
  command->add_option("--type", o->type,
                      "Type of the weights: f32, f16 or bf16; in GGUF also q8_0, q6_k, q5_k_m, "
                      "q4_k_m, q4_0 and others; in MLX also int8 and int4");
  command->add_option("-o,--out", o->out, "What to write: FILE.gguf, or a directory");
  command->add_option("--verify", o->verify,
                      "Check a converted model against its receipt, and nothing else");
  o->add_to(*command);
  command->callback([o] { run_convert(*o); });
}

}  // namespace mixtral
