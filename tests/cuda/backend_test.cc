// The CUDA backend as a device: memory, copies, recordings, errors. Skipped without a GPU, except
// for what a machine without one must answer.
#include "cuda/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

namespace mixtral {
namespace {

TEST(CudaDevices, OpeningAGpuThatIsNotThereSaysWhatIsMissing) {
  const int index = cuda::device_count() == 0 ? 0 : 99;
  try {
    cuda::make_backend(index);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("device cpu"));
  }
}

class CudaBackend : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU that the CUDA backend can use";
    backend_ = cuda::make_backend(0);
  }
  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaBackend, SaysWhatItIs) {
  EXPECT_EQ(backend_->name(), "cuda:0");
  EXPECT_THAT(backend_->description(), testing::HasSubstr("multiprocessors"));
  const auto memory = backend_->memory();
  EXPECT_GT(memory.available, 0);
  EXPECT_LE(memory.available, memory.total);
  EXPECT_GT(memory.opened, 0);
  EXPECT_LE(memory.opened, memory.total);
}

TEST_F(CudaBackend, CopiesOfAnySizeArriveWhole) {
  for (const int64_t count : {1, 3, 1000, (8 << 20) / 4, (8 << 20) / 4 + 1, 11'000'003}) {
    std::vector<int32_t> values(static_cast<size_t>(count)), back(values.size(), -1);
    std::iota(values.begin(), values.end(), 7);
    const std::vector<int32_t> expected = values;
    const Buffer buffer(*backend_, count * 4);
    const Tensor device = buffer.tensor({count}, Dtype::i32);
    backend_->upload(Tensor(std::span(values)), device);
    std::fill(values.begin(), values.end(), 0);  // the copy has its own bytes by now
    backend_->download(device, Tensor(std::span(back)));
    EXPECT_EQ(back, expected) << count;
  }
}

TEST_F(CudaBackend, ManySmallUploadsKeepTheirOrder) {
  const Buffer buffer(*backend_, 16);
  const Tensor device = buffer.tensor({1}, Dtype::i32);
  int32_t back = 0;
  for (int32_t i = 0; i < 5000; ++i) backend_->upload(Tensor(&i, {1}, Dtype::i32), device);
  backend_->download(device, Tensor(&back, {1}, Dtype::i32));
  EXPECT_EQ(back, 4999);
}

TEST_F(CudaBackend, LanesCopyBesideTheWorkAndBehindAFence) {
  constexpr int64_t kCount = int64_t{8} << 20;
  const Buffer host(host_memory(), kCount * 4), first(*backend_, kCount * 4),
      second(*backend_, kCount * 4);
  const Tensor values = host.tensor({kCount}, Dtype::f32),
               from = first.tensor({kCount}, Dtype::f32), to = second.tensor({kCount}, Dtype::f32);
  std::ranges::fill(values.span<float>(), 2.0F);
  const auto locked = backend_->lock_pages(host.data(), host.bytes());
  const auto fence = backend_->make_fence(), none = backend_->make_fence();
  const auto lane = backend_->make_copy_lane();
  for (int i = 0; i < 20; ++i) {
    backend_->run(ops::Fill{.x = from, .value = 1});
    for (int times = 0; times < 10; ++times) backend_->run(ops::Convert{.x = from, .y = to});
    fence->set();
    lane->to_device(host.data(), first.data(), host.bytes(), *fence);  // not before they are read
    std::vector<float> seen(static_cast<size_t>(kCount));
    backend_->download(to, Tensor(std::span(seen)));
    ASSERT_EQ(std::ranges::count(seen, 1.0F), kCount);
    backend_->run(ops::Convert{.x = from, .y = to});  // what arrived
    fence->set();
    std::ranges::fill(seen, 0.0F);
    lane->to_host(second.data(), seen.data(), host.bytes(), *fence);
    ASSERT_EQ(std::ranges::count(seen, 2.0F), kCount);
  }
  lane->to_device(host.data(), first.data(), host.bytes(), *none);  // behind nothing
  EXPECT_THAT([&] { (void)backend_->lock_pages(host.data(), host.bytes()); },
              testing::Throws<Error>());  // once is enough
}

TEST_F(CudaBackend, RefusesMoreMemoryThanThereIsAndGoesOn) {
  try {
    const Buffer buffer(*backend_, int64_t{1} << 42);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("4398046511104 bytes"));
  }
  const Buffer buffer(*backend_, 64);
  backend_->run(ops::Fill{.x = buffer.tensor({16}, Dtype::f32), .value = 1});
  backend_->synchronize();
}

TEST_F(CudaBackend, ARecordingRunsOnceAndThenAgainAtEachReplay) {
  const Buffer buffer(*backend_, 64);
  const Tensor x = buffer.tensor({1}, Dtype::f32), y = buffer.tensor({8}, Dtype::f32).slice(4, 5);
  backend_->run(ops::Fill{.x = x, .value = 1});
  backend_->run(ops::Fill{.x = y, .value = 0});
  int calls = 0;
  const auto program = backend_->record([&] {
    ++calls;
    backend_->run(ops::AddScaled{.x = x, .y = y, .scale = 2});
  });
  float value = 0;
  const Tensor host(&value, {1}, Dtype::f32);
  backend_->download(y, host);
  EXPECT_EQ(value, 2);
  for (int i = 0; i < 3; ++i) program->replay();
  backend_->download(y, host);
  EXPECT_EQ(value, 8);
  EXPECT_EQ(calls, 1);
}

TEST_F(CudaBackend, UploadsAheadTakeTheirPlaceInTheOrderOfWork) {
  for (const int64_t count : {1, 300, 70'000, 5'000'000}) {
    const Buffer from(*backend_, count * 4), to(*backend_, count * 4);
    const Tensor x = from.tensor({count}, Dtype::f32), sum = to.tensor({count}, Dtype::f32);
    backend_->run(ops::Fill{.x = sum});
    std::vector<float> values(static_cast<size_t>(count));
    for (int i = 1; i <= 20; ++i) {
      std::fill(values.begin(), values.end(), static_cast<float>(i));
      backend_->upload_ahead(Tensor(std::span(values)), x);
      for (int repeat = 0; repeat < 10; ++repeat)
        backend_->run(ops::AddScaled{.x = x, .y = sum, .scale = static_cast<double>(i)});
    }
    backend_->download(sum, Tensor(std::span(values)));
    EXPECT_EQ(values, std::vector<float>(values.size(), 10 * 2870.0f)) << count;
  }
}

TEST_F(CudaBackend, MarkedDownloadsSeeTheWorkBeforeTheMark) {
  const int64_t count = 1 << 24;
  const Buffer large(*backend_, count * 4), small(*backend_, 4);
  const Tensor x = large.tensor({count}, Dtype::f32), y = small.tensor({1}, Dtype::f32);
  float value = 0;
  for (int i = 1; i <= 50; ++i) {
    backend_->run(ops::Fill{.x = x, .value = static_cast<double>(i)});
    backend_->run(ops::Convert{.x = x.slice(count - 1, count), .y = y});
    backend_->mark();
    backend_->run(ops::Fill{.x = x, .value = -1});
    backend_->download_marked(y, Tensor(&value, {1}, Dtype::f32));
    EXPECT_EQ(value, static_cast<float>(i));
  }
}

TEST_F(CudaBackend, AFailedRecordingLeavesTheDeviceUsable) {
  const Buffer buffer(*backend_, 64);
  const Tensor x = buffer.tensor({4}, Dtype::f32);
  EXPECT_THROW(backend_->record([&] {
    backend_->run(ops::Fill{.x = x, .value = 3});
    backend_->synchronize();  // not allowed in a recording
  }),
               InternalError);
  backend_->run(ops::Fill{.x = x, .value = 5});
  float value = 0;
  backend_->download(x.slice(0, 1), Tensor(&value, {1}, Dtype::f32));
  EXPECT_EQ(value, 5);
}

/// Two backends in one process: of two GPUs where there are two, else of one.
TEST_F(CudaBackend, TwoOfThemWorkInTurnAndFromThreadsOfTheirOwn) {
  const auto other = cuda::make_backend(cuda::device_count() > 1 ? 1 : 0);
  const int64_t rows = 64, width = 256, steps = 200;
  struct Work {
    Backend& backend;
    Buffer buffer;
    Tensor x, weight, y;
    std::vector<float> result;
    Work(Backend& b) : backend(b), buffer(b, (2 * rows + width) * width * 4) {
      const Tensor all = buffer.tensor({2 * rows + width, width}, Dtype::f32);
      x = all.slice(0, rows), y = all.slice(rows, 2 * rows);
      weight = all.slice(2 * rows, 2 * rows + width);
      backend.run(ops::RandomNormal{.x = x, .seed = 1});
      backend.run(ops::RandomNormal{.x = weight, .seed = 2, .deviation = 0.1});
    }
    void step() {
      backend.run(ops::GroupedMatmul{.x = x, .weight = weight, .offsets = {}, .y = y});
      backend.run(ops::AddScaled{.x = y, .y = x, .scale = 0.01});
    }
    void read() {
      result.resize(static_cast<size_t>(x.numel()));
      backend.download(x, Tensor(result.data(), x.shape(), Dtype::f32));
    }
  };
  Work alone(*backend_);
  for (int i = 0; i < steps; ++i) alone.step();
  alone.read();

  Work first(*backend_), second(*other);  // one thread, in turn
  for (int i = 0; i < steps; ++i) first.step(), second.step();
  first.read(), second.read();
  EXPECT_EQ(first.result, alone.result);
  EXPECT_EQ(second.result, alone.result);

  Work third(*backend_), fourth(*other);  // a thread each, which did not open the backend
  const auto run = [&](Work& work) {
    const auto program = work.backend.record([&] { work.step(); });
    for (int i = 1; i < steps; ++i) program->replay();
    work.read();
  };
  std::thread a([&] { run(third); }), b([&] { run(fourth); });
  a.join(), b.join();
  EXPECT_EQ(third.result, alone.result);
  EXPECT_EQ(fourth.result, alone.result);
}

}  // namespace
}  // namespace mixtral
