#include "convert/convert_model.h"

#include <fmt/format.h>

#include "backends/registry.h"
#include "base/error.h"
#include "base/file.h"
#include "base/pending_directory.h"
#include "convert/compare_logits.h"
#include "convert/conversion.h"
#include "io/disk_space.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

// Nothing but the settings' real numbers, which GGUF has in f32, may differ where every weight is
// the same.
constexpr double kLosslessDifference = 1e-5;
constexpr uint64_t kBesideWeights = uint64_t{64} << 20;  // tokenizer, settings, receipt

bool is_file(ModelFormat format) { return format == ModelFormat::gguf; }

/// Opens what was written and compares it with the source.
LogitComparison compare(const ModelSource& source, const ConvertOptions& options,
                        const fs::path& written) {
  const ModelSource target = ModelSource::resolve({.model = written.string()});
  const auto backend = make_backend("cpu", options.threads);
  return compare_logits(*backend, {source.tensors(), source.config()},
                        {target.tensors(), target.config()});
}

void refuse_difference(const Receipt& receipt) {
  if (!receipt.logits.compared || !receipt.lossless) return;
  if (receipt.logits.difference <= kLosslessDifference) return;
  throw Error(fmt::format(
      "every number was kept, but the logits of {} and of its conversion differ by {:.1e} of the "
      "largest: nothing was written; report this",
      receipt.source, receipt.logits.difference));
}

}  // namespace

void check_target(const ModelSource& source, const ConvertOptions& options) {
  const fs::path& out = options.out;
  const bool named_file = out.extension() == ".gguf";
  if (is_file(options.to) != named_file)
    throw UsageError(fmt::format(
        "{}: {}", out.string(),
        named_file ? "expected a directory, because only gguf is one file; name one without .gguf"
                   : "expected a file name that ends in .gguf"));
  std::error_code error;
  if (!fs::exists(out, error)) return;
  const fs::path& from = source.tensors().path();
  if (fs::equivalent(out, from, error) || fs::equivalent(out, from.parent_path(), error))
    throw UsageError(fmt::format("{} is the model itself; choose another name", out.string()));
  if (fs::is_directory(out, error) == is_file(options.to))
    throw Error(fmt::format("{} is {}; choose another name", out.string(),
                            is_file(options.to) ? "a directory" : "no directory"));
  const bool empty = fs::is_directory(out, error) && fs::is_empty(out, error);
  if (!options.overwrite && !empty)
    throw AdvisedError("exists; choose another name, or replace it",
                       {.subject = {"out", out.string()},
                        .lead = "with",
                        .remedies = {{.setting = {"overwrite", ""}}}});
}

std::vector<OutputTensor> planned_tensors(const ModelSource& source,
                                          const ConvertOptions& options) {
  return Conversion(source, options, {}).outputs();
}

uint64_t planned_bytes(const ModelSource& source, const ConvertOptions& options) {
  return Conversion(source, options, {}).target_bytes();
}

Receipt convert_model(const ModelSource& source, const ConvertOptions& options,
                      const ConvertProgress& progress) {
  check_target(source, options);
  Conversion conversion(source, options, progress);
  require_disk_space(options.out, conversion.target_bytes() + kBesideWeights);
  PendingDirectory pending(options.out);
  const fs::path written =
      is_file(options.to) ? pending.path() / options.out.filename() : pending.path();
  if (is_file(options.to))
    write_gguf(conversion, written);
  else
    write_directory(conversion, written);
  Receipt receipt = conversion.finish();
  if (options.compare) receipt.logits = compare(source, options, written);
  refuse_difference(receipt);
  write_file(receipt_path(written), receipt.to_json());
  if (is_file(options.to)) {
    pending.commit_file(receipt_path(written).filename());
    pending.commit_file(written.filename());
  } else {
    pending.commit();
  }
  return receipt;
}

}  // namespace mixtral
