#include "model/tensor_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "base/error.h"

namespace mixtral {
namespace {

using enum TensorKind;

constexpr TensorNaming kHuggingFace[] = {
    {.kind = embedding, .name = "model.embed_tokens.weight"},
    {.kind = attention_norm, .name = "model.layers.{layer}.input_layernorm.weight"},
    {.kind = query, .name = "model.layers.{layer}.self_attn.q_proj.weight"},
    {.kind = key, .name = "model.layers.{layer}.self_attn.k_proj.weight"},
    {.kind = value, .name = "model.layers.{layer}.self_attn.v_proj.weight"},
    {.kind = attention_output, .name = "model.layers.{layer}.self_attn.o_proj.weight"},
    {.kind = experts_norm, .name = "model.layers.{layer}.post_attention_layernorm.weight"},
    {.kind = router, .name = "model.layers.{layer}.block_sparse_moe.gate.weight"},
    {.kind = w1, .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"},
    {.kind = w2, .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"},
    {.kind = w3, .name = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight"},
    {.kind = final_norm, .name = "model.norm.weight"},
    {.kind = head, .name = "lm_head.weight"},
};

// As transformers 5 holds them in memory: gate_up_proj is [E, 2F, D], w1's rows before w3's.
constexpr TensorNaming kTransformers5[] = {
    {.kind = router, .name = "model.layers.{layer}.mlp.gate.weight"},
    {.kind = w1,
     .name = "model.layers.{layer}.mlp.experts.gate_up_proj",
     .all_experts = true,
     .part = 0,
     .parts = 2},
    {.kind = w3,
     .name = "model.layers.{layer}.mlp.experts.gate_up_proj",
     .all_experts = true,
     .part = 1,
     .parts = 2},
    {.kind = w2, .name = "model.layers.{layer}.mlp.experts.down_proj", .all_experts = true},
};

// mlx-lm (switch_layers.py).
constexpr TensorNaming kMlx[] = {
    {.kind = w1,
     .name = "model.layers.{layer}.block_sparse_moe.switch_mlp.gate_proj.weight",
     .all_experts = true},
    {.kind = w2,
     .name = "model.layers.{layer}.block_sparse_moe.switch_mlp.down_proj.weight",
     .all_experts = true},
    {.kind = w3,
     .name = "model.layers.{layer}.block_sparse_moe.switch_mlp.up_proj.weight",
     .all_experts = true},
};

constexpr auto kInterleaved = TensorNaming::RowOrder::interleaved;

// Mistral's own (mistral-inference, transformer.py).
constexpr TensorNaming kMistral[] = {
    {.kind = embedding, .name = "tok_embeddings.weight"},
    {.kind = attention_norm, .name = "layers.{layer}.attention_norm.weight"},
    {.kind = query, .name = "layers.{layer}.attention.wq.weight", .row_order = kInterleaved},
    {.kind = key, .name = "layers.{layer}.attention.wk.weight", .row_order = kInterleaved},
    {.kind = value, .name = "layers.{layer}.attention.wv.weight"},
    {.kind = attention_output, .name = "layers.{layer}.attention.wo.weight"},
    {.kind = experts_norm, .name = "layers.{layer}.ffn_norm.weight"},
    {.kind = router, .name = "layers.{layer}.feed_forward.gate.weight"},
    {.kind = w1, .name = "layers.{layer}.feed_forward.experts.{expert}.w1.weight"},
    {.kind = w2, .name = "layers.{layer}.feed_forward.experts.{expert}.w2.weight"},
    {.kind = w3, .name = "layers.{layer}.feed_forward.experts.{expert}.w3.weight"},
    {.kind = final_norm, .name = "norm.weight"},
    {.kind = head, .name = "output.weight"},
};

// GGUF (llama.cpp, gguf-py/gguf/constants.py).
constexpr TensorNaming kGguf[] = {
    {.kind = embedding, .name = "token_embd.weight"},
    {.kind = attention_norm, .name = "blk.{layer}.attn_norm.weight"},
    {.kind = query, .name = "blk.{layer}.attn_q.weight", .row_order = kInterleaved},
    {.kind = key, .name = "blk.{layer}.attn_k.weight", .row_order = kInterleaved},
    {.kind = value, .name = "blk.{layer}.attn_v.weight"},
    {.kind = attention_output, .name = "blk.{layer}.attn_output.weight"},
    {.kind = experts_norm, .name = "blk.{layer}.ffn_norm.weight"},
    {.kind = router, .name = "blk.{layer}.ffn_gate_inp.weight"},
    {.kind = w1, .name = "blk.{layer}.ffn_gate_exps.weight", .all_experts = true},
    {.kind = w2, .name = "blk.{layer}.ffn_down_exps.weight", .all_experts = true},
    {.kind = w3, .name = "blk.{layer}.ffn_up_exps.weight", .all_experts = true},
    {.kind = final_norm, .name = "output_norm.weight"},
    {.kind = head, .name = "output.weight"},
};

// As GGUF files of early 2024 had experts.
constexpr TensorNaming kGgufOneByOne[] = {
    {.kind = w1, .name = "blk.{layer}.ffn_gate.{expert}.weight"},
    {.kind = w2, .name = "blk.{layer}.ffn_down.{expert}.weight"},
    {.kind = w3, .name = "blk.{layer}.ffn_up.{expert}.weight"},
};

// Llama and Mistral, whose layers have one MLP each (model/dense_model.h).
constexpr TensorNaming kDense[] = {
    {.kind = w1, .name = "model.layers.{layer}.mlp.gate_proj.weight", .lone_expert = true},
    {.kind = w2, .name = "model.layers.{layer}.mlp.down_proj.weight", .lone_expert = true},
    {.kind = w3, .name = "model.layers.{layer}.mlp.up_proj.weight", .lone_expert = true},
};

constexpr NamingScheme kSchemes[] = {
    {"transformers 5, packed", kTransformers5},
    {"mlx-lm", kMlx},
    {"GGUF", kGguf},
    {"GGUF, one tensor an expert", kGgufOneByOne},
    {"Mistral", kMistral},
    {"Llama, dense", kDense},
    {"Hugging Face", kHuggingFace},
};

constexpr std::string_view kLayer = "{layer}", kExpert = "{expert}";

const TensorNaming* row_of(const NamingScheme& scheme, TensorKind kind) {
  const auto row = std::ranges::find(scheme.rows, kind, &TensorNaming::kind);
  return row == scheme.rows.end() ? nullptr : &*row;
}

std::string fill_in(std::string_view pattern, const TensorId& id) {
  std::string name(pattern);
  const auto replace = [&](std::string_view word, int64_t number) {
    if (const size_t at = name.find(word); at != std::string::npos)
      name.replace(at, word.size(), std::to_string(number));
  };
  replace(kLayer, id.layer);
  replace(kExpert, id.expert);
  return name;
}

/// Matches a whole name with a pattern.
std::optional<TensorId> match(const TensorNaming& row, std::string_view name) {
  TensorId id{.kind = row.kind};
  std::string_view pattern = row.name;
  while (!pattern.empty()) {
    int64_t* number = pattern.starts_with(kLayer)    ? &id.layer
                      : pattern.starts_with(kExpert) ? &id.expert
                                                     : nullptr;
    if (!number) {
      const size_t plain = std::min(pattern.find('{'), pattern.size());
      if (!name.starts_with(pattern.substr(0, plain))) return std::nullopt;
      name.remove_prefix(plain);
      pattern.remove_prefix(plain);
      continue;
    }
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), *number);
    const auto digits = static_cast<size_t>(end - name.data());
    // As the numbers are written: no sign, no leading zero.
    if (error != std::errc() || *number < 0 || std::to_string(*number) != name.substr(0, digits))
      return std::nullopt;
    name.remove_prefix(digits);
    pattern.remove_prefix(number == &id.layer ? kLayer.size() : kExpert.size());
  }
  return name.empty() ? std::optional(id) : std::nullopt;
}

/// The shape of the file's whole tensor.
Shape whole_shape(const ModelConfig& config, const TensorNaming& row) {
  const Shape one = tensor_shape(config, row.kind);
  if (one.rank() == 1) return one;
  int64_t rows = row.parts * one[0], columns = one[1];
  if (row.transposed) std::swap(rows, columns);
  return row.all_experts ? Shape{config.num_experts, rows, columns} : Shape{rows, columns};
}

/// Elements of a tensor in any type, moved as bytes.
class Elements {
 public:
  explicit Elements(const Tensor& tensor)
      : data_(static_cast<std::byte*>(tensor.data())), size_(size_of(tensor.dtype())) {}
  void copy(int64_t to, const Elements& from, int64_t at, int64_t count = 1) const {
    std::memcpy(data_ + to * size_, from.data_ + at * size_, static_cast<size_t>(count * size_));
  }

 private:
  std::byte* data_;
  int64_t size_;
};

}  // namespace

Shape tensor_shape(const ModelConfig& c, TensorKind kind) {
  const int64_t d = c.hidden_size, f = c.intermediate_size;
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  switch (kind) {
    case embedding:
    case head:
      return {c.vocab_size, d};
    case attention_norm:
    case experts_norm:
    case final_norm:
      return {d};
    case query:
      return {q, d};
    case key:
    case value:
      return {kv, d};
    case attention_output:
      return {d, q};
    case router:
      return {c.num_experts, d};
    case w1:
    case w3:
      return {f, d};
    case w2:
      return {d, f};
  }
  CHECK(false, "a kind of tensor without a shape");
  return {};
}

void for_each_tensor(const ModelConfig& config, const std::function<void(const TensorId&)>& visit) {
  visit({.kind = embedding});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const TensorKind kind :
         {attention_norm, query, key, value, attention_output, experts_norm, router})
      visit({.kind = kind, .layer = layer});
    for (int64_t expert = 0; expert < config.num_experts; ++expert)
      for (const TensorKind kind : {w1, w2, w3})
        visit({.kind = kind, .layer = layer, .expert = expert});
  }
  visit({.kind = final_norm});
  if (!config.tie_embeddings) visit({.kind = head});
}

const NamingScheme* find_naming_scheme(std::string_view name) {
  const auto* found = std::ranges::find(kSchemes, name, &NamingScheme::name);
  return found == std::end(kSchemes) ? nullptr : found;
}

const NamingScheme& hugging_face_names() { return kSchemes[std::size(kSchemes) - 1]; }

std::span<const NamingScheme> naming_schemes() { return kSchemes; }

std::string tensor_name(const NamingScheme& scheme, const TensorId& id) {
  const TensorNaming* row = row_of(scheme, id.kind);
  return row ? fill_in(row->name, id) : std::string();
}

std::string tensor_name(const TensorId& id) { return tensor_name(hugging_face_names(), id); }

std::optional<TensorId> parse_tensor_name(const TensorNaming& row, std::string_view name) {
  return match(row, name);
}

std::optional<TensorId> parse_tensor_name(std::string_view name) {
  for (const TensorNaming& row : kHuggingFace)
    if (const auto id = match(row, name)) return id;
  return std::nullopt;
}

std::string name_in_files(const TensorSource& source, const TensorId& id) {
  for (const NamingScheme& scheme : kSchemes) {
    const std::string embedded = tensor_name(scheme, {.kind = embedding});
    if (!embedded.empty() && source.find(embedded)) return tensor_name(scheme, id);
  }
  return tensor_name(id);
}

std::optional<TensorPlace> find_place(const TensorSource& source, const ModelConfig& config,
                                      const TensorId& id) {
  for (const NamingScheme& scheme : kSchemes) {
    const TensorNaming* row = row_of(scheme, id.kind);
    if (!row || (row->lone_expert && config.num_experts != 1)) continue;
    std::string name = fill_in(row->name, id);
    if (source.find(name)) return TensorPlace{std::move(name), *row, whole_shape(config, *row)};
  }
  return std::nullopt;
}

int64_t row_in_head(const TensorNaming& row, int64_t r, int64_t width) {
  if (row.row_order == TensorNaming::RowOrder::same) return r;
  const int64_t in_head = r % width, half = width / 2;
  return r - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

void read_tensor(const TensorSource& source, const TensorPlace& place, const ModelConfig& config,
                 const TensorId& id, const Tensor& to) {
  const TensorNaming& row = place.naming;
  const Shape shape = tensor_shape(config, id.kind);
  CHECK(to.shape() == shape);
  const int64_t group = row.all_experts ? id.expert * row.parts : 0;
  if (shape.rank() == 1 || (!row.transposed && row.row_order == TensorNaming::RowOrder::same))
    return source.read(place.name, (group + row.part) * shape.numel(), to);

  const int64_t rows = shape[0], columns = shape[1], all_rows = row.parts * rows;
  std::vector<std::byte> bytes(
      static_cast<size_t>((row.transposed ? row.parts : 1) * shape.numel() * size_of(to.dtype())));
  const Elements out(to);
  if (row.transposed) {
    const Tensor stored(bytes.data(), {columns, all_rows}, to.dtype());
    source.read(place.name, group * shape.numel(), stored);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        out.copy(r * columns + c, Elements(stored), c * all_rows + row.part * rows + r);
    return;
  }
  const Tensor stored(bytes.data(), shape, to.dtype());
  source.read(place.name, (group + row.part) * shape.numel(), stored);
  for (int64_t r = 0; r < rows; ++r)
    out.copy(r * columns, Elements(stored), row_in_head(row, r, config.head_dim) * columns,
             columns);
}

}  // namespace mixtral
