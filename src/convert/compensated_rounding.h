#pragma once

#include <functional>
#include <memory>

#include "base/threads.h"
#include "ops/block_rounder.h"
#include "ops/context.h"

namespace mixtral {

/// What rounding did to the products of a matrix with the rows that it is multiplied by: sums of
/// squares over all rows and outputs.
struct RoundingLoss {
  double error = 0;  // of what changed
  double size = 0;   // of the products

  double share() const { return size > 0 ? error / size : 0; }
};

/// Gives the rounder of a row, which writes it.
using RowRounders = std::function<std::unique_ptr<ops::BlockRounder>(int64_t row)>;

/// Rounds a matrix `values` [rows, columns] so that its products with `inputs` [n, columns] change
/// little: the error of a column is made good, as far as the inputs are alike, by changing those
/// that are still to be rounded. That is GPTQ (Frantar et al. 2022, arXiv:2210.17323), in the form
/// of Chee et al. 2023 (arXiv:2307.13304): with XᵀX + damping = L D Lᵀ, column k is rounded to the
/// nearest of w_k + Σ_{j>k} (w_j − ŵ_j) L_jk, from the last to the first; D_k weighs its error.
///
/// `packed` [rows, columns] gets the rounded numbers. All tensors are f32, in ordinary memory;
/// columns are whole units of the rounders.
RoundingLoss round_compensated(Context& ctx, ThreadPool& threads, const Tensor& values,
                               const Tensor& inputs, const RowRounders& rounders,
                               const Tensor& packed);

}  // namespace mixtral
