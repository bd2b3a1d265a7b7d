#include "model/mixtral.h"

#include <algorithm>
#include <utility>

#include "model/tensor_names.h"
#include "nn/linear.h"
#include "nn/stacked.h"
#include "nn/streamed_experts.h"

namespace mixtral {
namespace {

using nn::Parameter;
using nn::Role;

/// Rows packed one after another: each part is `rows` of width `columns`.
Parameter pack_rows(std::vector<std::pair<std::string, int64_t>> parts, int64_t columns,
                    Role role) {
  Parameter parameter;
  parameter.role = role;
  int64_t rows = 0;
  for (auto& [name, count] : parts) {
    parameter.parts.push_back({std::move(name), rows * columns, {count, columns}});
    rows += count;
  }
  parameter.shape = {rows, columns};
  return parameter;
}

/// The format that the options have for a parameter.
std::optional<ops::WeightFormat> format_of(const Parameter& parameter,
                                           const Mixtral::Options& options) {
  if (options.quantization) return options.quantization;
  const auto own = options.formats.find(parameter.parts.front().name);
  return own == options.formats.end() ? std::nullopt : std::optional(own->second);
}

std::unique_ptr<nn::Projection> make_projection(Parameter parameter,
                                                const Mixtral::Options& options) {
  parameter.format = format_of(parameter, options);
  parameter.fixed = options.fixed_weights;
  return std::make_unique<nn::Linear>(std::move(parameter));
}

/// Whether the pieces are kept in the same format.
bool have_one_format(std::vector<Parameter>& pieces, const Mixtral::Options& options) {
  for (Parameter& piece : pieces) piece.format = format_of(piece, options);
  return std::ranges::all_of(
      pieces, [&](const Parameter& piece) { return piece.format == pieces.front().format; });
}

/// One weight `whole`, or its pieces where the options have different formats for them.
std::unique_ptr<nn::Projection> make_stacked(Parameter whole, std::vector<Parameter> pieces,
                                             const Mixtral::Options& options) {
  if (have_one_format(pieces, options)) return make_projection(std::move(whole), options);
  return std::make_unique<nn::Stacked>(std::move(pieces));
}

/// The same of a layer's experts, which may be streamed.
std::unique_ptr<nn::Projection> make_experts(int64_t layer, nn::ExpertProduct product,
                                             Parameter whole, std::vector<Parameter> pieces,
                                             const Mixtral::Options& options) {
  if (!options.stream_experts) return make_stacked(std::move(whole), std::move(pieces), options);
  if (have_one_format(pieces, options)) {
    whole.format = pieces.front().format;
    pieces.clear();
    pieces.push_back(std::move(whole));
  }
  return std::make_unique<nn::StreamedExperts>(layer, product, std::move(pieces), options.weights,
                                               options.planned);
}

Block make_block(const ModelConfig& c, int64_t layer, const Tensor& rope_table,
                 const Mixtral::Options& options) {
  const int64_t d = c.hidden_size, f = c.intermediate_size, e = c.num_experts;
  const auto name = [&](TensorKind kind, int64_t expert = -1) {
    return tensor_name({.kind = kind, .layer = layer, .expert = expert});
  };
  Block block;
  block.eps = c.rms_norm_eps;
  block.attention_norm = nn::make_parameter(name(TensorKind::attention_norm), {d}, Role::norm);
  block.experts_norm = nn::make_parameter(name(TensorKind::experts_norm), {d}, Role::norm);

  block.attention.heads = {.query = static_cast<int>(c.num_heads),
                           .kv = static_cast<int>(c.num_kv_heads),
                           .width = static_cast<int>(c.head_dim)};
  block.attention.window = c.sliding_window;
  block.attention.rope_table = rope_table;
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  std::vector<Parameter> pieces;
  for (const auto& [kind, rows] : {std::pair(TensorKind::query, q), std::pair(TensorKind::key, kv),
                                   std::pair(TensorKind::value, kv)})
    pieces.push_back(nn::make_parameter(name(kind), {rows, d}, Role::projection));
  block.attention.qkv = make_stacked(pack_rows({{name(TensorKind::query), q},
                                                {name(TensorKind::key), kv},
                                                {name(TensorKind::value), kv}},
                                               d, Role::projection),
                                     std::move(pieces), options);
  block.attention.output = make_projection(
      nn::make_parameter(name(TensorKind::attention_output), {d, q}, Role::residual_projection),
      options);

  Parameter gate_up, gate, up, down;
  gate_up.shape = {e, 2 * f, d};
  gate.shape = up.shape = {e, f, d};
  down.shape = {e, d, f};
  down.role = Role::residual_projection;
  for (int64_t i = 0; i < e; ++i) {
    gate_up.parts.push_back({name(TensorKind::w1, i), 2 * i * f * d, {f, d}});
    gate_up.parts.push_back({name(TensorKind::w3, i), (2 * i + 1) * f * d, {f, d}});
    gate.parts.push_back({name(TensorKind::w1, i), i * f * d, {f, d}});
    up.parts.push_back({name(TensorKind::w3, i), i * f * d, {f, d}});
    down.parts.push_back({name(TensorKind::w2, i), i * d * f, {d, f}});
  }
  Parameter router = nn::make_parameter(name(TensorKind::router), {e, d}, Role::router);
  auto router_projection = std::make_unique<nn::Linear>(std::move(router));
  router_projection->exact();
  block.experts.experts_per_token = c.experts_per_token;
  block.experts.router = std::move(router_projection);
  using nn::ExpertProduct;
  block.experts.gate_up = make_experts(layer, ExpertProduct::gate_up, std::move(gate_up),
                                       {std::move(gate), std::move(up)}, options);
  block.experts.down = make_experts(layer, ExpertProduct::down, down, {down}, options);
  return block;
}

}  // namespace

Mixtral::Mixtral(Backend& backend, const ModelConfig& config, const Options& options)
    : config_(config),
      options_(options),
      context_(options.context > 0 ? options.context : config.max_positions),
      embedding_(std::make_shared<Parameter>(
          nn::make_parameter(tensor_name({.kind = TensorKind::embedding}),
                             {config.vocab_size, config.hidden_size}, Role::embedding))),
      final_norm_(nn::make_parameter(tensor_name({.kind = TensorKind::final_norm}),
                                     {config.hidden_size}, Role::norm)) {
  CHECK((!options.quantization && options.formats.empty()) || !options.trainable,
        "a quantized model cannot be trained itself");
  CHECK(!options.fixed_weights || !options.trainable, "fixed weights cannot be trained");
  const Dtype statistics = ops::statistics_dtype(options.compute);
  const Shape table_shape{context_, 2, config.head_dim / 2};
  rope_ = Buffer(backend, table_shape.numel() * size_of(statistics));
  const Tensor table = rope_.tensor(table_shape, statistics);
  if (!options.planned) {
    const Buffer host(host_memory(), table.bytes());
    const Tensor values = host.tensor(table_shape, statistics);
    ops::fill_rope_table(values, config.rope_theta, options.rope_frequencies);
    backend.upload(values, table);
  }
  CHECK(!options.stream_experts || !options.trainable, "streamed experts cannot be trained");
  for (int64_t i = 0; i < config.num_layers; ++i)
    blocks_.push_back(make_block(config, i, table, options));
  for (size_t i = 0; options.stream_experts && i < blocks_.size(); ++i) {
    auto& streaming = blocks_[i].experts.streaming;
    streaming = {.on = true, .layer = static_cast<int64_t>(i), .next = {}};
    if (i + 1 == blocks_.size()) break;
    const Block& after = blocks_[i + 1];
    streaming.next = {.layer = static_cast<int64_t>(i) + 1,
                      .router = after.experts.router.get(),
                      .norm = &after.experts_norm,
                      .eps = after.eps};
  }
  if (config.tie_embeddings) {
    head_ = std::make_unique<nn::Linear>(embedding_, /*owner=*/false);
  } else {
    Parameter head = nn::make_parameter(tensor_name({.kind = TensorKind::head}),
                                        {config.vocab_size, config.hidden_size}, Role::head);
    if (!options.quantization) head.format = format_of(head, options);
    head.fixed = options.fixed_weights;
    head_ = std::make_unique<nn::Linear>(std::move(head));
  }
  const bool whole = options.trained_layers == 0;
  for_each_parameter([&](Parameter& p) {
    p.trainable = options.trainable && whole && (p.role != Role::router || options.train_router);
  });
  for (int64_t i = std::max<int64_t>(0, config.num_layers - options.trained_layers);
       !whole && options.trainable && i < config.num_layers; ++i)
    blocks_[static_cast<size_t>(i)].for_each_parameter(
        [&](Parameter& p) { p.trainable = p.role != Role::router || options.train_router; });
  store_ = std::make_unique<nn::ParameterStore>(backend, parameters(), options.weights, statistics);
}

void Mixtral::for_each_parameter(const nn::ParameterVisitor& visit) {
  visit(*embedding_);
  for (Block& block : blocks_) block.for_each_parameter(visit);
  visit(final_norm_);
  head_->for_each_parameter(visit);
}

int64_t Mixtral::first_trained_block() const {
  if (embedding_->grad) return 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    bool trained = false;
    // The enumeration hands out what can be changed; here it is only looked at.
    const_cast<Block&>(blocks_[i]).for_each_parameter([&](const Parameter& p) {
      trained |= !p.grad.empty();
    });
    if (trained) return static_cast<int64_t>(i);
  }
  return config_.num_layers;
}

Mixtral::RouterReports Mixtral::allocate_reports(Context& ctx) const {
  const Shape per_expert{config_.num_layers, config_.num_experts}, per_layer{config_.num_layers};
  return {.load = ctx.allocate(per_expert, ctx.statistics()),
          .importance = ctx.allocate(per_expert, ctx.statistics()),
          .z = ctx.allocate(per_layer, ctx.statistics()),
          .entropy = ctx.allocate(per_layer, ctx.statistics())};
}

void Mixtral::allocate_token_routes(Context& ctx, int64_t tokens, RouterReports& reports) const {
  const int64_t layers = config_.num_layers;
  reports.logits = ctx.allocate({layers, tokens, config_.num_experts}, ctx.statistics());
  reports.expert = ctx.allocate({layers, tokens, config_.experts_per_token}, Dtype::i32);
}

Tensor Mixtral::forward(Context& ctx, const Batch& batch, const KvCache* cache, Saved* saved,
                        const RouterReports* reports) const {
  const Shape shape{batch.size(), config_.hidden_size};
  CHECK(!batch.last || (cache && !saved), "some tokens alone are for inference over a cache");
  const int64_t wanted = batch.last ? batch.last->count() : batch.size();
  const Tensor hidden = wanted > 0 ? ctx.allocate({wanted, config_.hidden_size}) : Tensor();
  nn::Sequences sequences = batch.sequences;
  sequences.groups = sequences.adapters.sort(ctx);
  if (saved) {
    saved->rstd = ctx.allocate({batch.size()}, ctx.statistics());
    saved->inputs.clear();
    saved->blocks.clear();
  }
  Tensor x = ctx.allocate(shape);
  ctx.run(ops::Embedding{.table = embedding_->value, .tokens = batch.tokens, .x = x});
  const int64_t first = saved ? first_trained_block() : 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    const Block& block = blocks_[i];
    const ops::KvView view = cache ? cache->layer(layer) : ops::KvView{};
    nn::RouterReport report;
    if (reports && reports->load)
      report = {.load = reports->load[layer],
                .importance = reports->importance[layer],
                .z = reports->z.slice(layer, layer + 1),
                .entropy = reports->entropy.slice(layer, layer + 1)};
    if (reports && reports->logits) {
      report.logits = reports->logits[layer];
      report.expert = reports->expert[layer];
    }
    if (batch.last && !reports && i + 1 == blocks_.size()) {
      const Tensor out = ctx.allocate({wanted, config_.hidden_size});
      nn::LastTokens last = *batch.last;
      last.sequences.groups = last.sequences.adapters.sort(ctx);
      block.forward_last(ctx, x, sequences, view, last, out);
      x = out;
      break;
    }
    const bool keep = saved && layer >= first;
    const Tensor out = keep ? ctx.allocate(shape) : x;
    Block::Saved* kept = nullptr;
    if (saved) {
      saved->inputs.push_back(keep ? x : Tensor());
      const bool whole = keep && !saved->recompute.applies(layer, config_.num_layers);
      Block::Saved& block_saved = saved->blocks.emplace_back();
      if (whole) {
        block_saved = block.allocate_saved(ctx, batch.size());
        kept = &block_saved;
      }
    }
    block.forward(ctx, x, sequences, view, out, kept, reports ? &report : nullptr);
    x = out;
  }
  if (wanted == 0) return hidden;
  if (x.dim(0) != wanted) {  // the last block's report is of all tokens
    const Tensor all = x;
    x = ctx.allocate({wanted, config_.hidden_size});
    ctx.run(ops::Embedding{.table = all, .tokens = batch.last->source, .x = x});
  }
  ctx.run(ops::RmsNorm{.x = x,
                       .weight = final_norm_.value,
                       .y = hidden,
                       .rstd = saved ? saved->rstd : Tensor(),
                       .eps = config_.rms_norm_eps});
  if (saved) saved->last = x;
  return hidden;
}

void Mixtral::backward(Context& ctx, const Batch& batch, const Tensor& d, const Saved& saved,
                       const nn::RouterGradient& losses) const {
  const ArenaScope scope(ctx.arena());
  CHECK(batch.sequences.adapters.each.empty(), "gradients are for one adapter");
  nn::Sequences sequences = batch.sequences;
  sequences.groups = sequences.adapters.sort(ctx);
  const Tensor dx = ctx.allocate(d.shape());
  ctx.run(ops::RmsNormBackward{.dy = d,
                               .x = saved.last,
                               .weight = final_norm_.value,
                               .rstd = saved.rstd,
                               .dx = dx,
                               .dweight = final_norm_.grad});
  const auto first = static_cast<size_t>(first_trained_block());
  for (size_t i = blocks_.size(); i-- > first;) {
    const ArenaScope layer(ctx.arena());
    const Block& block = blocks_[i];
    const nn::RouterGradient router{
        .dprobability =
            losses.dprobability ? losses.dprobability[static_cast<int64_t>(i)] : Tensor(),
        .z_scale = losses.z_scale};
    if (saved.recompute.applies(static_cast<int64_t>(i), config_.num_layers)) {
      Block::Saved again = block.allocate_saved(ctx, batch.size());
      const Tensor out = ctx.allocate(d.shape());
      block.forward(ctx, saved.inputs[i], sequences, {}, out, &again, nullptr);
      block.backward(ctx, dx, sequences, again, router);
    } else {
      block.backward(ctx, dx, sequences, saved.blocks[i], router);
    }
  }
  if (embedding_->grad)
    ctx.run(ops::EmbeddingBackward{.dx = dx, .tokens = batch.tokens, .dtable = embedding_->grad});
}

void Mixtral::logits(Context& ctx, const Tensor& hidden, const Tensor& logits,
                     const nn::TokenAdapters& adapters) const {
  const ArenaScope scope(ctx.arena());
  head_->forward(ctx, hidden, adapters.sort(ctx), logits);
}

}  // namespace mixtral
