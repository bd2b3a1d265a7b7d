#include "convert/model_format.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/printable.h"
#include "io/gguf.h"

namespace mixtral {
namespace {

struct FormatRow {
  ModelFormat format;
  std::string_view name;    // on the command line
  std::string_view scheme;  // of naming_schemes()
  std::string_view title;   // in messages
};

constexpr FormatRow kFormats[] = {
    {ModelFormat::hugging_face, "hf", "Hugging Face", "a Hugging Face directory"},
    {ModelFormat::gguf, "gguf", "GGUF", "GGUF, as llama.cpp runs it,"},
    {ModelFormat::mlx, "mlx", "mlx-lm", "MLX, as mlx-lm runs it,"},
    {ModelFormat::mistral, "mistral", "Mistral", "Mistral's own format"},
};

const FormatRow& row_of(ModelFormat format) {
  return *std::ranges::find(kFormats, format, &FormatRow::format);
}

const NamingScheme& scheme_of(ModelFormat format) {
  const auto schemes = naming_schemes();
  const auto found = std::ranges::find(schemes, row_of(format).scheme, &NamingScheme::name);
  CHECK(found != schemes.end(), std::string(row_of(format).scheme));
  return *found;
}

const TensorNaming* find_row(const NamingScheme& scheme, TensorKind kind) {
  const auto row = std::ranges::find(scheme.rows, kind, &TensorNaming::kind);
  return row == scheme.rows.end() ? nullptr : &*row;
}

}  // namespace

std::string_view name(ModelFormat format) { return row_of(format).name; }

ModelFormat parse_model_format(std::string_view name) {
  for (const FormatRow& row : kFormats)
    if (row.name == name) return row.format;
  throw UsageError(
      fmt::format("there is no format '{}'; choose hf, gguf, mlx or mistral", printable(name)));
}

ModelFormat format_of(const TensorSource& tensors) {
  if (is_gguf_file(tensors.path())) return ModelFormat::gguf;
  for (const ModelFormat format : {ModelFormat::mistral, ModelFormat::mlx}) {
    const TensorNaming rows[] = {naming_in(format, TensorKind::w1)};
    if (tensors.find(tensor_name({.name = "", .rows = rows},
                                 {.kind = TensorKind::w1, .layer = 0, .expert = 0})))
      return format;
  }
  return ModelFormat::hugging_face;
}

const TensorNaming& naming_in(ModelFormat format, TensorKind kind) {
  // MLX names most tensors as Hugging Face does, so its scheme has rows only for the others.
  const TensorNaming* row = find_row(scheme_of(format), kind);
  return row ? *row : *find_row(hugging_face_names(), kind);
}

void refuse_what_cannot_be_said(const ModelConfig& config, ModelFormat format) {
  const auto refuse = [&](const std::string& what, std::string_view instead) {
    throw Error(fmt::format("{} cannot say {}, so the model would compute something else there; {}",
                            row_of(format).title, what, instead));
  };
  const bool windows = format == ModelFormat::hugging_face || format == ModelFormat::mistral;
  if (config.sliding_window > 0 && !windows)
    refuse(fmt::format("the model's sliding window of {} tokens (sliding_window)",
                       config.sliding_window),
           "convert to hf or mistral");
  if (config.tie_embeddings && format == ModelFormat::mistral)
    refuse("that the head is the embedding (tie_word_embeddings)", "convert to hf, gguf or mlx");
  if (format == ModelFormat::mlx && config.head_dim * config.num_heads != config.hidden_size)
    refuse(fmt::format("a head width of {} beside {} heads and a hidden size of {} (head_dim)",
                       config.head_dim, config.num_heads, config.hidden_size),
           "convert to hf, gguf or mistral");
}

}  // namespace mixtral
