#include "nn/streamed_experts.h"

#include <algorithm>
#include <utility>

namespace mixtral::nn {
namespace {

/// A hold on an expert's weights, to the end of the scope.
class HeldExpert {
 public:
  HeldExpert(ExpertStore& store, int64_t layer, ExpertProduct product, int32_t expert)
      : store_(store),
        layer_(layer),
        product_(product),
        expert_(expert),
        weights_(store.hold(layer, product, expert)) {}
  ~HeldExpert() { store_.give_back(layer_, product_, expert_); }
  HeldExpert(const HeldExpert&) = delete;
  HeldExpert& operator=(const HeldExpert&) = delete;

  std::span<const ops::Weight> weights() const { return weights_; }

 private:
  ExpertStore& store_;
  int64_t layer_;
  ExpertProduct product_;
  int32_t expert_;
  std::span<const ops::Weight> weights_;
};

/// Whether an expert's rows are multiplied alone: their places are known where memory is the
/// host's.
bool multiplies_slices(Context& ctx) { return ctx.backend().kind() == DeviceKind::cpu; }

RowGroups rows_of(const RowGroups& rows, int32_t expert) {
  return {.offsets = rows.offsets.slice(expert, expert + 2)};
}

void set_weight(Parameter& parameter, const ops::Weight& weight) {
  if (weight.dense())
    parameter.value = weight.codes.reshape(parameter.shape);
  else
    parameter.packed = weight;
}

}  // namespace

StreamedExperts::StreamedExperts(int64_t layer, ExpertProduct product,
                                 std::vector<Parameter> parameters, Dtype type, bool planned)
    : layer_(layer), product_(product), planned_(planned), parameters_(std::move(parameters)) {
  for (Parameter& parameter : parameters_) {
    CHECK(parameter.shape.rank() == 3 && parameter.shape[0] == groups() &&
              parameter.shape[2] == inputs(),
          "experts' weights differ");
    if (!parameter.format) parameter.format = ops::dense_format(type);
    parameter.type = parameter.format->dense() ? parameter.format->row().type : type;
    Parameter one;
    one.shape = {1, parameter.shape[1], parameter.shape[2]};
    one.role = parameter.role;
    one.format = parameter.format;
    one.type = parameter.type;
    one_.push_back(std::make_unique<Linear>(std::move(one)));
    one_.back()->at_column(outputs_);
    outputs_ += parameter.shape[1];
  }
}

void StreamedExperts::set_weights(std::span<const ops::Weight> weights) const {
  for (size_t i = 0; i < one_.size(); ++i) set_weight(one_[i]->parameter(), weights[i]);
}

template <class Body>
void StreamedExperts::for_each_expert(const Tensor& x, const Body& body) const {
  if (!store_) {
    CHECK(planned_, "experts without a store");
    std::vector<ops::Weight> weights;
    weights.reserve(parameters_.size());
    for (const Parameter& parameter : parameters_)  // only their shapes count
      weights.push_back(ops::make_weight(
          {1, parameter.shape[1], parameter.shape[2]}, *parameter.format,
          [&](Shape shape, Dtype dtype) { return Tensor(x.data(), shape, dtype); }));
    set_weights(weights);
    body(-1);
    return;
  }
  for (const int32_t e : store_->order(layer_, product_)) {
    const HeldExpert held(*store_, layer_, product_, e);
    set_weights(held.weights());
    body(e);
  }
}

void StreamedExperts::forward(Context& ctx, const Tensor& x, const RowGroups& rows,
                              const Tensor& y) const {
  CHECK(rows.offsets, "rows without their experts");
  for_each_expert(x, [&](int32_t e) {
    Tensor its_x = x, its_y = y;
    RowGroups groups;
    if (!multiplies_slices(ctx)) {
      groups = rows_of(rows, std::max(e, 0));
    } else if (e >= 0) {
      const int32_t* const offsets = rows.offsets.as<int32_t>();
      its_x = x.slice(offsets[e], offsets[e + 1]);
      its_y = y.slice(offsets[e], offsets[e + 1]);
    }
    for (const auto& part : one_) part->forward(ctx, its_x, groups, its_y);
  });
}

void StreamedExperts::forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op,
                                     const RowGroups& rows) const {
  if (one_.size() > 1 || multiplies_slices(ctx)) return Projection::forward_swiglu(ctx, op, rows);
  for_each_expert(op.x, [&](int32_t e) {
    one_.front()->forward_swiglu(ctx, op, rows_of(rows, std::max(e, 0)));
  });
}

void StreamedExperts::backward_input(Context&, const Tensor&, const RowGroups&, const Tensor&,
                                     Write) const {
  CHECK(false, "streamed experts are for inference");
}

void StreamedExperts::backward_weight(Context&, const Tensor&, const Tensor&,
                                      const RowGroups&) const {
  CHECK(false, "streamed experts are for inference");
}

}  // namespace mixtral::nn
