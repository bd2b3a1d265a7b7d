#include "ops/adapters.h"

#include <algorithm>

#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {

void RefBackend::run(const ops::SortByAdapter& op) {
  const int64_t rows = op.order.dim(0), groups = op.group_count(), count = op.adapter_count();
  const Integers adapters(op.adapters), source(op.source), starts(op.groups);
  const Integers order(op.order), place(op.place), offsets(op.offsets);
  int32_t next = 0;
  const auto take = [&](int64_t row) {
    place[row] = next;
    order[next++] = static_cast<int32_t>(row);
  };
  std::fill_n(op.place.as<int32_t>(), rows, -1);
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t g = 0; g < groups; ++g) {
      offsets[a * groups + g] = next;
      const int64_t begin = starts ? starts[g] : 0, end = starts ? starts[g + 1] : rows;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t token = source ? source[row] / op.divisor : row;
        if (adapters[token] == a) take(row);
      }
    }
  }
  offsets[count * groups] = next;
  for (int64_t row = 0; row < rows; ++row)
    if (place[row] < 0) take(row);
}

}  // namespace mixtral::ref
