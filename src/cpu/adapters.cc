#include "ops/adapters.h"

#include <algorithm>

#include "cpu/backend.h"

namespace mixtral::cpu {

/// Rows come sorted by group: a counting sort by adapter sorts them by both.
void CpuBackend::run(const ops::SortByAdapter& op) {
  const int64_t rows = op.order.dim(0), groups = op.group_count(), count = op.adapter_count();
  const int32_t* adapters = op.adapters.as<int32_t>();
  const int32_t* source = op.source ? op.source.as<int32_t>() : nullptr;
  const int32_t* starts = op.groups ? op.groups.as<int32_t>() : nullptr;
  int32_t* order = op.order.as<int32_t>();
  int32_t* place = op.place.as<int32_t>();
  int32_t* offsets = op.offsets.as<int32_t>();
  const int64_t grouped = starts ? starts[groups] : rows;
  const auto adapter_of = [&](int64_t row) -> int64_t {
    const int32_t adapter = adapters[source ? source[row] / op.divisor : row];
    return adapter >= 0 && adapter < count && row < grouped ? adapter : count;
  };

  // offsets[(a, g) + 1] first counts the rows of (a, g), then says where the next one goes.
  std::fill(offsets, offsets + count * groups + 1, 0);
  const auto for_each_row = [&](const auto& body) {
    int64_t group = 0;
    for (int64_t row = 0; row < rows; ++row) {
      while (starts && group + 1 < groups && row >= starts[group + 1]) ++group;
      body(row, adapter_of(row), group);
    }
  };
  for_each_row([&](int64_t, int64_t adapter, int64_t group) {
    if (adapter < count) ++offsets[adapter * groups + group + 1];
  });
  for (int64_t i = 0; i < count * groups; ++i) offsets[i + 1] += offsets[i];
  int32_t rest = offsets[count * groups];
  for_each_row([&](int64_t row, int64_t adapter, int64_t group) {
    const int32_t to = adapter < count ? offsets[adapter * groups + group]++ : rest++;
    place[row] = to;
    order[to] = static_cast<int32_t>(row);
  });
  for (int64_t i = count * groups - 1; i > 0; --i) offsets[i] = offsets[i - 1];
  offsets[0] = 0;
}

}  // namespace mixtral::cpu
