#include "convert/streamed_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mixtral {

StreamedModel::StreamedModel(Backend& backend, PartReader& reader) : reader_(reader) {
  CHECK(backend.kind() != DeviceKind::gpu, "weights are used where they are read: in memory");
}

void StreamedModel::multiply(Context& ctx, const TensorId& id, const Tensor& x, const Tensor& y,
                             int64_t y_begin) {
  ctx.run(ops::GroupedMatmul{
      .x = x, .weight = reader_.values(id, Dtype::f32), .offsets = {}, .y = y, .y_begin = y_begin});
}

Tensor StreamedModel::rope_table(Context& ctx, int64_t positions) const {
  const Tensor table = ctx.allocate({positions, 2, config().head_dim / 2}, Dtype::f32);
  ops::fill_rope_table(table, config().rope_theta, Dtype::f32);
  return table;
}

void StreamedModel::embed(Context& ctx, const Batch& batch, const Tensor& x) {
  ctx.run(ops::Embedding{.table = reader_.values({.kind = TensorKind::embedding}, Dtype::f32),
                         .tokens = batch.tokens,
                         .x = x});
}

void StreamedModel::final_norm(Context& ctx, const Tensor& x, const Tensor& y) {
  ctx.run(ops::RmsNorm{.x = x,
                       .residual = {},
                       .weight = reader_.values({.kind = TensorKind::final_norm}, Dtype::f32),
                       .sum = {},
                       .y = y,
                       .rstd = {},
                       .eps = config().rms_norm_eps});
}

Tensor StreamedModel::hidden(Context& ctx, const Batch& batch, const Listener& listener) {
  const Shape shape{batch.size(), config().hidden_size};
  const Tensor result = ctx.allocate(shape);
  const ArenaScope scope(ctx.arena());
  const Tensor x = ctx.allocate(shape);
  embed(ctx, batch, x);
  for (int64_t i = 0; i < config().num_layers; ++i) layer(ctx, i, batch, x, {}, listener);
  final_norm(ctx, x, result);
  return result;
}

void StreamedModel::layer(Context& ctx, int64_t layer, const Batch& batch, const Tensor& x,
                          const Inputs& inputs, const Listener& listener) {
  const ArenaScope scope(ctx.arena());
  const ModelConfig& c = config();
  const auto id = [&](TensorKind kind) { return TensorId{.kind = kind, .layer = layer}; };
  const ops::Heads heads{.query = static_cast<int>(c.num_heads),
                         .kv = static_cast<int>(c.num_kv_heads),
                         .width = static_cast<int>(c.head_dim)};
  const Tensor norm = ctx.allocate(x.shape());
  ctx.run(ops::RmsNorm{.x = x,
                       .residual = {},
                       .weight = reader_.values(id(TensorKind::attention_norm), Dtype::f32),
                       .sum = {},
                       .y = norm,
                       .rstd = {},
                       .eps = c.rms_norm_eps});
  {
    const ArenaScope attention(ctx.arena());
    const int64_t n = x.dim(0), q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
    const Tensor qkv = ctx.allocate({n, heads.columns()}), out = ctx.allocate({n, q});
    const Tensor attended = ctx.allocate(x.shape());
    int64_t column = 0;
    if (inputs) inputs(id(TensorKind::query), norm, {});
    for (const TensorKind kind : {TensorKind::query, TensorKind::key, TensorKind::value}) {
      multiply(ctx, id(kind), norm, qkv, column);
      column += kind == TensorKind::query ? q : kv;
    }
    ctx.run(ops::Rope{.qkv = qkv,
                      .positions = batch.sequences.positions,
                      .table = rope_table(ctx, batch.sequences.longest),
                      .heads = heads});
    ctx.run(ops::Attention{.qkv = qkv,
                           .sequence_starts = batch.sequences.starts,
                           .out = out,
                           .log_sum = {},
                           .heads = heads,
                           .window = c.sliding_window,
                           .scale = 1 / std::sqrt(static_cast<double>(c.head_dim)),
                           .longest = batch.sequences.longest});
    if (inputs) inputs(id(TensorKind::attention_output), out, {});
    multiply(ctx, id(TensorKind::attention_output), out, attended);
    ctx.run(ops::RmsNorm{.x = attended,
                         .residual = x,
                         .weight = reader_.values(id(TensorKind::experts_norm), Dtype::f32),
                         .sum = x,
                         .y = norm,
                         .rstd = {},
                         .eps = c.rms_norm_eps});
  }
  if (listener.layer) listener.layer(ctx, layer, norm);
  experts(ctx, layer, norm, x, inputs, listener);
}

void StreamedModel::experts(Context& ctx, int64_t layer, const Tensor& norm, const Tensor& x,
                            const Inputs& inputs, const Listener& listener) {
  const ModelConfig& c = config();
  const int64_t n = x.dim(0), k = c.experts_per_token;
  const Tensor logits = ctx.allocate({n, c.num_experts}, ctx.statistics());
  const Tensor weights = ctx.allocate({n, k}, ctx.statistics());
  const Tensor expert = ctx.allocate({n, k}, Dtype::i32), slot = ctx.allocate({n, k}, Dtype::i32);
  const Tensor source = ctx.allocate({n * k}, Dtype::i32);
  const Tensor offsets = ctx.allocate({c.num_experts + 1}, Dtype::i32);
  const Tensor rows = ctx.allocate({n * k, c.hidden_size});
  const Tensor results = ctx.allocate({n * k, c.hidden_size});
  multiply(ctx, {.kind = TensorKind::router, .layer = layer}, norm, logits);
  ctx.run(ops::Route{.logits = logits,
                     .positions = {},
                     .weights = weights,
                     .expert = expert,
                     .slot = slot,
                     .source = source,
                     .offsets = offsets});
  ctx.run(ops::GatherRows{.x = norm, .source = source, .y = rows, .divisor = k});
  for (int64_t e = 0; e < c.num_experts; ++e) {
    const int64_t begin = offsets.as<int32_t>()[e], end = offsets.as<int32_t>()[e + 1];
    if (begin == end) continue;
    const ArenaScope scope(ctx.arena());
    const auto id = [&](TensorKind kind) {
      return TensorId{.kind = kind, .layer = layer, .expert = e};
    };
    const Tensor in = rows.slice(begin, end);
    const Tensor own = ctx.allocate({end - begin, 1}, ctx.statistics());  // of these rows alone
    for (int64_t row = begin; row < end; ++row)
      own.as<float>()[row - begin] = weights.as<float>()[source.as<int32_t>()[row]];
    if (inputs) inputs(id(TensorKind::w1), in, own);
    const Tensor h = expert_hidden(ctx, layer, e, in, own);
    const Tensor y = results.slice(begin, end);
    multiply(ctx, id(TensorKind::w2), h, y);
    if (listener.expert) listener.expert(layer, e, y);
  }
  ctx.run(ops::CombineRows{.y = results, .slot = slot, .residual = x, .out = x});
}

Tensor StreamedModel::expert_hidden(Context& ctx, int64_t layer, int64_t expert, const Tensor& x,
                                    const Tensor& weights) {
  const int64_t n = x.dim(0), f = config().intermediate_size;
  const Tensor h = ctx.allocate({n, f});
  const ArenaScope scope(ctx.arena());
  const Tensor gate_up = ctx.allocate({n, 2 * f}), order = ctx.allocate({n}, Dtype::i32);
  multiply(ctx, {.kind = TensorKind::w1, .layer = layer, .expert = expert}, x, gate_up);
  multiply(ctx, {.kind = TensorKind::w3, .layer = layer, .expert = expert}, x, gate_up, f);
  std::iota(order.as<int32_t>(), order.as<int32_t>() + n, 0);
  ctx.run(ops::SwiGlu{.gate_up = gate_up, .weights = weights, .source = order, .h = h});
  return h;
}

Tensor StreamedModel::expert_output(Context& ctx, int64_t layer, int64_t expert, const Tensor& x) {
  const Tensor y = ctx.allocate(x.shape());
  const ArenaScope scope(ctx.arena());
  const Tensor ones = ctx.allocate({x.dim(0), 1}, ctx.statistics());
  std::fill_n(ones.as<float>(), x.dim(0), 1.0F);
  const Tensor h = expert_hidden(ctx, layer, expert, x, ones);
  multiply(ctx, {.kind = TensorKind::w2, .layer = layer, .expert = expert}, h, y);
  return y;
}

Tensor StreamedModel::logits(Context& ctx, const Tensor& hidden) {
  const Tensor logits = ctx.allocate({hidden.dim(0), config().vocab_size});
  const TensorKind kind = config().tie_embeddings ? TensorKind::embedding : TensorKind::head;
  multiply(ctx, {.kind = kind}, hidden, logits);
  return logits;
}

std::vector<float> streamed_logits(Backend& backend, const TensorSource& source,
                                   const ModelConfig& config, const std::vector<int32_t>& tokens) {
  PartReader reader(source, config);
  StreamedModel model(backend, reader);
  Arena arena(backend);
  Context ctx(backend, arena, Dtype::f32);
  HostBatch host;
  host.append(tokens);
  const Batch batch = upload(ctx, host, config.vocab_size, config.max_positions);
  const Tensor logits = model.logits(ctx, model.hidden(ctx, batch));
  const auto values = logits.span<float>();
  return {values.begin(), values.end()};
}

}  // namespace mixtral
