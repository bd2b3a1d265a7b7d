#include "tests/op_cases.h"

#include <numeric>
#include <utility>

namespace mixtral::test {

std::vector<OpCase> op_cases() {
  std::vector<OpCase> all;
  for (auto* part : {matmul_cases, norm_cases, attention_cases, kv_view_cases, moe_cases,
                     adapters_cases, vocab_cases, optim_cases, elementwise_cases, quantize_cases})
    for (auto& one : part()) all.push_back(std::move(one));
  return all;
}

std::vector<int32_t> offsets_of(const std::vector<int32_t>& counts) {
  std::vector<int32_t> offsets{0};
  for (int32_t count : counts) offsets.push_back(offsets.back() + count);
  return offsets;
}

Routing draw_routing(RandomStream& random, int64_t tokens, int64_t experts, int64_t k) {
  Routing routing;
  for (int64_t n = 0; n < tokens; ++n) {
    std::vector<int32_t> order(static_cast<size_t>(experts));
    std::iota(order.begin(), order.end(), 0);
    for (int64_t j = 0; j < k; ++j) {
      const auto other = static_cast<size_t>(j) + random.below(static_cast<uint64_t>(experts - j));
      std::swap(order[static_cast<size_t>(j)], order[other]);
      routing.expert.push_back(order[static_cast<size_t>(j)]);
    }
  }
  routing.slot.resize(routing.expert.size());
  routing.offsets.push_back(0);
  for (int32_t e = 0; e < experts; ++e) {
    for (size_t a = 0; a < routing.expert.size(); ++a) {
      if (routing.expert[a] != e) continue;
      routing.slot[a] = static_cast<int32_t>(routing.source.size());
      routing.source.push_back(static_cast<int32_t>(a));
    }
    routing.offsets.push_back(static_cast<int32_t>(routing.source.size()));
  }
  return routing;
}

}  // namespace mixtral::test
