#include "ops/adapters.h"

namespace mixtral::ops {

using detail::expect_index;

void check(const SortByAdapter& op) {
  expect_index("adapters", op.adapters, {-1});
  const int64_t rows = op.source ? op.source.dim(0) : op.adapters.dim(0);
  CHECK(op.divisor >= 1 && rows == op.adapters.dim(0) * op.divisor, "rows of all tokens");
  if (op.source) expect_index("source", op.source, {rows});
  if (op.groups) expect_index("groups", op.groups, {-1});
  expect_index("order", op.order, {rows});
  expect_index("place", op.place, {rows});
  expect_index("offsets", op.offsets, {-1});
  CHECK(op.group_count() >= 1 && op.adapter_count() >= 1 &&
            (op.offsets.dim(0) - 1) % op.group_count() == 0,
        "an offset for each adapter and group");
}

Cost cost(const SortByAdapter& op) {
  return {0, static_cast<double>(op.adapters.bytes() + op.source.bytes() + op.groups.bytes() +
                                 op.order.bytes() + op.place.bytes() + op.offsets.bytes())};
}

}  // namespace mixtral::ops
