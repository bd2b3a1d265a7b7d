#include "convert/conversion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "model/checkpoint.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// The tensors that stand in files.
const TensorSource& tensors_in_files(const ModelSource& source, const ConvertOptions& options) {
  return (options.edit ? *options.edit->sources.front() : source).tensors();
}

std::map<std::string, std::string> files_of(const ModelSource& source, const GgufFile* gguf) {
  return gguf ? find_kept_files(gguf->header()) : kept_files(source.directory());
}

}  // namespace

Conversion::Conversion(const ModelSource& source, const ConvertOptions& options,
                       const ConvertProgress& progress)
    : source_(source),
      options_(options),
      progress_(progress),
      source_format_(format_of(tensors_in_files(source, options))),
      reader_(source.tensors(), source.config()),
      threads_(options.threads),
      packer_(reader_, threads_, options.calibration),
      outputs_(output_tensors(source.config(), options.to)),
      account_(source, options.edit) {
  check_weights(config(), source.tensors());
  refuse_what_cannot_be_said(config(), options.to);
  if (source_format_ == ModelFormat::gguf) {
    gguf_.emplace(source.tensors().path());
    known_ = find_original_types(gguf_->header());
  }
  kept_ = files_of(source, gguf());
  // That of an edited model describes the one that it was made of, perhaps a dense one.
  if (options.edit) kept_.erase("config.json");
  choose_types();
  receipt_.source = fs::absolute(source.tensors().path()).string();
  receipt_.source_format = name(source_format_);
  receipt_.target_format = name(options.to);
  receipt_.type = options.type.name() + (options.plan.empty() ? "" : ", mixed");
}

void Conversion::choose_types() {
  const bool wants_wide = options_.to == ModelFormat::gguf || options_.to == ModelFormat::mlx;
  for (OutputTensor& output : outputs_) {
    std::vector<std::optional<ops::WeightFormat>> formats;
    for (const TensorId& id : output.parts) {
      const auto known = known_.find(tensor_name(id));
      formats.push_back(known == known_.end() ? reader_.format(id) : std::optional(known->second));
    }
    const TensorId& first = output.parts.front();
    output.type = options_.type.of(first.kind, first.layer, config(), options_.to, formats);
    if (const auto own = options_.plan.find(output.name); own != options_.plan.end())
      output.type = own->second;
    if (wants_wide && output.type.format == ops::WeightFormat::f64)
      throw Error(fmt::format(
          "{}: tensor {} is in f64, which {} does not compute with; give a type, such as f32",
          source_.tensors().path().string(), tensor_name(first), name(options_.to)));
    // Only a wider type can be undone.
    for (size_t i = 0; i < formats.size(); ++i)
      if (output.type.dense() && formats[i] && formats[i]->dense() &&
          size_of(formats[i]->row().type) < size_of(output.type.format.row().type))
        original_.emplace(tensor_name(output.parts[i]), *formats[i]);
  }
  // Where the user names a type, that is what is wanted back, too.
  if (!options_.type.keeps()) original_.clear();
}

Dtype Conversion::dtype() const {
  std::map<Dtype, int64_t> numbers;
  for (const OutputTensor& output : outputs_)
    if (output.type.grouped() || output.type.dense())
      numbers[output.type.format.row().type] += output.count() * output.part_shape.numel();
  CHECK(!numbers.empty());
  return std::ranges::max_element(numbers, {}, [](const auto& item) { return item.second; })->first;
}

uint64_t Conversion::target_bytes() const {
  double bits = 0;
  for (const OutputTensor& output : outputs_)
    bits += static_cast<double>(output.count() * output.part_shape.numel()) *
            output.type.bits_per_weight(output.columns());
  return static_cast<uint64_t>(bits / 8);
}

std::string Conversion::transform_of(const OutputTensor& output, const TensorId& id,
                                     const PackedPart& part) {
  std::vector<std::string> steps;
  if (options_.edit)
    if (std::string words = options_.edit->words(id); !words.empty())
      steps.push_back(std::move(words));
  const auto at = account_.place(id);
  const TensorNaming from = at ? at->place.naming : naming_in(options_.to, id.kind);
  if (from.all_experts && !output.stacked) steps.push_back("expert taken out of a stack");
  if (!from.all_experts && output.stacked) steps.push_back("expert put into a stack");
  if (from.transposed) steps.push_back("transposed");
  const bool paired = from.row_order == TensorNaming::RowOrder::interleaved;
  if (paired != (output.heads > 0))
    steps.push_back(paired ? "rotary pairs half a head apart" : "rotary pairs as neighbours");
  const auto format = at ? stored_format(*at->entry) : reader_.format(id);
  if (!(format && is_stored_as(*format, output.type))) {
    const bool decoded = (!format || !format->dense()) && output.type.dense();
    steps.push_back((decoded        ? "decoded to "
                     : part.rounded ? "rounded to "
                                    : "kept exactly in ") +
                    output.type.name());
  }
  return steps.empty() ? "copied" : fmt::format("{}", fmt::join(steps, "; "));
}

PackedPart Conversion::pack(const OutputTensor& output, const TensorId& id) {
  ReceiptTensor row;
  account_.note(id, row);
  row.model = tensor_name(id);
  row.target = output.name;
  row.target_type = output.type.name();
  row.target_shape = output.dims();
  if (output.stacked) row.part = id.expert;
  const PackedPart part = packer_.pack(output, id);
  row.transform = transform_of(output, id, part);
  row.difference = part.difference;
  receipt_.lossless &= !part.rounded;
  // A file may ask for the pieces of a tensor one by one, and so have it packed several times.
  if (noted_.insert(id).second) receipt_.tensors.push_back(std::move(row));
  if (progress_) progress_(account_.done(), account_.total());
  return part;
}

void Conversion::note_target(const std::string& name, std::string type, std::vector<int64_t> shape,
                             const FileChecksum& sum) {
  receipt_.weight_bytes += sum.bytes;
  receipt_.targets[name] = {.type = std::move(type), .shape = std::move(shape), .sum = sum.hex()};
}

Receipt Conversion::finish() {
  std::set<std::string, std::less<>> models;
  for (const ReceiptTensor& tensor : receipt_.tensors) models.insert(tensor.model);
  for_each_tensor(config(), [&](const TensorId& id) {
    if (!models.contains(tensor_name(id))) receipt_.unaccounted.push_back(tensor_name(id));
  });
  account_.finish(receipt_);
  if (!receipt_.unaccounted.empty())
    throw Error(fmt::format("{} tensors of the model were not converted, {} the first",
                            receipt_.unaccounted.size(), receipt_.unaccounted.front()));
  return std::move(receipt_);
}

}  // namespace mixtral
