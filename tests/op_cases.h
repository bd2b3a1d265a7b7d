#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "ops/weight_format.h"
#include "tests/support/rig.h"

namespace mixtral::test {

/// A row of the table of operations. `build` makes the op and its operands in a rig: inputs drawn
/// at realistic scales, outputs, and for a gradient what it is the gradient of. Four runners use
/// the table: gradient (the reference backend against central differences, in f64), parity (each
/// backend against the reference), determinism (threads, addresses), and the benchmark.
struct OpCase {
  std::string name;  // begins with the op's name: "GroupedMatmul_g3_ragged"
  std::function<void(Rig&)> build;
  std::vector<Dtype> dtypes{Dtype::f64, Dtype::f32, Dtype::bf16};  // of the activations
  bool benchmark = false;         // large, and run by the benchmark only
  ops::WeightFormat format = {};  // of the weight, which not every backend has
};

inline void PrintTo(const OpCase& op, std::ostream* out) { *out << op.name; }

/// The whole table, in the order of src/ops.
std::vector<OpCase> op_cases();

// Its parts, a file each in tests/op_cases/.
std::vector<OpCase> matmul_cases();
std::vector<OpCase> norm_cases();
std::vector<OpCase> attention_cases();
std::vector<OpCase> kv_view_cases();
std::vector<OpCase> moe_cases();
std::vector<OpCase> adapters_cases();
std::vector<OpCase> vocab_cases();
std::vector<OpCase> optim_cases();
std::vector<OpCase> elementwise_cases();
std::vector<OpCase> quantize_cases();

/// Offsets of groups with these row counts: [counts + 1], from 0.
std::vector<int32_t> offsets_of(const std::vector<int32_t>& counts);

/// Which experts N tokens go to, and the tables that follow (see ops/moe.h), as Route makes them.
struct Routing {
  std::vector<int32_t> expert, slot, source, offsets;
};
/// Each token goes to k different experts, drawn at random.
Routing draw_routing(RandomStream& random, int64_t tokens, int64_t experts, int64_t k);

}  // namespace mixtral::test
