#include "ops/elementwise.h"

#include <cmath>
#include <cstring>

#include "base/random.h"
#include "ref/array.h"
#include "ref/backend.h"

namespace mixtral::ref {
namespace {

template <class T>
void fill_integers(const Tensor& x, double value) {
  for (T& element : x.span<T>()) element = static_cast<T>(value);
}

}  // namespace

void RefBackend::run(const ops::Fill& op) {
  const Floats x(op.x);
  switch (op.x.dtype()) {
    case Dtype::i64:
      return fill_integers<int64_t>(op.x, op.value);
    case Dtype::i32:
      return fill_integers<int32_t>(op.x, op.value);
    case Dtype::u8:
      return fill_integers<uint8_t>(op.x, op.value);
    default:
      for (int64_t i = 0; i < x.size(); ++i) x[i] = op.value;
  }
}

void RefBackend::run(const ops::Convert& op) {
  if (op.x.dtype() == op.y.dtype()) {
    std::memmove(op.y.data(), op.x.data(), static_cast<size_t>(op.x.bytes()));
    return;
  }
  const Floats x(op.x), y(op.y);
  for (int64_t i = 0; i < x.size(); ++i) y[i] = x[i];
}

void RefBackend::run(const ops::AddScaled& op) {
  const Floats x(op.x), y(op.y);
  for (int64_t i = 0; i < x.size(); ++i) y[i] += op.scale * x[i];
}

void RefBackend::run(const ops::RandomNormal& op) {
  const Floats x(op.x);
  for (int64_t i = 0; i < x.size(); ++i) {
    const auto words = philox(op.seed, op.stream, static_cast<uint64_t>(i / 2));
    const auto pair = static_cast<size_t>(2 * (i % 2));
    const auto a = static_cast<double>(unit_float_open(words[pair]));
    const auto b = static_cast<double>(unit_float(words[pair + 1]));
    x[i] = op.deviation * std::sqrt(-2 * std::log(a)) * std::cos(2 * M_PI * b);
  }
}

void RefBackend::run(const ops::Dropout& op) {
  const Floats x(op.x), y(op.y);
  const auto seed = static_cast<uint64_t>(*op.seed.as<int64_t>());
  for (int64_t i = 0; i < x.size(); ++i) {
    const auto words = philox(seed, op.stream, static_cast<uint64_t>(i / 4));
    const auto u = static_cast<double>(unit_float(words[static_cast<size_t>(i % 4)]));
    y[i] = u >= op.probability ? x[i] / (1 - op.probability) : 0.0;
  }
}

}  // namespace mixtral::ref
