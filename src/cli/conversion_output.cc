#include "cli/conversion_output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <memory>

#include "base/messages.h"
#include "cli/model_directory.h"
#include "model/memory_plan.h"

namespace mixtral {

void TargetOptions::add_to(cli::App& command) {
  command.add_option("--group-size", group_size, "Columns of a group of int8 and int4")
      ->capture_default_str();
  command.add_flag("--overwrite", overwrite, "Replace what --out names");
  command.add_flag("--no-check", no_check, "Do not compare the logits of source and result");
  command.add_flag("--no-tokenizer", no_tokenizer, "Write a GGUF file without a vocabulary");
  common.add_to(command);
  for (const char* meaningless : {"--dtype", "--seed", "--device", "--rope-frequencies"})
    command.remove_option(command.get_option(meaningless));
}

ConvertProgress conversion_progress(const CommonOptions& common) {
  if (common.quiet || ::isatty(STDERR_FILENO) == 0) return {};
  using Clock = std::chrono::steady_clock;
  const auto last = std::make_shared<Clock::time_point>();
  return [last](uint64_t done, uint64_t total) {
    const auto now = Clock::now();
    if (done >= total) {
      messages::clear();
      return;
    }
    if (now - *last < std::chrono::milliseconds(200)) return;
    *last = now;
    messages::redraw(fmt::format("{} of {} read", format_bytes(static_cast<int64_t>(done)),
                                 format_bytes(static_cast<int64_t>(total))));
  };
}

void refuse_foreign(const std::string& out) {
  std::error_code error;
  if (!std::filesystem::is_directory(out, error)) return;
  if (const auto foreign = first_foreign_entry(out))
    throw Error(
        fmt::format("--out {} also holds {}, which is no model's file, so --overwrite does not "
                    "replace the directory; move that away or choose another --out",
                    out, foreign->filename().string()));
}

std::string in_words(const LogitComparison& logits) {
  if (logits.difference == 0) return "logits of source and result are the same, bit for bit";
  return fmt::format(
      "logits of source and result differ by {:.1e} of the largest, and {:.0f}% of the most likely "
      "tokens are the same, over {} tokens",
      logits.difference, 100 * logits.top_agreement, logits.tokens.size());
}

void print_receipt(const Receipt& receipt, const std::string& out) {
  uint64_t bytes = 0;
  for (const auto& [name, sum] : receipt.files) bytes += sum.bytes;
  std::map<std::string, int> types;
  for (const ReceiptTensor& tensor : receipt.tensors) ++types[tensor.target_type];
  std::string kinds;
  for (const auto& [type, count] : types)
    kinds += fmt::format("{}{} in {}", kinds.empty() ? "" : ", ", count, type);
  fmt::print("{}: {} tensors of {} in {} of {}, {} ({})\n", out, receipt.tensors.size(),
             receipt.source_format, receipt.targets.size(), receipt.target_format,
             format_bytes(static_cast<int64_t>(bytes)), kinds);
  fmt::print("{}\n", receipt.lossless ? "every number is as it was"
                                      : "numbers were rounded to the types above");
  if (receipt.logits.compared) fmt::print("{}\n", in_words(receipt.logits));
  fmt::print("receipt: {}\n", receipt_path(out).string());
}

}  // namespace mixtral
