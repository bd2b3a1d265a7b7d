#include "tests/support/rig.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace mixtral::test {
namespace {

constexpr int64_t kGuard = 256;  // a multiple of every alignment
constexpr auto kGuardByte = static_cast<uint8_t>(0xA5);

/// Calls body with a value of the dtype's storage type.
template <class Body>
auto with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::f64:
      return body(double{});
    case Dtype::f32:
      return body(float{});
    case Dtype::bf16:
      return body(bf16{});
    case Dtype::f16:
      return body(f16{});
    case Dtype::i64:
      return body(int64_t{});
    case Dtype::i32:
      return body(int32_t{});
    default:
      return body(uint8_t{});
  }
}

template <class T>
constexpr bool is_half = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

std::vector<std::byte> poison(int64_t count, Dtype dtype) {
  std::vector<std::byte> bytes(static_cast<size_t>(count * size_of(dtype)), std::byte{0xFF});
  return bytes;  // all ones: not a number in every floating-point type, and no index
}

/// How much an output may differ from the reference, relative to its largest element. In f32 the
/// rounding of a sum grows with the root of its length. 16-bit outputs may fall to the neighbouring
/// number (an ulp is up to 2^-7 of the value in bf16, 2^-10 in f16), with a little room for
/// intermediate results in that type.
double tolerance(Dtype dtype, int64_t inner) {
  const double growth = std::max(1.0, std::sqrt(static_cast<double>(inner) / 64));
  switch (dtype) {
    case Dtype::f64:
      return 1e-12 * growth;
    case Dtype::f32:
      return 2e-6 * growth;
    case Dtype::bf16:
      return 0x1.4p-7;
    case Dtype::f16:
      return 0x1.4p-10;
    default:
      return 0;
  }
}

std::string at_element(const std::vector<double>& a, const std::vector<double>& b) {
  size_t worst = 0;
  double most = -1;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool unequal = std::isnan(a[i]) != std::isnan(b[i]);
    const double distance = unequal ? std::numeric_limits<double>::infinity()
                                    : (a[i] == b[i] ? 0 : std::abs(a[i] - b[i]));
    if (distance > most) {
      most = distance;
      worst = i;
    }
  }
  return fmt::format("element {} is {:.9g}, the reference {:.9g}", worst, a[worst], b[worst]);
}

std::string common_faults(const Rig& rig) {
  std::string faults;
  for (const auto& operand : rig.operands()) {
    if (!rig.guards_intact(operand))
      faults += fmt::format("{}: bytes beside it were overwritten\n", operand.name);
    if (operand.role == Rig::Role::input && rig.download(operand) != operand.initial)
      faults += fmt::format("{}: an input was changed\n", operand.name);
  }
  return faults;
}

}  // namespace

Rig::Rig(Backend& backend, Dtype dtype, uint64_t seed)
    : backend_(backend), dtype_(dtype), seed_(seed), random_(seed, 0) {}

Rig::Rig(Backend& backend, const Rig& original, int64_t shift)
    : backend_(backend),
      original_(&original),
      dtype_(original.dtype_),
      seed_(original.seed_),
      shift_(shift),
      random_(original.seed_, 0) {}

Tensor Rig::add(std::string name, Role role, Shape shape, Dtype dtype,
                const std::function<std::vector<std::byte>(int64_t)>& fill) {
  const size_t index = operands_.size();
  const int64_t bytes = shape.numel() * size_of(dtype);
  const int64_t before = kGuard + shift_ * size_of(dtype);
  Operand operand{std::move(name), role, {}, Buffer(backend_, before + bytes + kGuard), {}};
  operand.tensor = Tensor(static_cast<char*>(operand.block.data()) + before, shape, dtype);

  std::vector<std::byte> content;
  if (original_) {
    CHECK(index < original_->operands_.size() && original_->operands_[index].name == operand.name);
    content = original_->operands_[index].initial;
  } else {
    content = fill(shape.numel());
  }
  std::vector<uint8_t> block(static_cast<size_t>(operand.block.bytes()), kGuardByte);
  std::memcpy(block.data() + before, content.data(), content.size());
  backend_.upload(Tensor(std::span(block)),
                  operand.block.tensor({operand.block.bytes()}, Dtype::u8));
  operands_.push_back(std::move(operand));
  return operands_.back().tensor;
}

Tensor Rig::input(std::string name, Shape shape, Spread spread) {
  return input(std::move(name), shape, dtype_, spread);
}

Tensor Rig::input(std::string name, Shape shape, Dtype dtype, Spread spread) {
  const uint64_t stream = operands_.size() + 1;
  return add(std::move(name), Role::input, shape, dtype, [&](int64_t count) {
    RandomStream random(seed_, stream);
    std::vector<double> drawn;
    for (int64_t i = 0; i < count; ++i)
      drawn.push_back(spread.mean + spread.deviation * random.normal());
    return from_doubles(drawn, dtype);
  });
}

Tensor Rig::values(std::string name, Shape shape, Dtype dtype, const std::vector<double>& values) {
  return add(std::move(name), Role::input, shape, dtype, [&](int64_t count) {
    CHECK(count == static_cast<int64_t>(values.size()));
    return from_doubles(values, dtype);
  });
}

Tensor Rig::indices(std::string name, Shape shape, const std::vector<int32_t>& values) {
  return this->values(std::move(name), shape, Dtype::i32, {values.begin(), values.end()});
}

Tensor Rig::bytes(std::string name, Shape shape, const void* data) {
  return add(std::move(name), Role::input, shape, Dtype::u8, [&](int64_t count) {
    std::vector<std::byte> content(static_cast<size_t>(count));
    std::memcpy(content.data(), data, content.size());
    return content;
  });
}

Tensor Rig::output(std::string name, Shape shape, Dtype dtype) {
  return add(std::move(name), Role::output, shape, dtype,
             [&](int64_t count) { return poison(count, dtype); });
}

Tensor Rig::updated(std::string name, Shape shape, Spread spread) {
  return updated(std::move(name), shape, dtype_, spread);
}

Tensor Rig::updated(std::string name, Shape shape, Dtype dtype, Spread spread) {
  const Tensor tensor = input(std::move(name), shape, dtype, spread);
  operands_.back().role = Role::updated;
  return tensor;
}

Tensor Rig::updated_values(std::string name, Shape shape, Dtype dtype,
                           const std::vector<double>& values) {
  const Tensor tensor = this->values(std::move(name), shape, dtype, values);
  operands_.back().role = Role::updated;
  return tensor;
}

Tensor Rig::updated_indices(std::string name, Shape shape, const std::vector<int32_t>& values) {
  const Tensor tensor = indices(std::move(name), shape, values);
  operands_.back().role = Role::updated;
  return tensor;
}

Tensor Rig::prepared(std::string name, Shape shape, Dtype dtype) {
  const Tensor tensor = output(std::move(name), shape, dtype);
  operands_.back().role = Role::input;
  return tensor;
}

void Rig::take_initial() {
  for (auto& operand : operands_) operand.initial = download(operand);
}

void Rig::restore() {
  for (auto& operand : operands_)
    backend_.upload(Tensor(operand.initial.data(), operand.tensor.shape(), operand.tensor.dtype()),
                    operand.tensor);
}

const Rig::Operand& Rig::find(const Tensor& tensor) const {
  for (const auto& operand : operands_)
    if (operand.tensor.data() == tensor.data()) return operand;
  CHECK(false, "not an operand of this rig");
  return operands_.front();
}

std::vector<std::byte> Rig::download(const Operand& operand) const {
  std::vector<std::byte> bytes(static_cast<size_t>(operand.tensor.bytes()));
  backend_.download(operand.tensor,
                    Tensor(bytes.data(), operand.tensor.shape(), operand.tensor.dtype()));
  return bytes;
}

bool Rig::guards_intact(const Operand& operand) const {
  std::vector<uint8_t> block(static_cast<size_t>(operand.block.bytes()));
  backend_.download(operand.block.tensor({operand.block.bytes()}, Dtype::u8),
                    Tensor(std::span(block)));
  const auto intact = [](uint8_t byte) { return byte == kGuardByte; };
  const auto before = block.end() - kGuard - operand.tensor.bytes();
  return std::all_of(block.begin(), before, intact) &&
         std::all_of(block.end() - kGuard, block.end(), intact);
}

std::vector<double> to_doubles(const void* data, Dtype dtype, int64_t count) {
  std::vector<double> values(static_cast<size_t>(count));
  with_type(dtype, [&]<class T>(T) {
    for (size_t i = 0; i < values.size(); ++i) {
      T element;
      std::memcpy(&element, static_cast<const char*>(data) + i * sizeof(T), sizeof(T));
      if constexpr (is_half<T>)
        values[i] = static_cast<double>(static_cast<float>(element));
      else
        values[i] = static_cast<double>(element);
    }
  });
  return values;
}

std::vector<std::byte> from_doubles(const std::vector<double>& values, Dtype dtype) {
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(size_of(dtype)));
  with_type(dtype, [&]<class T>(T) {
    for (size_t i = 0; i < values.size(); ++i) {
      T element;
      if constexpr (is_half<T>)
        element = T(static_cast<float>(values[i]));
      else if constexpr (std::is_same_v<T, uint8_t>)  // bytes: what does not fit wraps around
        element = static_cast<T>(static_cast<int64_t>(values[i]));
      else
        element = static_cast<T>(values[i]);
      std::memcpy(bytes.data() + i * sizeof(T), &element, sizeof(T));
    }
  });
  return bytes;
}

Tensor Rig::room(std::string name, Shape shape, Dtype dtype) {
  const Tensor tensor = output(std::move(name), shape, dtype);
  operands_.back().role = Role::room;
  return tensor;
}

double normalised_error(const std::vector<double>& a, const std::vector<double>& b,
                        double magnitude) {
  double error = 0, largest = magnitude;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i])) return std::numeric_limits<double>::infinity();
    if (std::isfinite(b[i])) largest = std::max(largest, std::abs(b[i]));
    if (!std::isnan(a[i]) && a[i] != b[i]) error = std::max(error, std::abs(a[i] - b[i]));
  }
  return error == 0 ? 0 : error / largest;
}

std::string difference(const Rig& reference, const Rig& tested) {
  std::string faults = common_faults(tested);
  for (size_t i = 0; i < tested.operands().size(); ++i) {
    const auto& operand = tested.operands()[i];
    if (operand.role == Rig::Role::input || operand.role == Rig::Role::room) continue;
    const Dtype dtype = operand.tensor.dtype();
    const int64_t count = operand.tensor.numel();
    const auto a = to_doubles(tested.download(operand).data(), dtype, count);
    const auto b = to_doubles(reference.download(reference.operands()[i]).data(), dtype, count);
    const double error = normalised_error(a, b, reference.magnitude());
    const double limit = tolerance(dtype, reference.inner());
    if (!(error <= limit))
      faults += fmt::format("{} ({}): error {:.3g} exceeds {:.3g}; {}\n", operand.name,
                            to_string(dtype), error, limit, at_element(a, b));
  }
  return faults;
}

std::string bit_difference(const Rig& reference, const Rig& tested) {
  std::string faults = common_faults(tested);
  for (size_t i = 0; i < tested.operands().size(); ++i) {
    const auto& operand = tested.operands()[i];
    if (operand.role == Rig::Role::room) continue;
    const auto a = tested.download(operand), b = reference.download(reference.operands()[i]);
    if (a == b) continue;
    const Dtype dtype = operand.tensor.dtype();
    const int64_t count = operand.tensor.numel();
    faults += fmt::format(
        "{}: not the same bits; {}\n", operand.name,
        at_element(to_doubles(a.data(), dtype, count), to_doubles(b.data(), dtype, count)));
  }
  return faults;
}

uint64_t test_seed() {
  const char* text = std::getenv("MIXTRAL_TEST_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 20261107;
}

}  // namespace mixtral::test
