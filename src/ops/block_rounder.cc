#include "ops/block_rounder.h"

#include <utility>

#include "ops/format_k_pack.h"
#include "ops/format_q.h"

namespace mixtral::ops {

std::unique_ptr<BlockRounder> make_rounder(std::string_view format, void* to) {
  auto rounder = make_k_rounder(format, to);
  return rounder ? std::move(rounder) : make_q_rounder(format, to);
}

}  // namespace mixtral::ops
