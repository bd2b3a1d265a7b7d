#include "model/base_copies.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "io/convert.h"
#include "io/json.h"
#include "model/open_tensors.h"
#include "model/tensor_names.h"

namespace mixtral {
namespace {

constexpr std::string_view kRemedy =
    "this program adds low-rank updates to the base and replaces none of its tensors; merge the "
    "adapter in PEFT (merge_and_unload) and use the merged model";

/// The name of a model's tensor, without the wrappers that PEFT puts around modules.
std::string plain_name(std::string_view name) {
  std::string result(name);
  for (const std::string_view wrapper :
       {".base_layer", ".modules_to_save.default", ".modules_to_save", ".original_module"})
    if (const size_t at = result.rfind(wrapper); at != std::string::npos)
      result.erase(at, wrapper.size());
  return result;
}

bool is_weight_name(std::string_view name) {
  return (name.starts_with("model.") || name == "lm_head.weight") &&
         name.find(".lora_") == std::string_view::npos && name.ends_with(".weight");
}

/// The base's tensor of that Hugging Face name, under whatever name its files have it.
const TensorEntry* find_in_any_scheme(const TensorSource& tensors, const std::string& name) {
  if (const TensorEntry* entry = tensors.find(name)) return entry;
  const auto id = parse_tensor_name(name);
  return id ? tensors.find(name_in_files(tensors, *id)) : nullptr;
}

/// Whether the elements are equal, or those of the base are once rounded to the copy's type.
bool equal_values(const TensorSource& adapter, const TensorEntry& copy,
                  std::span<const std::byte> base_bytes, const TensorEntry& base) {
  if (!copy.dtype || !base.dtype || !convertible(*base.dtype, *copy.dtype)) return false;
  const std::byte* theirs = adapter.raw(copy.name).data();
  const std::byte* ours = base_bytes.data();
  constexpr int64_t kChunk = 1 << 16;
  std::vector<std::byte> rounded(static_cast<size_t>(kChunk * size_of(*copy.dtype)));
  const int64_t count = copy.numel();
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t n = std::min(kChunk, count - at);
    convert_elements(ours + at * size_of(*base.dtype), *base.dtype, rounded.data(), *copy.dtype, n);
    if (std::memcmp(rounded.data(), theirs + at * size_of(*copy.dtype),
                    static_cast<size_t>(n * size_of(*copy.dtype))) != 0)
      return false;
  }
  return true;
}

}  // namespace

bool BaseCopies::accept(const TensorSource& adapter, const TensorEntry& entry,
                        std::string_view name) {
  const std::string plain = plain_name(name);
  if (!is_weight_name(plain)) return false;
  const std::string what =
      fmt::format("{}: tensor {} is a copy of the base's {}", adapter.path().string(),
                  printable(entry.name), printable(plain));
  if (base_.empty())
    throw Error(fmt::format("{}, but there is no base with weight files to compare it with; {}",
                            what, kRemedy));
  if (!tensors_) tensors_ = open_tensors(find_model_files(base_).value_or(ModelFiles{base_}));
  const TensorEntry* base = find_in_any_scheme(*tensors_, plain);
  if (!base && plain == "lm_head.weight")
    base = find_in_any_scheme(*tensors_, "model.embed_tokens.weight");
  if (!base)
    throw Error(fmt::format("{}, which {} does not have; is the adapter for another model?", what,
                            base_.string()));
  if (entry.dims != base->dims)
    throw Error(fmt::format(
        "{} of another shape, {} where {} has {} (a vocabulary that was resized for the adapter, "
        "for example); {}",
        what, entry.shape_text(), base_.string(), base->shape_text(), kRemedy));
  if (!equal_values(adapter, entry, tensors_->raw(base->name), *base))
    throw Error(fmt::format("{} with other values than in {}; {}", what, base_.string(), kRemedy));
  return true;
}

}  // namespace mixtral
