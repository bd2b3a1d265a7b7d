#include "cuda/blas.h"

#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/advice.h"
#include "base/error.h"
#include "cuda/library.h"
#include "cuda/scratch.h"

namespace mixtral::cuda {
namespace {

// Far more than the products of a step. Where rows differ from step to step, plans would pile up.
constexpr size_t kMostPlans = 4096;

void check_blas(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(fmt::format("{}: cuBLASLt failed with status {}", what, static_cast<int>(status)));
}

cudaDataType_t type_of(Dtype dtype) {
  CHECK(dtype == Dtype::f32 || dtype == Dtype::bf16);
  return dtype == Dtype::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

/// A product as cuBLAS sees it. It works in columns, so a row-major matrix is its transpose there:
/// C' [m, n] = op(A) op(B) with C' the transpose of our result.
struct Columns {
  const void *a, *b;
  void* c;
  bool transpose_a, transpose_b;
  int64_t m, n, k, lda, ldb, ldc;
};

Columns columns_of(const Product& p) {
  switch (p.form) {
    case Product::Form::forward:  // yᵀ [O, N] = W xᵀ
      return {p.weight, p.narrow, p.wide,   true,     false,        p.outputs,
              p.rows,   p.inputs, p.inputs, p.inputs, p.wide_stride};
    case Product::Form::input:  // dxᵀ [I, N] = Wᵀ dyᵀ
      return {p.weight, p.wide,    p.narrow, false,         false,   p.inputs,
              p.rows,   p.outputs, p.inputs, p.wide_stride, p.inputs};
    default:  // dWᵀ [I, O] = xᵀ dy
      return {p.narrow,  p.wide, p.weight, false,         true,    p.inputs,
              p.outputs, p.rows, p.inputs, p.wide_stride, p.inputs};
  }
}

/// The largest power of two up to 256 that divides the addresses of all three matrices.
int64_t alignment_of(const Columns& x) {
  const auto bits = reinterpret_cast<uintptr_t>(x.a) | reinterpret_cast<uintptr_t>(x.b) |
                    reinterpret_cast<uintptr_t>(x.c) | 256u;
  return static_cast<int64_t>(bits & (~bits + 1));
}

}  // namespace

struct CublasLt::Functions {
  Functions() : library("libcublasLt.so.13") {
    if (!library.found())
      throw AdvisedError(
          "‹device cuda› needs libcublasLt.so.13, which was not found; install CUDA 13's cuBLAS "
          "(Debian: libcublas-13-0; pip: nvidia-cublas), name its folder in LD_LIBRARY_PATH, or "
          "choose ‹device cpu›");
    library.bind(create, "cublasLtCreate");
    library.bind(destroy, "cublasLtDestroy");
    library.bind(matmul, "cublasLtMatmul");
    library.bind(desc_create, "cublasLtMatmulDescCreate");
    library.bind(desc_destroy, "cublasLtMatmulDescDestroy");
    library.bind(desc_set, "cublasLtMatmulDescSetAttribute");
    library.bind(layout_create, "cublasLtMatrixLayoutCreate");
    library.bind(layout_destroy, "cublasLtMatrixLayoutDestroy");
    library.bind(preference_create, "cublasLtMatmulPreferenceCreate");
    library.bind(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    library.bind(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    library.bind(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    check_blas(create(&handle), "cublasLtCreate");
  }
  ~Functions() { destroy(handle); }

  Library library;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  cublasLtHandle_t handle = nullptr;
};

struct CublasLt::Plan {
  Plan(const Functions& lt, const Product& p) : lt_(lt) {
    const Columns x = columns_of(p);
    const cudaDataType_t operand = type_of(p.left_type()), result = type_of(p.result_type());
    // f32 means f32: no TF32.
    check_blas(lt.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
    const cublasOperation_t a = x.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t b = x.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_blas(lt.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a), "a product");
    check_blas(lt.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b), "a product");
    const auto layout = [&](cublasLtMatrixLayout_t* to, cudaDataType_t type, int64_t rows,
                            int64_t columns, int64_t leading) {
      check_blas(lt.layout_create(to, type, static_cast<uint64_t>(rows),
                                  static_cast<uint64_t>(columns), leading),
                 "a matrix");
    };
    layout(&a_layout, operand, x.transpose_a ? x.k : x.m, x.transpose_a ? x.m : x.k, x.lda);
    layout(&b_layout, operand, x.transpose_b ? x.n : x.k, x.transpose_b ? x.k : x.n, x.ldb);
    layout(&c_layout, result, x.m, x.n, x.ldc);

    cublasLtMatmulPreference_t preference;
    check_blas(lt.preference_create(&preference), "a product");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check_blas(lt.preference_set(preference, attribute, &value, sizeof value), "a product");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(attribute, static_cast<uint32_t>(alignment_of(x)));
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    const cublasStatus_t status = lt.heuristic(lt.handle, desc, a_layout, b_layout, c_layout,
                                               c_layout, preference, 1, &found, &count);
    lt.preference_destroy(preference);
    possible = status == CUBLAS_STATUS_SUCCESS && count > 0;
    if (possible) algorithm = found.algo;
  }
  ~Plan() {
    lt_.layout_destroy(a_layout);
    lt_.layout_destroy(b_layout);
    lt_.layout_destroy(c_layout);
    lt_.desc_destroy(desc);
  }

  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a_layout = nullptr, b_layout = nullptr, c_layout = nullptr;
  cublasLtMatmulAlgo_t algorithm;
  bool possible = false;

 private:
  const Functions& lt_;
};

CublasLt::CublasLt() : functions_(std::make_unique<Functions>()) {}
CublasLt::~CublasLt() { plans_.clear(); }

CublasLt::Plan& CublasLt::plan_for(const Product& p) {
  const Columns x = columns_of(p);
  const Key key{p.form,    p.left_type(), p.result_type(), p.rows,
                p.outputs, p.inputs,      p.wide_stride,   alignment_of(x)};
  if (plans_.size() >= kMostPlans && !plans_.contains(key)) plans_.clear();
  auto& plan = plans_[key];
  if (!plan) plan = std::make_unique<Plan>(*functions_, p);
  return *plan;
}

bool CublasLt::multiply(const Product& p, Scratch& scratch, cudaStream_t stream) {
  const Plan& plan = plan_for(p);
  if (!plan.possible) return false;
  const Columns x = columns_of(p);
  const auto alpha = static_cast<float>(p.scale);
  const float beta = p.accumulate ? 1.0f : 0.0f;
  check_blas(functions_->matmul(functions_->handle, plan.desc, &alpha, x.a, plan.a_layout, x.b,
                                plan.b_layout, &beta, x.c, plan.c_layout, x.c, plan.c_layout,
                                &plan.algorithm, scratch.take<char>(kWorkspaceBytes),
                                static_cast<size_t>(kWorkspaceBytes), stream),
             "a product");
  return true;
}

}  // namespace mixtral::cuda
