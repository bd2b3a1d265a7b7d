#include "cuda/cudnn_attention.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "cuda/library.h"
#include "cuda/status.h"
#include "cuda_plan/attention_part.h"

// The frontend's way of being told where cuDNN is.
namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace mixtral::cuda {
namespace {

namespace fe = cudnn_frontend;

enum Uid : int64_t { kQ = 1, kK, kV, kO, kStats, kDo, kDq, kDk, kDv };

/// Sequences of one length: how many, or 0 when they may differ. No sequence is longer than the
/// bound, so only equal ones can fill all rows.
int64_t uniform_sequences(const Tensor& sequence_starts, int64_t tokens, int64_t longest) {
  const int64_t sequences = sequence_starts.dim(0) - 1;
  return sequences * longest == tokens ? sequences : 0;
}

bool takes(const Tensor& qkv, const ops::Heads& heads, int64_t longest,
           std::initializer_list<Tensor> tensors) {
  if (qkv.dtype() != Dtype::bf16 || !cuda_plan::suits_cudnn(heads, longest)) return false;
  for (const Tensor& tensor : tensors)
    if (reinterpret_cast<uintptr_t>(tensor.data()) % 16 != 0) return false;
  return true;
}

char* at(const Tensor& tensor, int64_t element) {
  return static_cast<char*>(tensor.data()) + element * size_of(tensor.dtype());
}

}  // namespace

struct CudnnAttention::Library {
  Library() : library("libcudnn.so.9"), runtime(kRuntime) {
    if (!library.found() || !runtime.found()) return;
    fe::cudnn_dlhandle = library.handle();
    // The frontend opens the CUDA runtime by this name, which is found because it is open by now.
    // It would try an older one first.
    ::setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", kRuntime, 0);
  }
  ~Library() {
    if (handle) fe::detail::destroy_handle(handle);
  }

  static constexpr const char* kRuntime = "libcudart.so.13";

  cuda::Library library, runtime;
  cudnnHandle_t handle = nullptr;
};

struct CudnnAttention::Plan {
  fe::graph::Graph graph;
  int64_t workspace = 0;
  bool possible = false;
};

CudnnAttention::CudnnAttention() = default;
CudnnAttention::~CudnnAttention() { plans_.clear(); }

bool CudnnAttention::available() {
  if (!tried_) {
    tried_ = true;
    description_ =
        "without cuDNN (training in bf16 is faster with libcudnn.so.9; Debian: libcudnn9-cuda-13; "
        "pip: nvidia-cudnn-cu13)";
    auto library = std::make_unique<Library>();
    if (!library->library.found()) return false;
    if (!library->runtime.found()) {
      description_ =
          "without cuDNN, which needs libcudart.so.13 (Debian: cuda-cudart-13-0; pip: "
          "nvidia-cuda-runtime)";
      return false;
    }
    try {
      if (fe::detail::create_handle(&library->handle) != CUDNN_STATUS_SUCCESS) {
        description_ =
            "without cuDNN, which was found and does not start (training in bf16 is slower)";
        return false;
      }
      const auto version = fe::detail::get_backend_version();
      description_ =
          fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
      library_ = std::move(library);
    } catch (const std::exception& error) {
      description_ = fmt::format("without cuDNN: {}", error.what());
    }
  }
  return library_ != nullptr;
}

const std::string& CudnnAttention::description() {
  available();
  return description_;
}

CudnnAttention::Plan* CudnnAttention::plan_for(const Key& key) {
  auto& plan = plans_[key];
  if (plan) return plan->possible ? plan.get() : nullptr;
  plan = std::make_unique<Plan>();
  const auto& [gradient, sequences, length, query, kv, width, all_query, all_kv, window, statistics,
               scale] = key;
  auto& graph = plan->graph;
  graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  // Rows are those of the packed tensors, also when only some heads take part.
  const int64_t columns = int64_t{all_query + 2 * all_kv} * width;
  const int64_t out_columns = int64_t{all_query} * width;
  const auto matrix = [&](Uid uid, int64_t heads, int64_t stride) {
    return fe::graph::Tensor_attributes()
        .set_uid(uid)
        .set_name(fmt::format("t{}", static_cast<int>(uid)))
        .set_dim({sequences, heads, length, width})
        .set_stride({length * stride, width, stride, 1});
  };
  const auto q = graph.tensor(matrix(kQ, query, columns));
  const auto k = graph.tensor(matrix(kK, kv, columns));
  const auto v = graph.tensor(matrix(kV, kv, columns));
  const auto result = [](const std::shared_ptr<fe::graph::Tensor_attributes>& tensor,
                         const fe::graph::Tensor_attributes& as) {
    tensor->set_output(true)
        .set_uid(as.get_uid())
        .set_dim(as.get_dim())
        .set_stride(as.get_stride());
  };
  // The band of keys that a query sees: itself and, with a window, the window − 1 before it.
  const auto restrict = [&, window = window](auto& options) {
    options.set_attn_scale(static_cast<float>(scale))
        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
    if (window > 0 && window < length)
      options.set_diagonal_band_left_bound(static_cast<int>(window));
  };
  if (!gradient) {
    auto options = fe::graph::SDPA_attributes().set_name("attention");
    options.set_generate_stats(statistics);
    restrict(options);
    auto [out, stats] = graph.sdpa(q, k, v, options);
    result(out, matrix(kO, query, out_columns));
    if (statistics)
      stats->set_output(true)
          .set_uid(kStats)
          .set_data_type(fe::DataType_t::FLOAT)
          .set_dim({sequences, query, length, 1})
          .set_stride({length * query, 1, query, 1});
  } else {
    auto options = fe::graph::SDPA_backward_attributes().set_name("attention_backward");
    options.set_deterministic_algorithm(true);
    restrict(options);
    const auto out = graph.tensor(matrix(kO, query, out_columns));
    const auto dout = graph.tensor(matrix(kDo, query, out_columns));
    const auto stats = graph.tensor(fe::graph::Tensor_attributes()
                                        .set_uid(kStats)
                                        .set_name("statistics")
                                        .set_data_type(fe::DataType_t::FLOAT)
                                        .set_dim({sequences, query, length, 1})
                                        .set_stride({query * length, length, 1, 1}));
    auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, dout, stats, options);
    result(dq, matrix(kDq, query, columns));
    result(dk, matrix(kDk, kv, columns));
    result(dv, matrix(kDv, kv, columns));
  }
  try {
    plan->possible = graph.build(library_->handle, {fe::HeurMode_t::A}).is_good() &&
                     graph.get_workspace_size(plan->workspace).is_good();
  } catch (const std::exception&) {
    plan->possible = false;  // of no consequence: other kernels compute the op
  }
  return plan->possible ? plan.get() : nullptr;
}

bool CudnnAttention::forward(const ops::Attention& op, Scratch& scratch, cudaStream_t stream) {
  if (!takes(op.qkv, op.heads, op.longest, {op.qkv, op.out})) return false;
  const int64_t sequences = uniform_sequences(op.sequence_starts, op.qkv.dim(0), op.longest);
  if (sequences == 0 || !available()) return false;
  const auto& heads = op.heads;
  Plan* plan = plan_for({false, sequences, op.longest, heads.query, heads.kv, heads.width,
                         heads.query, heads.kv, op.window, !op.log_sum.empty(), op.scale});
  if (!plan) return false;
  std::unordered_map<int64_t, void*> pointers{
      {kQ, op.qkv.data()},
      {kK, at(op.qkv, int64_t{heads.query} * heads.width)},
      {kV, at(op.qkv, int64_t{heads.query + heads.kv} * heads.width)},
      {kO, op.out.data()}};
  if (op.log_sum) pointers[kStats] = op.log_sum.data();
  fe::detail::set_stream(library_->handle, stream);
  auto status =
      plan->graph.execute(library_->handle, pointers, scratch.take<char>(plan->workspace));
  if (status.is_bad()) throw Error("attention: cuDNN failed: " + status.get_message());
  return true;
}

bool CudnnAttention::backward(const ops::AttentionBackward& op, Scratch& scratch,
                              cudaStream_t stream) {
  if (!takes(op.qkv, op.heads, op.longest, {op.qkv, op.out, op.dout, op.dqkv})) return false;
  const int64_t length = op.longest;
  const int64_t sequences = uniform_sequences(op.sequence_starts, op.qkv.dim(0), length);
  if (sequences == 0) return false;
  const auto& heads = op.heads;
  const cuda_plan::AttentionPart part =
      cuda_plan::attention_part(heads, sequences, length, op.window);
  if (part.bytes == 0 || !available()) return false;
  const int64_t group = heads.query / heads.kv;
  Plan* plan = plan_for({true, part.sequences, length, static_cast<int>(part.kv_heads * group),
                         static_cast<int>(part.kv_heads), heads.width, heads.query, heads.kv,
                         op.window, true, op.scale});
  if (!plan) return false;

  auto* statistics = scratch.take<float>(op.log_sum.numel());
  arrange_statistics(static_cast<const float*>(op.log_sum.data()), sequences, part.sequences,
                     length, heads.query, part.kv_heads * group, statistics, stream);
  auto* workspace = scratch.take<char>(plan->workspace);
  fe::detail::set_stream(library_->handle, stream);
  for (int64_t s = 0; s < sequences; s += part.sequences) {
    for (int64_t g = 0; g < heads.kv; g += part.kv_heads) {
      const int64_t row = s * length * heads.columns();
      const int64_t query = row + g * group * heads.width;
      const int64_t key = row + (heads.query + g) * heads.width;
      const int64_t value = key + int64_t{heads.kv} * heads.width;
      const int64_t out = (s * length * heads.query + g * group) * heads.width;
      std::unordered_map<int64_t, void*> pointers{
          {kQ, at(op.qkv, query)},   {kK, at(op.qkv, key)},   {kV, at(op.qkv, value)},
          {kO, at(op.out, out)},     {kDo, at(op.dout, out)}, {kStats, statistics},
          {kDq, at(op.dqkv, query)}, {kDk, at(op.dqkv, key)}, {kDv, at(op.dqkv, value)}};
      auto status = plan->graph.execute(library_->handle, pointers, workspace);
      if (status.is_bad()) throw Error("attention_backward: cuDNN failed: " + status.get_message());
      statistics += part.sequences * part.kv_heads * group * length;
    }
  }
  return true;
}

}  // namespace mixtral::cuda
