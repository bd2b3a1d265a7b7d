#include "nn/sequences.h"

namespace mixtral::nn {

RowGroups TokenAdapters::sort(Context& ctx) const { return sort(ctx, {}, {}, 1); }

RowGroups TokenAdapters::sort(Context& ctx, const Tensor& source, const Tensor& offsets,
                              int64_t divisor) const {
  RowGroups groups{.offsets = offsets, .adapter = all};
  if (each.empty()) return groups;
  const int64_t rows = each.dim(0) * divisor;
  const int64_t group_count = offsets ? offsets.dim(0) - 1 : 1;
  groups.order = ctx.allocate({rows}, Dtype::i32);
  groups.place = ctx.allocate({rows}, Dtype::i32);
  groups.adapter_offsets = ctx.allocate({count * group_count + 1}, Dtype::i32);
  ctx.run(ops::SortByAdapter{.adapters = each,
                             .source = source,
                             .groups = offsets,
                             .order = groups.order,
                             .place = groups.place,
                             .offsets = groups.adapter_offsets,
                             .divisor = divisor});
  return groups;
}

TokenAdapters TokenAdapters::slice(int64_t begin, int64_t end) const {
  TokenAdapters part = *this;
  if (each) part.each = each.slice(begin, end);
  return part;
}

}  // namespace mixtral::nn
