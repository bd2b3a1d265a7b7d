#include "convert/verify_conversion.h"

#include <fmt/format.h>

#include <map>
#include <set>

#include "backends/registry.h"
#include "base/error.h"
#include "base/pages.h"
#include "convert/compare_logits.h"
#include "io/gguf.h"
#include "io/safetensors.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

// Other processors may add in another order.
constexpr double kRepeated = 1e-3;

using Problems = std::vector<std::string>;

std::string sum_of(std::span<const std::byte> bytes) {
  const std::string sum = checksum(bytes).hex();
  release_pages(bytes);
  return sum;
}

/// The checksum of every tensor of the target's files, by name.
std::map<std::string, std::string> tensor_sums(const fs::path& target, const Receipt& receipt) {
  std::map<std::string, std::string> sums;
  std::error_code error;
  if (!fs::is_directory(target, error)) {
    const GgufFile file(target);
    for (const GgufEntry& entry : file.header().entries())
      sums[entry.name] = sum_of(file.bytes(entry));
    return sums;
  }
  for (const auto& [name, sum] : receipt.files) {
    if (!name.ends_with(".safetensors") || !fs::exists(target / name, error)) continue;
    const SafetensorsFile file(target / name);
    for (const SafetensorsEntry& entry : file.entries())
      sums[entry.name] = sum_of(file.bytes(entry));
  }
  return sums;
}

void check_tensors(const fs::path& target, const Receipt& receipt, Problems& problems) {
  const auto sums = tensor_sums(target, receipt);
  for (const auto& [name, noted] : receipt.targets) {
    const auto found = sums.find(name);
    if (found == sums.end())
      problems.push_back(fmt::format("the tensor {} is missing", name));
    else if (found->second != noted.sum)
      problems.push_back(fmt::format("the tensor {} has other bytes than were written", name));
  }
  for (const auto& [name, sum] : sums)
    if (!receipt.targets.contains(name))
      problems.push_back(fmt::format("the tensor {} is not in the receipt", printable(name)));
}

void check_files(const fs::path& target, const Receipt& receipt, Problems& problems) {
  std::error_code error;
  if (!fs::is_directory(target, error)) return;  // its tensors were checked, one by one
  for (const auto& [name, noted] : receipt.files) {
    if (name.ends_with(".safetensors")) continue;
    if (!fs::exists(target / name, error))
      problems.push_back(fmt::format("the file {} is missing", name));
    else if (checksum_file(target / name) != noted)
      problems.push_back(fmt::format("the file {} is not as it was written", name));
  }
}

void check_account(const ModelConfig& config, const Receipt& receipt, Problems& problems) {
  std::map<std::string, int> times;
  for (const ReceiptTensor& tensor : receipt.tensors) {
    ++times[tensor.model];
    if (!receipt.targets.contains(tensor.target))
      problems.push_back(fmt::format("{} went to {}, which the receipt does not list as written",
                                     tensor.model, tensor.target));
  }
  for_each_tensor(config, [&](const TensorId& id) {
    const int count = times[tensor_name(id)];
    if (count != 1)
      problems.push_back(fmt::format("{} is {} in the receipt", tensor_name(id),
                                     count == 0 ? "not" : "more than once"));
  });
  for (const std::string& name : receipt.unaccounted)
    problems.push_back(fmt::format("{} was not accounted for", name));
}

/// Checks one of the models that the receipt is of.
void check_source(const TensorSource& source, size_t number, const Receipt& receipt,
                  Problems& problems) {
  std::map<std::string, std::string> noted;
  for (const ReceiptTensor& tensor : receipt.tensors) {
    if (!tensor.source.empty() && tensor.source_model == number)
      noted[tensor.source] = tensor.source_sum;
    for (const ReceiptOrigin& other : tensor.others)
      if (other.source == number) noted[other.name] = other.sum;
  }
  for (const auto& [name, sum] : noted) {
    if (!source.find(name))
      problems.push_back(fmt::format("the source no longer has the tensor {}", name));
    else if (sum_of(source.raw(name)) != sum)
      problems.push_back(fmt::format("the source's tensor {} has changed", name));
  }
  std::set<std::string> left(receipt.unused.begin(), receipt.unused.end());
  if (number < receipt.edit.sources.size()) {
    const ReceiptSource& own = receipt.edit.sources[number];
    left = {own.unused.begin(), own.unused.end()};
    left.insert(own.dropped.begin(), own.dropped.end());
  }
  for (const std::string& name : source.names())
    if (!noted.contains(name) && !left.contains(name) && !source.raw(name).empty())
      problems.push_back(
          fmt::format("the source's tensor {} is not in the receipt", printable(name)));
}

/// Checks the models that an edited one was made of, as far as they are still there. Returns
/// whether all are.
bool check_edited(const Receipt& receipt, Problems& problems) {
  bool all = true;
  for (size_t i = 0; i < receipt.edit.sources.size(); ++i) {
    std::error_code error;
    const std::string& path = receipt.edit.sources[i].path;
    if (fs::exists(path, error))
      check_source(ModelSource::resolve({.model = path, .dense = true}).tensors(), i, receipt,
                   problems);
    else
      all = false;
  }
  return all;
}

void check_logits(const Receipt& receipt, const LogitComparison& logits, Problems& problems) {
  const double expected = receipt.logits.difference;
  if (logits.difference > expected + kRepeated)
    problems.push_back(
        fmt::format("the logits differ from the source's by {:.1e} of the largest, "
                    "where {:.1e} was measured",
                    logits.difference, expected));
}

}  // namespace

Verification verify_conversion(const fs::path& target, int threads) {
  const fs::path file = receipt_path(target);
  std::error_code error;
  if (!fs::exists(file, error))
    throw Error(fmt::format("{}: there is no receipt; a model that this program converted has one",
                            file.string()));
  Verification found{.receipt = Receipt::load(file)};
  const Receipt& receipt = found.receipt;
  check_tensors(target, receipt, found.problems);
  check_files(target, receipt, found.problems);
  const ModelSource model = ModelSource::resolve({.model = target.string()});
  check_account(model.config(), receipt, found.problems);
  std::optional<ModelSource> source;
  if (!receipt.edit.operation.empty()) {
    // Their logits are others: the receipt has those of what was to be written.
    found.source_present = check_edited(receipt, found.problems);
  } else if (fs::exists(receipt.source, error)) {
    source = ModelSource::resolve({.model = receipt.source});
    check_source(source->tensors(), 0, receipt, found.problems);
    found.source_present = true;
  }
  // Damaged weights are not worth running.
  if (!receipt.logits.compared || !found.problems.empty()) return found;
  const auto backend = make_backend("cpu", threads);
  const ModelWeights weights{model.tensors(), model.config()};
  found.logits = source ? compare_logits(*backend, {source->tensors(), source->config()}, weights)
                        : compare_logits(*backend, receipt.logits, weights);
  check_logits(receipt, found.logits, found.problems);
  return found;
}

}  // namespace mixtral
