#pragma once

#include "cpu/types.h"
#include "ops/kv_view.h"

namespace mixtral::cpu {

/// Throws Error unless this backend reads and writes caches of this type.
inline void expect_cache_type(std::string_view op, const ops::KvView& cache) {
  if (cache.coded()) return;
  if (!is_float(cache.keys.dtype()) || cache.keys.dtype() == Dtype::f64)
    refuse_type(op, "caches", cache.keys);
}

}  // namespace mixtral::cpu
