#include "train/step_runner.h"

#include <cstring>
#include <utility>

#include "tensor/cutter.h"

namespace mixtral {
namespace {

/// Copies values to where a tensor in host memory stands.
template <class T>
void put(const Tensor& to, const std::vector<T>& values) {
  if (values.empty()) return;
  CHECK(to.bytes() == static_cast<int64_t>(values.size() * sizeof(T)));
  std::memcpy(to.data(), values.data(), values.size() * sizeof(T));
}

}  // namespace

StepRunner::StepRunner(Context& ctx, Criterion& criterion, Optimizer& optimizer, bool record)
    : ctx_(ctx),
      criterion_(criterion),
      optimizer_(optimizer),
      record_(record),
      recordings_(ctx.backend(), ctx.arena(), kMostPrograms) {}

StepRunner::Inputs StepRunner::inputs_at(void* base) const {
  Cutter cutter(base);
  auto take = [&](size_t count, Dtype dtype) {
    return count == 0 ? Tensor() : cutter.take({static_cast<int64_t>(count)}, dtype);
  };
  Inputs inputs;
  inputs.schedule = take(4, Dtype::f64);
  inputs.label_scale = take(1, ctx_.statistics());
  inputs.dropout_seeds = take(step_.dropout_seeds.size(), Dtype::i64);
  for (const HostBatch& host : step_.batches) {
    Batch batch;
    batch.tokens = take(host.tokens.size(), Dtype::i32);
    batch.labels = take(host.labels.size(), Dtype::i32);
    batch.sequences = {.positions = take(host.positions.size(), Dtype::i32),
                       .starts = take(host.sequence_starts.size(), Dtype::i32),
                       .longest = host.longest(),
                       .rows = {}};
    inputs.batches.push_back(batch);
  }
  inputs.bytes = cutter.size();
  return inputs;
}

void StepRunner::make_room(int64_t bytes) {
  if (bytes <= device_.bytes()) return;
  // Some more, so that steps that grow a little each time do not move the block each time.
  const int64_t room = bytes + bytes / 2;
  recordings_.clear();
  host_ = Buffer(host_memory(), room);
  device_ = Buffer();
  device_ = Buffer(ctx_.backend(), room);
}

void StepRunner::fill(const Inputs& host) const {
  const auto schedule = optimizer_.next_schedule(step_.lr);
  std::memcpy(host.schedule.data(), schedule.data(), sizeof schedule);
  const double scale = label_scale(size_);
  if (host.label_scale.dtype() == Dtype::f64)
    *host.label_scale.as<double>() = scale;
  else
    *host.label_scale.as<float>() = static_cast<float>(scale);
  if (!step_.dropout_seeds.empty())
    std::memcpy(host.dropout_seeds.data(), step_.dropout_seeds.data(),
                static_cast<size_t>(host.dropout_seeds.bytes()));
  for (size_t i = 0; i < step_.batches.size(); ++i) {
    const HostBatch& from = step_.batches[i];
    const Batch& to = host.batches[i];
    put(to.tokens, from.tokens);
    put(to.labels, from.labels);
    put(to.sequences.positions, from.positions);
    put(to.sequences.starts, from.sequence_starts);
  }
}

StepSize StepRunner::stage(Step step) {
  CHECK(!staged_ && !step.batches.empty());
  CHECK(step.dropout_seeds.empty() || step.dropout_seeds.size() == step.batches.size());
  step_ = std::move(step);
  size_ = {.weight = 0, .batches = static_cast<int64_t>(step_.batches.size())};
  for (const HostBatch& batch : step_.batches) {
    criterion_.check(batch);
    size_.weight += criterion_.weight(batch);
  }
  const int64_t bytes = inputs_at(nullptr).bytes;
  make_room(bytes);
  fill(inputs_at(host_.data()));
  const Shape block{bytes};
  ctx_.backend().upload_ahead(host_.tensor(block, Dtype::u8), device_.tensor(block, Dtype::u8));
  staged_ = true;
  return size_;
}

Recordings::Shape StepRunner::shape() const {
  Recordings::Shape shape{static_cast<int64_t>(step_.dropout_seeds.size())};
  for (const HostBatch& batch : step_.batches)
    for (const int64_t number : {batch.size(), static_cast<int64_t>(batch.labels.size()),
                                 batch.sequences(), batch.longest()})
      shape.push_back(number);
  return shape;
}

void StepRunner::issue(const Inputs& inputs, const std::vector<HostBatch>* batches) const {
  // Recorded work must serve steps of any weight, and so is given none.
  const StepSize size{.weight = batches ? size_.weight : 0,
                      .batches = static_cast<int64_t>(inputs.batches.size())};
  criterion_.begin(ctx_, 0);
  for (size_t i = 0; i < inputs.batches.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    const TrainingScope scope(
        ctx_,
        {.dropout_seed = inputs.dropout_seeds ? inputs.dropout_seeds.slice(row, row + 1) : Tensor(),
         .fresh_gradients = i == 0});
    criterion_.add_gradients(ctx_,
                             {.host = batches ? &(*batches)[i] : nullptr,
                              .batch = inputs.batches[i],
                              .label_scale = inputs.label_scale},
                             size, 0);
  }
  optimizer_.update(ctx_, inputs.schedule, criterion_.squared_norm(0), Clear::added);
}

void StepRunner::run() {
  CHECK(staged_, "a step is staged before it runs");
  ctx_.arena().reset();
  const Inputs inputs = inputs_at(device_.data());
  if (record_ && criterion_.recordable())
    recordings_.run(
        shape(), [&] { issue(inputs, &step_.batches); },
        [this, inputs] { issue(inputs, nullptr); });
  else
    issue(inputs, &step_.batches);
  optimizer_.count_step();
  staged_ = false;
}

}  // namespace mixtral
