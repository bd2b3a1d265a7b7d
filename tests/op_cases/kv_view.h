#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ops/heads.h"
#include "ops/kv_view.h"
#include "tests/op_cases.h"

namespace mixtral::test {

inline constexpr int32_t kPaddingRun = -1;  // CacheRun::sequence of padding

/// Tokens first .. first + count − 1 of a sequence, or `count` padding rows.
struct CacheRun {
  int32_t sequence = 0, first = 0, count = 1;
};

/// New tokens, and a cache in pages for their sequences.
struct CacheCase {
  std::string name;
  std::vector<CacheRun> runs;
  ops::Heads heads;
  int64_t page_tokens = 16;
  int64_t decode_rows = 0;
  int64_t window = 0;
  bool released = false;                    // pages behind the window are given back
  int64_t shared_pages = 0;                 // the first so many pages are the same in all sequences
  std::optional<ops::CacheType> type = {};  // else that of activations
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

void cache_append(Rig& rig, const CacheCase& c);
void cached_attention(Rig& rig, const CacheCase& c);

}  // namespace mixtral::test
