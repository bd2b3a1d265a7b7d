#include "eval/expert_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mixtral {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::array<int64_t, kPositionRanges> kRangeStarts{0, 1, 4, 16, 64, 256, 1024};

/// The probabilities of one token's logits, and their entropy.
double softmax(std::span<const double> logits, std::vector<double>& probabilities) {
  const double most = *std::ranges::max_element(logits);
  probabilities.assign(logits.begin(), logits.end());
  double sum = 0;
  for (double& p : probabilities) sum += p = std::exp(p - most);
  for (double& p : probabilities) p /= sum;
  return entropy_of(probabilities);
}

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

}  // namespace

size_t position_range(int64_t position) {
  size_t range = 0;
  while (range + 1 < kPositionRanges && position >= kRangeStarts[range + 1]) ++range;
  return range;
}

std::string position_range_name(size_t range) {
  const int64_t begin = kRangeStarts[range];
  if (range + 1 == kPositionRanges) return fmt::format("{}–", begin);
  const int64_t last = kRangeStarts[range + 1] - 1;
  return begin == last ? fmt::format("{}", begin) : fmt::format("{}–{}", begin, last);
}

double entropy_of(std::span<const double> amounts) {
  const double sum = std::accumulate(amounts.begin(), amounts.end(), 0.0);
  double entropy = 0;
  for (const double amount : amounts)
    if (amount > 0) entropy -= amount / sum * std::log(amount / sum);
  return std::max(entropy, 0.0);
}

std::vector<int64_t> dead_experts(std::span<const double> load) {
  std::vector<int64_t> dead;
  for (size_t e = 0; e < load.size(); ++e)
    if (load[e] == 0) dead.push_back(static_cast<int64_t>(e));
  return dead;
}

ExpertReport::ExpertReport(int64_t layers, int64_t experts, int64_t experts_per_token,
                           int64_t sample_tokens)
    : experts_(experts),
      per_token_(experts_per_token),
      sample_tokens_(sample_tokens),
      layers_(static_cast<size_t>(layers)) {
  for (Layer& layer : layers_) {
    layer.experts.resize(static_cast<size_t>(experts));
    for (Expert& expert : layer.experts) expert.together.resize(static_cast<size_t>(experts));
  }
  sample_.expert.resize(layers_.size());
  sample_.weight.resize(layers_.size());
}

void ExpertReport::add(std::span<const int32_t> ids, std::span<const TokenKind> kinds,
                       std::span<const LayerRoute> routes) {
  CHECK(routes.size() == layers_.size());
  CHECK(kinds.empty() || kinds.size() == ids.size());
  const auto k = static_cast<size_t>(per_token_), e = static_cast<size_t>(experts_);
  tokens_ += static_cast<int64_t>(ids.size());
  for (size_t n = 0; n < ids.size(); ++n) {
    ++ids_[ids[n]];
    ++range_totals_[position_range(static_cast<int64_t>(n))];
    if (!kinds.empty()) ++kind_totals_[static_cast<size_t>(kinds[n])];
  }
  std::vector<double> probabilities;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const LayerRoute& route = routes[l];
    CHECK(route.logits.size() == ids.size() * e && route.expert.size() == ids.size() * k);
    for (size_t n = 0; n < ids.size(); ++n) {
      layers_[l].entropy += softmax(route.logits.subspan(n * e, e), probabilities);
      const auto chosen = route.expert.subspan(n * k, k);
      for (size_t j = 0; j < k; ++j) {
        Expert& expert = layers_[l].experts[static_cast<size_t>(chosen[j])];
        ++expert.taken;
        expert.first += j == 0;
        ++expert.ids[ids[n]];
        ++expert.ranges[position_range(static_cast<int64_t>(n))];
        if (!kinds.empty()) ++expert.kinds[static_cast<size_t>(kinds[n])];
        for (const int32_t other : chosen) ++expert.together[static_cast<size_t>(other)];
      }
    }
  }
  add_to_sample(ids, routes);
}

void ExpertReport::add_to_sample(std::span<const int32_t> ids, std::span<const LayerRoute> routes) {
  const int64_t room = sample_tokens_ - static_cast<int64_t>(sample_.ids.size());
  const auto taken = std::min(ids.size(), static_cast<size_t>(std::max<int64_t>(room, 0)));
  const auto k = static_cast<size_t>(per_token_), e = static_cast<size_t>(experts_);
  for (size_t n = 0; n < taken; ++n) {
    sample_.ids.push_back(ids[n]);
    sample_.starts.push_back(n == 0);
    for (size_t l = 0; l < routes.size(); ++l) {
      const auto chosen = routes[l].expert.subspan(n * k, k);
      // The weights of the chosen are a softmax over their logits alone.
      std::vector<double> logits, weights;
      for (const int32_t expert : chosen)
        logits.push_back(routes[l].logits[n * e + static_cast<size_t>(expert)]);
      softmax(logits, weights);
      sample_.expert[l].insert(sample_.expert[l].end(), chosen.begin(), chosen.end());
      for (const double weight : weights) sample_.weight[l].push_back(static_cast<float>(weight));
    }
  }
}

std::vector<double> ExpertReport::load(int64_t layer) const {
  std::vector<double> shares;
  for (const Expert& expert : layers_[static_cast<size_t>(layer)].experts)
    shares.push_back(ratio(expert.taken, tokens_ * per_token_));
  return shares;
}

std::vector<double> ExpertReport::first_choice(int64_t layer) const {
  std::vector<double> shares;
  for (const Expert& expert : layers_[static_cast<size_t>(layer)].experts)
    shares.push_back(ratio(expert.first, tokens_));
  return shares;
}

double ExpertReport::token_entropy(int64_t layer) const {
  return tokens_ > 0 ? layers_[static_cast<size_t>(layer)].entropy / static_cast<double>(tokens_)
                     : 0;
}

double ExpertReport::together(int64_t layer, int64_t a, int64_t b) const {
  const Expert& expert = at(layer, a);
  return ratio(expert.together[static_cast<size_t>(b)], expert.taken);
}

double ExpertReport::lift(int64_t part, int64_t taken, int64_t whole) const {
  if (taken == 0 || whole == 0) return kNaN;
  return ratio(part, taken) / ratio(whole, tokens_);
}

double ExpertReport::kind_lift(int64_t layer, int64_t expert, TokenKind kind) const {
  const Expert& x = at(layer, expert);
  return lift(x.kinds[static_cast<size_t>(kind)], x.taken, count(kind));
}

double ExpertReport::position_lift(int64_t layer, int64_t expert, size_t range) const {
  const Expert& x = at(layer, expert);
  return lift(x.ranges[range], x.taken, range_totals_[range]);
}

std::vector<ExpertReport::TypicalToken> ExpertReport::typical_tokens(int64_t layer, int64_t expert,
                                                                     size_t most) const {
  const Expert& x = at(layer, expert);
  std::vector<TypicalToken> tokens;
  for (const auto& [id, count] : x.ids) {
    const double raised = lift(count, x.taken, ids_.at(id));
    if (count > 1 && raised > 1) tokens.push_back({.id = id, .count = count, .lift = raised});
  }
  std::ranges::sort(tokens, [](const TypicalToken& a, const TypicalToken& b) {
    const double left = static_cast<double>(a.count) * std::log(a.lift);
    const double right = static_cast<double>(b.count) * std::log(b.lift);
    return left != right ? left > right : a.id < b.id;
  });
  if (tokens.size() > most) tokens.resize(most);
  return tokens;
}

void add_routes(Context& ctx, const Mixtral& model, const HostBatch& host,
                std::span<const TokenKind> kinds, ExpertReport& report) {
  const ArenaScope scope(ctx.arena());
  const ModelConfig& config = model.config();
  auto reports = model.allocate_reports(ctx);
  model.allocate_token_routes(ctx, host.size(), reports);
  model.forward(ctx, upload(ctx, host, config.vocab_size, model.context()), nullptr, nullptr,
                &reports);
  std::vector<double> logits(static_cast<size_t>(reports.logits.numel()));
  if (reports.logits.dtype() == Dtype::f64) {
    ctx.backend().download(reports.logits,
                           Tensor(logits.data(), reports.logits.shape(), Dtype::f64));
  } else {
    std::vector<float> narrow(logits.size());
    ctx.backend().download(reports.logits,
                           Tensor(narrow.data(), reports.logits.shape(), Dtype::f32));
    std::ranges::copy(narrow, logits.begin());
  }
  std::vector<int32_t> expert(static_cast<size_t>(reports.expert.numel()));
  ctx.backend().download(reports.expert, Tensor(expert.data(), reports.expert.shape(), Dtype::i32));

  const auto tokens = static_cast<size_t>(host.size());
  const auto e = static_cast<size_t>(config.num_experts);
  const auto k = static_cast<size_t>(config.experts_per_token);
  for (int64_t s = 0; s < host.sequences(); ++s) {
    const auto begin = static_cast<size_t>(host.sequence_starts[static_cast<size_t>(s)]);
    const auto count =
        static_cast<size_t>(host.sequence_starts[static_cast<size_t>(s) + 1]) - begin;
    std::vector<LayerRoute> routes;
    routes.reserve(static_cast<size_t>(config.num_layers));
    for (size_t l = 0; l < static_cast<size_t>(config.num_layers); ++l)
      routes.push_back({.logits = std::span(logits).subspan((l * tokens + begin) * e, count * e),
                        .expert = std::span<const int32_t>(expert).subspan((l * tokens + begin) * k,
                                                                           count * k)});
    report.add(std::span(host.tokens).subspan(begin, count),
               kinds.empty() ? kinds : kinds.subspan(begin, count), routes);
  }
}

ExpertReport report_experts(Context& ctx, const Mixtral& model, Batches& batches,
                            const Tokenizer* tokenizer, const ExpertReportOptions& options,
                            const std::function<void(int64_t)>& progress) {
  const ModelConfig& config = model.config();
  ExpertReport report(config.num_layers, config.num_experts, config.experts_per_token,
                      options.sample_tokens);
  while (options.tokens == 0 || report.tokens() < options.tokens) {
    const auto host = batches.next();
    if (!host) break;
    std::vector<TokenKind> kinds;
    if (tokenizer) {
      for (int64_t s = 0; s < host->sequences(); ++s) {
        const auto begin = static_cast<size_t>(host->sequence_starts[static_cast<size_t>(s)]);
        const auto end = static_cast<size_t>(host->sequence_starts[static_cast<size_t>(s) + 1]);
        const auto sequence =
            classify_tokens(*tokenizer, std::span(host->tokens).subspan(begin, end - begin));
        kinds.insert(kinds.end(), sequence.begin(), sequence.end());
      }
    }
    add_routes(ctx, model, *host, kinds, report);
    if (progress) progress(report.tokens());
  }
  if (report.tokens() == 0) throw Error("the data holds no token to look at");
  return report;
}

}  // namespace mixtral
