#include "train/expert_choice.h"

#include <algorithm>
#include <numeric>

#include "train/language_model.h"

namespace mixtral {

std::vector<std::vector<int64_t>> busiest_experts(Context& ctx, const Mixtral& model,
                                                  BatchSource& source, int64_t batches,
                                                  int64_t top) {
  const auto layers = static_cast<size_t>(model.config().num_layers);
  const auto experts = static_cast<size_t>(model.config().num_experts);
  LanguageModelCriterion criterion(ctx, model, {.objective = {.balance = Objective::Balance::off}});
  std::vector<std::vector<double>> load(layers, std::vector<double>(experts));
  source.rewind();
  for (int64_t i = 0; i < batches; ++i) {
    const auto batch = source.next();
    if (!batch) break;
    ctx.arena().reset();
    criterion.begin(ctx, 0);
    criterion.add_losses(ctx, *batch, {.weight = batch->label_count(), .batches = 1}, 0);
    criterion.fetch(ctx, 0, Wait::for_all);
    const RouterFigures figures = criterion.routers();
    for (size_t l = 0; l < layers; ++l)
      for (size_t e = 0; e < experts; ++e)
        load[l][e] += figures.load[l][e] * static_cast<double>(batch->size());
  }
  source.rewind();
  ctx.arena().reset();
  std::vector<std::vector<int64_t>> chosen;
  for (const auto& shares : load) {
    std::vector<int64_t> order(experts);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::ranges::sort(order, [&](int64_t a, int64_t b) {
      const double first = shares[static_cast<size_t>(a)], second = shares[static_cast<size_t>(b)];
      return first != second ? first > second : a < b;
    });
    order.resize(std::min(experts, static_cast<size_t>(top)));
    chosen.push_back(std::move(order));
  }
  return chosen;
}

}  // namespace mixtral
