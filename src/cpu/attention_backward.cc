// The gradient of attention. For each block of keys and each tile of queries that sees it, five
// products: the scores and dP again, then what they add to dq, dk and dv. A sum that runs over
// several blocks or tiles goes on where the last stopped (dk and dv in scratch memory, dq in its
// place), so every element is one chain of multiply-adds in order of position, whether all is done
// in one pass or queries and keys in passes of their own. Bound by the multiply-adds.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/attention_tile.h"
#include "cpu/backend.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"
#include "ops/attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_backward.cc"
#include <hwy/foreach_target.h>

#include "cpu/attention_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

/// Working memory of a task. Rows and columns are padded to multiples of 16.
struct Room {
  float* keys_t;    // [width, kKeys]
  float* values_t;  // [width, kKeys]
  float* keys;      // [kKeys, width], times scale
  float* dk;        // [kKeys, width]
  float* dv;        // [kKeys, width]
  float* query;     // [rows, width], times scale · log₂ e
  float* dout;      // [rows, width]
  float* dq;        // [rows, width]
  float* p;         // [rows, kKeys]
  float* ds;        // [rows, kKeys]
  float* log_sum;   // [rows], base 2
  float* delta;     // [rows]
};

/// Lays the room out at `memory`; returns how many floats it takes.
int64_t lay_out(float* memory, int64_t rows, int64_t width, Room& room) {
  const int64_t stride = padded(width);
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* at = memory == nullptr ? nullptr : memory + used;
    used += floats;
    return at;
  };
  room.keys_t = take(stride * kKeys);
  room.values_t = take(stride * kKeys);
  room.keys = take(stride * kKeys);
  room.dk = take(stride * kKeys);
  room.dv = take(stride * kKeys);
  room.query = take(rows * stride);
  room.dout = take(rows * stride);
  room.dq = take(rows * stride);
  room.p = take(rows * kKeys);
  room.ds = take(rows * kKeys);
  room.log_sum = take(padded(rows));
  room.delta = take(padded(rows));
  return used;
}

/// A tile of queries against a block of keys.
struct Meeting {
  int64_t first, positions;  // of the queries
  int64_t block;             // of the keys
  int64_t keys;              // in the block
  int64_t heads, width, window;
};

/// P and dS of a meeting, from packed operands; zeros where a row does not see a key.
void weights_and_gradients(const Meeting& m, const Room& room) {
  const int64_t rows = m.positions * m.heads, stride = padded(m.width);
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const int64_t count = std::min<int64_t>(kTileRows, rows - row);
    const int64_t top = m.first + (row + count - 1) / m.heads;
    const int64_t groups = (std::min(m.keys, top - m.block + 1) + kLanes - 1) / kLanes;
    float* p = room.p + row * kKeys;
    float* ds = room.ds + row * kKeys;
    Product product{.a = room.query + row * stride,
                    .a_row = stride,
                    .a_step = 1,
                    .b = room.keys_t,
                    .b_stride = kKeys,
                    .c = p,
                    .c_stride = kKeys,
                    .depth = m.width};
    multiply(product, count, groups * kLanes);
    product.a = room.dout + row * stride;
    product.b = room.values_t;
    product.c = ds;
    multiply(product, count, groups * kLanes);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t high = m.first + (row + i) / m.heads - m.block;
      const int64_t low = m.window > 0 ? high - m.window + 1 : 0;
      const Floats log_sum = broadcast(room.log_sum[row + i]);
      const Floats delta = broadcast(room.delta[row + i]);
      for (int64_t g = 0; g < kKeys / kLanes; ++g) {
        float* own_p = p + i * kKeys + g * kLanes;
        float* own_ds = ds + i * kKeys + g * kLanes;
        if (g >= groups) {
          store(broadcast(0), own_p);
          store(broadcast(0), own_ds);
          continue;
        }
        const Floats weight = exponential2(mask_scores(load(own_p), g, low, high) - log_sum);
        store(weight * (load(own_ds) - delta), own_ds);
        store(weight, own_p);
      }
    }
  }
}

/// dq += dS k
void add_query_gradients(const Meeting& m, const Room& room, float* dqkv, int64_t columns) {
  const int64_t rows = m.positions * m.heads, stride = padded(m.width), width = m.width;
  pack_heads(dqkv, columns, m.positions, m.heads, width, 1, room.dq);
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const int64_t count = std::min<int64_t>(kTileRows, rows - row);
    const int64_t top = m.first + (row + count - 1) / m.heads;
    multiply({.a = room.ds + row * kKeys,
              .a_row = kKeys,
              .a_step = 1,
              .b = room.keys,
              .b_stride = stride,
              .c = room.dq + row * stride,
              .c_stride = stride,
              .depth = std::min(m.keys, top - m.block + 1),
              .start = Start::c},
             count, stride);
  }
  const float* from = room.dq;
  for (int64_t p = 0; p < m.positions; ++p) {
    for (int64_t h = 0; h < m.heads; ++h, from += stride) {
      float* to = dqkv + p * columns + h * width;
      for_lanes(width,
                [&](int64_t i, int64_t count) HWY_ATTR { store_n(load(from + i), to + i, count); });
    }
  }
}

/// dk += dSᵀ q (in units of ln 2 / scale), dv += Pᵀ dout
void add_key_gradients(const Meeting& m, const Room& room) {
  const int64_t rows = m.positions * m.heads, stride = padded(m.width);
  for (int64_t key = 0; key < m.keys; key += kTileRows) {
    const int64_t count = std::min<int64_t>(kTileRows, m.keys - key);
    // Earlier positions see none of these keys.
    const int64_t skipped = std::max<int64_t>(0, m.block + key - m.first) * m.heads;
    if (skipped >= rows) break;
    Product product{.a = room.ds + skipped * kKeys + key,
                    .a_row = 1,
                    .a_step = kKeys,
                    .b = room.query + skipped * stride,
                    .b_stride = stride,
                    .c = room.dk + key * stride,
                    .c_stride = stride,
                    .depth = rows - skipped,
                    .start = Start::c};
    multiply(product, count, stride);
    product.a = room.p + skipped * kKeys + key;
    product.b = room.dout + skipped * stride;
    product.c = room.dv + key * stride;
    multiply(product, count, stride);
  }
}

void store_key_gradients(const float* from, int64_t keys, int64_t width, float factor, float* to,
                         int64_t columns) {
  const Floats scale = broadcast(factor);
  for (int64_t j = 0; j < keys; ++j, from += padded(width), to += columns) {
    for_lanes(width, [&](int64_t i, int64_t count)
                         HWY_ATTR { store_n(load(from + i) * scale, to + i, count); });
  }
}

void backward_task(const ops::AttentionBackward& op, const AttentionBackwardTask& task,
                   float* memory) {
  const int64_t width = op.heads.width, columns = op.heads.columns(), stride = padded(width);
  const int64_t shared = op.heads.query / op.heads.kv;
  const int64_t step = std::max<int64_t>(1, kBackwardRows / shared);
  Room room;
  lay_out(memory, step * shared, width, room);
  const int64_t query_column = task.group * shared * width;
  const int64_t key_column = (op.heads.query + task.group) * width;
  const int64_t value_column = (op.heads.query + op.heads.kv + task.group) * width;
  const float* qkv = op.qkv.as<float>() + task.start * columns;
  const float* dout =
      op.dout.as<float>() + (task.start * op.heads.query + task.group * shared) * width;
  float* dqkv = op.dqkv.as<float>() + task.start * columns;
  const auto scale = static_cast<float>(op.scale);
  const Rows<float> keys{qkv + key_column, columns};
  const Rows<float> values{qkv + value_column, columns};
  const bool queries = task.gradients != Gradients::keys_and_values;
  const bool keys_and_values = task.gradients != Gradients::queries;

  if (queries) {
    for (int64_t q = task.query_begin; q < task.query_end; ++q) {
      float* row = dqkv + q * columns + query_column;
      std::fill(row, row + shared * width, 0.f);
    }
  }
  for (int64_t block = task.key_begin; block < task.key_end; block += kKeys) {
    const int64_t count = std::min(kKeys, task.key_end - block), last = block + count - 1;
    pack_transposed(keys, block, block, last, width, room.dq, room.keys_t);
    pack_transposed(values, block, block, last, width, room.dq, room.values_t);
    if (queries) pack_rows(keys, block, block, last, width, scale, room.keys);
    if (keys_and_values) {
      std::fill(room.dk, room.dk + kKeys * stride, 0.f);
      std::fill(room.dv, room.dv + kKeys * stride, 0.f);
    }
    const int64_t begin = std::max(task.query_begin, block);
    const int64_t end = op.window > 0 ? std::min(task.query_end, last + op.window) : task.query_end;
    for (int64_t first = begin; first < end; first += step) {
      const Meeting m{.first = first,
                      .positions = std::min(step, end - first),
                      .block = block,
                      .keys = count,
                      .heads = shared,
                      .width = width,
                      .window = op.window};
      pack_heads(qkv + first * columns + query_column, columns, m.positions, shared, width,
                 scale * kLog2E, room.query);
      pack_heads(dout + first * op.heads.query * width, op.heads.query * width, m.positions, shared,
                 width, 1, room.dout);
      for (int64_t p = 0; p < m.positions; ++p) {
        const int64_t at = (task.start + first + p) * op.heads.query + task.group * shared;
        for (int64_t h = 0; h < shared; ++h) {
          room.log_sum[p * shared + h] = op.log_sum.as<float>()[at + h] * kLog2E;
          room.delta[p * shared + h] = op.delta.as<float>()[at + h];
        }
      }
      weights_and_gradients(m, room);
      if (queries) add_query_gradients(m, room, dqkv + first * columns + query_column, columns);
      if (keys_and_values) add_key_gradients(m, room);
    }
    if (!keys_and_values) continue;
    store_key_gradients(room.dk, count, width, kLn2, dqkv + block * columns + key_column, columns);
    store_key_gradients(room.dv, count, width, 1, dqkv + block * columns + value_column, columns);
  }
}

int64_t backward_scratch(int64_t rows, int64_t width) {
  Room room;
  // pack_transposed borrows dq for four rows.
  return lay_out(nullptr, std::max<int64_t>(rows, 4), width, room);
}

/// δ of some tokens: a chain of multiply-adds in the order in which dP is computed, so that a token
/// that sees one key alone (P = 1, out = v) gets dP − δ = 0 exactly, as it should.
void delta_rows(const ops::AttentionBackward& op, int64_t begin, int64_t end) {
  const int64_t heads = op.heads.query, width = op.heads.width;
  for (int64_t row = begin * heads; row < end * heads; ++row) {
    const float* out = op.out.as<float>() + row * width;
    const float* dout = op.dout.as<float>() + row * width;
    float sum = 0;
    for (int64_t i = 0; i < width; ++i) sum = std::fma(dout[i], out[i], sum);
    op.delta.as<float>()[row] = sum;
  }
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(backward_task);
HWY_EXPORT(backward_scratch);
HWY_EXPORT(delta_rows);

constexpr int64_t kQueryPositions = 128;  // of a task that computes queries' gradients alone

/// One pass over all pairs costs five products, passes of their own for queries and for keys seven,
/// but those split a sequence and a head between threads.
bool one_pass(int64_t sequences, int64_t groups, int threads) {
  const int64_t tasks = sequences * groups;
  const int64_t rounds = (tasks + threads - 1) / threads;
  return 5 * rounds * threads <= 7 * tasks;
}

}  // namespace

void CpuBackend::run(const ops::AttentionBackward& op) {
  expect_f32(op.kName, {op.qkv, op.out, op.log_sum, op.dout, op.dqkv, op.delta});
  const ops::Heads& heads = op.heads;
  const int64_t shared = heads.query / heads.kv;
  const int64_t sequences = op.sequence_starts.dim(0) - 1;
  const int32_t* starts = op.sequence_starts.as<int32_t>();
  pool_.for_ranges(op.out.dim(0), row_grain(op.out.dim(1)), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(delta_rows)(op, begin, end);
  });

  const bool together = one_pass(sequences, heads.kv, pool_.size());
  int64_t most = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = starts[s + 1] - starts[s];
    most += together ? 1 : length / kQueryPositions + length / kKeys + 2;
  }
  auto* tasks = static_cast<AttentionBackwardTask*>(
      shared_.get(0, most * heads.kv * int64_t{sizeof(AttentionBackwardTask)}));
  int64_t count = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = starts[s + 1] - starts[s];
    if (length == 0) continue;
    for (int64_t group = 0; group < heads.kv; ++group) {
      if (together) {
        tasks[count++] = {starts[s], group, 0, length, 0, length, Gradients::all};
        continue;
      }
      for (int64_t first = 0; first < length; first += kQueryPositions) {
        const int64_t end = std::min(length, first + kQueryPositions);
        const int64_t seen =
            op.window > 0 ? std::max<int64_t>(0, first - op.window + 1) / kKeys * kKeys : 0;
        tasks[count++] = {starts[s], group, first, end, seen, end, Gradients::queries};
      }
      for (int64_t block = 0; block < length; block += kKeys)
        tasks[count++] = {starts[s],
                          group,
                          0,
                          length,
                          block,
                          std::min(length, block + kKeys),
                          Gradients::keys_and_values};
    }
  }
  const int64_t step = std::max<int64_t>(1, kBackwardRows / shared);
  const int64_t scratch =
      HWY_DYNAMIC_DISPATCH(backward_scratch)(step * shared, heads.width) * int64_t{sizeof(float)};
  pool_.for_each(count, [&](int64_t item, int thread) {
    HWY_DYNAMIC_DISPATCH(backward_task)
    (op, tasks[item], static_cast<float*>(scratch_.get(thread, scratch)));
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
