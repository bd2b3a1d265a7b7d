#include "convert/model_edit.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"

namespace mixtral {
namespace {

bool is_of_expert(TensorKind kind) {
  return kind == TensorKind::w1 || kind == TensorKind::w2 || kind == TensorKind::w3;
}

/// "expert 3", "the dense layer"; of several models, which.
std::string named(const ModelEdit& edit, const ExpertShare& share) {
  std::string expert = edit.sources[share.source]->is_dense()
                           ? "the dense layer"
                           : fmt::format("expert {}", share.expert);
  if (edit.sources.size() == 1) return expert;
  return fmt::format("{} of {}", expert, edit.sources[share.source]->name());
}

std::string in_words(const ModelEdit& edit, const ExpertRecipe& recipe) {
  if (recipe.shares.size() == 1) return named(edit, recipe.shares.front());
  std::vector<std::string> names;
  names.reserve(recipe.shares.size());
  for (const ExpertShare& share : recipe.shares)
    names.push_back(fmt::format("{:.4g} of {}", share.weight, named(edit, share)));
  return fmt::format("{}", fmt::join(names, " + "));
}

std::string noise_in_words(const ModelEdit& edit) {
  std::string words = fmt::format("with noise of {:.4g} of its root mean square", edit.noise);
  if (edit.noise_share < 1) words += fmt::format(" in {:.4g} of its numbers", edit.noise_share);
  return words;
}

}  // namespace

std::vector<ModelEdit::Origin> ModelEdit::origins(const TensorId& id) const {
  if (id.kind != TensorKind::router && !is_of_expert(id.kind)) return {{.source = 0, .id = id}};
  const LayerEdit& layer = layers[static_cast<size_t>(id.layer)];
  std::vector<Origin> found;
  if (is_of_expert(id.kind)) {
    for (const ExpertShare& share : layer.experts[static_cast<size_t>(id.expert)].shares)
      found.push_back({.source = share.source,
                       .id = {.kind = id.kind, .layer = id.layer, .expert = share.expert},
                       .weight = share.weight});
    return found;
  }
  if (!layer.router.empty()) return found;
  for (const ExpertRecipe& recipe : layer.experts)
    for (const ExpertShare& share : recipe.shares)
      if (std::ranges::find(found, share.source, &Origin::source) == found.end())
        found.push_back({.source = share.source, .id = id});
  return found;
}

std::string ModelEdit::words(const TensorId& id) const {
  if (id.kind != TensorKind::router && !is_of_expert(id.kind)) return "";
  const LayerEdit& layer = layers[static_cast<size_t>(id.layer)];
  if (is_of_expert(id.kind)) {
    const ExpertRecipe& recipe = layer.experts[static_cast<size_t>(id.expert)];
    const ExpertShare& first = recipe.shares.front();
    if (recipe.is_copy() && first.source == 0 && first.expert == id.expert &&
        !sources.front()->is_dense())
      return "";
    return in_words(*this, recipe) + (recipe.noisy ? " " + noise_in_words(*this) : "");
  }
  if (!layer.router.empty()) return router_words;
  std::vector<std::string> rows;
  rows.reserve(layer.experts.size());
  for (const ExpertRecipe& recipe : layer.experts) rows.push_back(in_words(*this, recipe));
  const bool noisy = std::ranges::any_of(layer.experts, &ExpertRecipe::noisy);
  return fmt::format("rows of {}{}", fmt::join(rows, ", "),
                     noisy ? "; copies " + noise_in_words(*this) : std::string());
}

}  // namespace mixtral
