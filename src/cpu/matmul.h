#pragma once

#include <atomic>
#include <vector>

#include "base/threads.h"
#include "cpu/expected_weights.h"
#include "cpu/matmul_kernels.h"
#include "cpu/scratch.h"

namespace mixtral::cpu {

/// One group's product C[m, n] = scale · Σ_k A[m, k] B[k, n] (+ C if accumulate), C in f32.
struct Product {
  int64_t m = 0, n = 0, k = 0;
  Operand a;  // its lines are the rows of C
  Operand b;  // its lines are the columns of C
  float* c = nullptr;
  int64_t c_stride = 0;
  bool transposed = false;  // C[m, n] lies at c[n * c_stride + m]
};

/// Computes groups of products with all threads. An item is a part of one C: a block of one operand
/// stays packed in the L2 cache, and the other operand's lines pass over it, a panel or row tile at
/// a time. Items with the same block are a group. A thread takes the items of a group one by one,
/// so that it packs the block once, then those of the next group; at the end threads help one
/// another. Packed data is not shared.
class Products {
 public:
  Products(ThreadPool& pool, Scratch& scratch) : pool_(pool), scratch_(scratch) {}

  /// Empties the list of products, keeping its memory.
  void clear() { products_.clear(); }
  void add(const Product& product) { products_.push_back(product); }
  /// How to compute what was added: with `bf16`, operands are rounded to bf16 first.
  void plan(bool bf16);
  /// Where in a weight's groups the threads begin, in a plan of one product of few rows by each.
  void find_places(std::vector<ExpectedWeights::Place>& places) const;
  /// Computes what was planned.
  void run(float scale, bool accumulate);

 private:
  /// Rows [m, m_end) and columns [n, n_end) of one product's C.
  struct Item {
    const Product* product;
    int64_t m, m_end, n, n_end;
  };
  /// Items [begin, end), which have the block that stays in common.
  struct Group {
    size_t begin, end;
  };
  /// Where a thread is, and which block that stays lies packed in its scratch memory.
  struct Hand {
    size_t group = static_cast<size_t>(-1);
    const Product* packed = nullptr;
    int64_t line = 0;   // its first
    int64_t bytes = 0;  // of scratch memory that the thread has asked for
  };
  struct Settings {
    const Kernels* kernels;
    float scale;
    bool accumulate, round;
  };

  void divide(const Kernels& kernels);
  /// A thread's part of the work.
  void work(const Settings& settings, int thread);
  /// The thread's next item: of its group, of the next group, or of another thread's; null where
  /// none is left.
  const Item* take(Hand& hand);
  /// What the thread probably takes next.
  const Item* expected(const Hand& hand) const;
  void compute(const Item& item, const Settings& settings, int thread, Hand& hand);
  void compute_few(const Item& item, const Settings& settings, int thread);
  void stream(size_t item, const Settings& settings, int thread);

  ThreadPool& pool_;
  Scratch& scratch_;
  std::vector<Product> products_;
  std::vector<Item> items_;
  std::vector<Group> groups_;
  std::vector<std::atomic<size_t>> taken_;  // of each group, the next item to take
  std::atomic<size_t> next_group_{0};
  const Kernels* kernels_ = nullptr;
  // Asking the processor takes a virtual machine microseconds.
  const Kernels* const pairs_ = bf16_kernels();
  bool round_ = false;  // operands to bf16, by kernels of floats
};

}  // namespace mixtral::cpu
