#include "cuda/backend.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "base/advice.h"
#include "cuda/blas.h"
#include "cuda/copy_lane.h"
#include "cuda/cudnn_attention.h"
#include "cuda/norm_few.h"
#include "cuda/rope.h"
#include "cuda/scratch.h"
#include "cuda/staging.h"
#include "cuda/stamps.h"
#include "cuda/status.h"

namespace mixtral::cuda {
namespace {

/// CUDA's ordinals of the GPUs that these kernels run on. Their machine code is for compute
/// capability 9.0 exactly.
std::vector<int> usable_devices(cudaError_t* status) {
  int count = 0;
  *status = cudaGetDeviceCount(&count);
  if (*status != cudaSuccess) {
    cudaGetLastError();
    return {};
  }
  std::vector<int> usable;
  for (int device = 0; device < count; ++device) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (major == 9 && minor == 0) usable.push_back(device);
  }
  return usable;
}

/// Makes a GPU the current device of the calling thread: launches and allocations go there.
void make_current(int device) {
  int current = -1;
  check_cuda(cudaGetDevice(&current), "the GPU");
  if (current != device) check_cuda(cudaSetDevice(device), "the GPU");
}

/// A CUDA graph, ready to be launched again behind what `prepare` launches.
class GraphProgram final : public Program {
 public:
  GraphProgram(cudaGraph_t graph, std::function<void()> prepare, cudaStream_t stream)
      : prepare_(std::move(prepare)), stream_(stream) {
    check_cuda(cudaGraphInstantiate(&executable_, graph, 0), "a recorded computation");
  }
  ~GraphProgram() override { cudaGraphExecDestroy(executable_); }
  void replay() override {
    prepare_();
    check_cuda(cudaGraphLaunch(executable_, stream_), "a recorded computation");
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
  std::function<void()> prepare_;
  cudaStream_t stream_;
};

}  // namespace

int device_count() {
  cudaError_t status;
  return static_cast<int>(usable_devices(&status).size());
}

std::unique_ptr<Backend> make_backend(int index) {
  const std::string flag = fmt::format("‹device cuda:{}›", index);
  cudaError_t status;
  const std::vector<int> usable = usable_devices(&status);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    const std::string found = driver == 0
                                  ? "there is no NVIDIA driver"
                                  : fmt::format("the NVIDIA driver supports CUDA up to {}.{}",
                                                driver / 1000, driver % 1000 / 10);
    throw AdvisedError(
        fmt::format("{}: {}, and this program needs one for CUDA {}.{} or later; install "
                    "it, or choose ‹device cpu›",
                    flag, found, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10));
  }
  if (status == cudaErrorNoDevice)
    throw AdvisedError(flag + ": this machine has no NVIDIA GPU; choose ‹device cpu›");
  if (status != cudaSuccess)
    throw AdvisedError(fmt::format("{}: CUDA does not start: {}; choose ‹device cpu›", flag,
                                   cudaGetErrorString(status)));
  if (usable.empty())
    throw AdvisedError(flag +
                       ": this machine's GPUs are not of the Hopper architecture (compute "
                       "capability 9.0), for which this program is built; choose ‹device cpu›");
  if (index >= static_cast<int>(usable.size()))
    throw AdvisedError(
        fmt::format("{}: this machine has {} usable GPUs; choose a number below that, or "
                    "‹device cpu›",
                    flag, usable.size()));
  return std::make_unique<CudaBackend>(usable[static_cast<size_t>(index)], index);
}

CudaBackend::CudaBackend(int device, int index) : device_(device), index_(index) {
  use_device();
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, device_), "the GPU");
  processors_ = properties.multiProcessorCount;
  int driver = 0;
  cudaDriverGetVersion(&driver);
  description_ = fmt::format("{}, {:.0f} GiB, {} multiprocessors, CUDA {}.{}", properties.name,
                             static_cast<double>(properties.totalGlobalMem) / (1 << 30),
                             processors_, driver / 1000, driver % 1000 / 10);
  blas_ = std::make_unique<CublasLt>();  // first: it may be missing
  size_t available = 0, total = 0;
  check_cuda(cudaMemGetInfo(&available, &total), "the GPU's memory");
  if (available < size_t{2} * CublasLt::kWorkspaceBytes)
    throw AdvisedError(
        fmt::format("‹device cuda:{}›: only {} of the GPU's {} MiB are free; end what uses them "
                    "(nvidia-smi names it), or choose another GPU or ‹device cpu›",
                    index_, available >> 20, total >> 20));
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  scratch_ = std::make_unique<Scratch>();
  staging_ = std::make_unique<Staging>();
  side_copies_ = std::make_unique<SideCopies>();
  stamps_ = std::make_unique<Stamps>();
  cudnn_ = std::make_unique<CudnnAttention>();
  // Nearly all work needs it, so it counts as in use from the start.
  scratch().take<char>(CublasLt::kWorkspaceBytes);
  const MemoryInfo info = memory();
  opened_ = info.total - info.available;
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream_);
  cudnn_.reset();
  blas_.reset();
  stamps_.reset();
  side_copies_.reset();
  staging_.reset();
  scratch_.reset();
  cudaStreamDestroy(stream_);
}

void CudaBackend::make_current() const { cuda::make_current(device_); }

void CudaBackend::use_device() const {
  make_current();
  launch_waiting();
  behind_ = std::exchange(last_, Launch::plain);
}

void CudaBackend::launch_waiting(const ops::GatherRows* gather) const {
  if (!waiting_.combine && !waiting_.norm && !waiting_.rope) return;
  const Waiting ops = std::exchange(waiting_, {});
  make_current();
  const auto given = [](const auto& op) { return op ? &*op : nullptr; };
  if (ops.norm)
    norm_few(*ops.norm, given(ops.combine), given(ops.router), given(ops.route), gather,
             given(ops.fixed), stream_);
  else if (ops.combine)
    combine_rows(*ops.combine, stream_);
  else
    rotate(*ops.rope, stream_);
  last_ = ops.route ? Launch::plain : Launch::chained;  // a route writes offsets
}

std::string CudaBackend::name() const { return fmt::format("cuda:{}", index_); }
std::string CudaBackend::description() const {
  return fmt::format("{}, {}", description_, cudnn_->description());
}

Backend::MemoryInfo CudaBackend::memory() const {
  use_device();
  size_t available = 0, total = 0;
  check_cuda(cudaMemGetInfo(&available, &total), "the GPU's memory");
  return {.total = static_cast<int64_t>(total),
          .available = static_cast<int64_t>(available),
          .scratch = scratch_->bytes(),
          .opened = opened_};
}

void* CudaBackend::allocate(int64_t bytes) {
  use_device();
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const MemoryInfo info = memory();
    throw AdvisedError(fmt::format(
        "out of GPU memory: {} bytes were asked for, and {} of {} are free on {}; use a smaller "
        "‹batch-size› or ‹context›, ‹recompute›, or a smaller model",
        bytes, info.available, info.total, name()));
  }
  check_cuda(status, "an allocation");
  return data;
}

void CudaBackend::free(void* data, int64_t) noexcept {
  try {
    use_device();  // what waits may read the block
  } catch (...) {  // an error of its launch, which a later call meets, too
  }
  // cudaFree waits for all work of the block's device, so nothing still uses it. It finds that
  // device by the address.
  cudaFree(data);
}

void CudaBackend::upload(const Tensor& host, const Tensor& device) {
  use_device();
  CHECK(host.dtype() == device.dtype() && host.numel() == device.numel());
  CHECK(!recording_, "a copy from the host cannot be recorded");
  staging_->upload(host.data(), device.data(), host.bytes(), stream_);
}

void CudaBackend::download(const Tensor& device, const Tensor& host) {
  use_device();
  CHECK(host.dtype() == device.dtype() && host.numel() == device.numel());
  CHECK(!recording_, "a copy to the host cannot be recorded");
  staging_->download(device.data(), host.data(), host.bytes(), stream_);
}

void CudaBackend::synchronize() {
  use_device();
  CHECK(!recording_, "waiting cannot be recorded");
  check_cuda(cudaStreamSynchronize(stream_), "the GPU's work");
}

void CudaBackend::upload_ahead(const Tensor& host, const Tensor& device) {
  use_device();
  if (host.bytes() > SideCopies::kMostBytes) return upload(host, device);
  CHECK(host.dtype() == device.dtype() && host.numel() == device.numel());
  CHECK(!recording_, "a copy from the host cannot be recorded");
  side_copies_->upload(host.data(), device.data(), host.bytes(), stream_);
}

void CudaBackend::mark() {
  use_device();
  CHECK(!recording_, "a mark cannot be recorded");
  side_copies_->mark(stream_);
}

void CudaBackend::download_marked(const Tensor& device, const Tensor& host) {
  use_device();
  if (!side_copies_->marked()) return download(device, host);
  CHECK(host.dtype() == device.dtype() && host.numel() == device.numel());
  CHECK(!recording_, "a copy to the host cannot be recorded");
  side_copies_->download(device.data(), host.data(), host.bytes());
}

std::unique_ptr<Fence> CudaBackend::make_fence() {
  use_device();
  return std::make_unique<StreamFence>(stream_, [this] { use_device(); });
}

std::unique_ptr<CopyLane> CudaBackend::make_copy_lane() {
  use_device();
  return std::make_unique<StreamLane>(device_);
}

std::unique_ptr<LockedPages> CudaBackend::lock_pages(void* data, int64_t bytes) {
  use_device();
  return std::make_unique<RegisteredPages>(data, bytes);
}

int64_t CudaBackend::stamp() {
  use_device();
  return stamps_->set(stream_, recording_);
}

double CudaBackend::seconds_between(int64_t from, int64_t to) {
  use_device();
  return stamps_->seconds(from, to);
}

void CudaBackend::forget_stamps() { stamps_->forget(); }

std::unique_ptr<Program> CudaBackend::record(std::function<void()> work) {
  use_device();
  CHECK(!recording_, "recordings do not nest");
  // Relaxed: scratch memory and plans may still have to be made while the work is recorded.
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "a recording");
  recording_ = true;
  scratch_->begin_recording();
  cudaGraph_t graph = nullptr;
  try {
    work();
    use_device();
  } catch (...) {
    recording_ = false;
    scratch_->end_recording();
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  recording_ = false;
  scratch_->end_recording();
  check_cuda(cudaStreamEndCapture(stream_, &graph), "a recording");
  std::unique_ptr<GraphProgram> program;
  try {
    program = std::make_unique<GraphProgram>(graph, [this] { use_device(); }, stream_);
  } catch (...) {
    cudaGraphDestroy(graph);
    throw;
  }
  cudaGraphDestroy(graph);
  program->replay();
  return program;
}

Scratch& CudaBackend::scratch() {
  scratch_->begin();
  return *scratch_;
}

}  // namespace mixtral::cuda
