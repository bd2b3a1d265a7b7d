#include "nn/attention.h"

#include <cmath>

namespace mixtral::nn {

void Attention::forward(Context& ctx, const Tensor& x, const Sequences& sequences,
                        const ops::KvView& cache, const Tensor& y, Saved* saved,
                        const LastTokens* last) const {
  const ArenaScope scope(ctx.arena());
  const int64_t n = x.dim(0);
  CHECK(!last || (cache && !saved), "some tokens alone are for inference over a cache");
  const Sequences& kept = last ? last->sequences : sequences;
  Saved local;
  if (!saved) {
    local.qkv = ctx.allocate({n, heads.columns()});
    local.out = ctx.allocate({last ? last->count() : n, int64_t{heads.query} * heads.width});
  }
  const Saved& s = saved ? *saved : local;
  const double scale = 1 / std::sqrt(static_cast<double>(heads.width));

  qkv->forward(ctx, x, sequences.groups, s.qkv);
  ctx.run(ops::Rope{
      .qkv = s.qkv, .positions = sequences.positions, .table = rope_table, .heads = heads});
  if (cache) {
    ctx.run(ops::CacheAppend{.qkv = s.qkv,
                             .positions = sequences.positions,
                             .rows = sequences.rows,
                             .cache = cache,
                             .heads = heads});
    Tensor queries = s.qkv;
    if (last) {
      if (last->count() == 0) return;
      queries = ctx.allocate({last->count(), heads.columns()});
      ctx.run(ops::Embedding{.table = s.qkv, .tokens = last->source, .x = queries});
    }
    ctx.run(ops::CachedAttention{.qkv = queries,
                                 .positions = kept.positions,
                                 .rows = kept.rows,
                                 .cache = cache,
                                 .out = s.out,
                                 .heads = heads,
                                 .decode_rows = kept.decode_rows,
                                 .window = window,
                                 .scale = scale,
                                 .seen_keys = kept.seen_keys});
  } else {
    ctx.run(ops::Attention{.qkv = s.qkv,
                           .sequence_starts = sequences.starts,
                           .out = s.out,
                           .log_sum = s.log_sum,
                           .heads = heads,
                           .window = window,
                           .scale = scale,
                           .longest = sequences.longest});
  }
  output->forward(ctx, s.out, kept.groups, y);
}

void Attention::backward(Context& ctx, const Tensor& dy, const Tensor& x,
                         const Sequences& sequences, const Saved& saved, const Tensor& dx) const {
  const ArenaScope scope(ctx.arena());
  const Tensor dout = ctx.allocate(saved.out.shape());
  const Tensor dqkv = ctx.allocate(saved.qkv.shape());
  const Tensor delta = ctx.allocate(saved.log_sum.shape(), ctx.statistics());

  output->backward(ctx, dy, saved.out, sequences.groups, dout, Write::assign);
  ctx.run(ops::AttentionBackward{.qkv = saved.qkv,
                                 .sequence_starts = sequences.starts,
                                 .out = saved.out,
                                 .log_sum = saved.log_sum,
                                 .dout = dout,
                                 .dqkv = dqkv,
                                 .delta = delta,
                                 .heads = heads,
                                 .window = window,
                                 .scale = 1 / std::sqrt(static_cast<double>(heads.width)),
                                 .longest = sequences.longest});
  ctx.run(ops::Rope{.qkv = dqkv,
                    .positions = sequences.positions,
                    .table = rope_table,
                    .heads = heads,
                    .inverse = true});
  qkv->backward(ctx, dqkv, x, sequences.groups, dx, Write::assign);
}

void Attention::for_each_parameter(const ParameterVisitor& visit) {
  qkv->for_each_parameter(visit);
  output->for_each_parameter(visit);
}

}  // namespace mixtral::nn
