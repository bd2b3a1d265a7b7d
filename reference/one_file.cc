// The whole of Mixtral in one file, on MLX's C++ API: to be read from top to bottom.
//
// A Mixtral is a decoder-only transformer in which each layer's feed-forward network is a *sparse
// mixture of experts*: E networks stand side by side, a small router sends every token to k of
// them, and so a token pays for k while the model knows as much as E. All else is as in a Mistral
// or Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
//
//   0 flags    1 configuration   2 tokens      3 the model   4 LoRA
//   5 files    6 data            7 training    8 generation  9 the commands
//
// MLX's arrays are lazy: an expression builds a graph, and eval() computes it. Gradients come from
// transforming a function (value_and_grad), so there is no backward pass to write. What has no
// definition here (take, reshape, softmax, ...) is MLX's. All numbers are fp32.
// Letters in comments on shapes: B rows, T tokens a row, N = B·T, D model width, H query heads, G
// key/value heads, h head width, E experts, k experts a token, F expert width, V vocabulary,
// L layers, S keys that attention sees, r rank of a LoRA.

#include <mlx/mlx.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <regex>
#include <set>
#include <span>
#include <sstream>

namespace {

namespace fs = std::filesystem;
using namespace mlx::core;
using Json = nlohmann::ordered_json;

// -------------------------------------------------------------------------------------- 0 flags

constexpr const char* kUsage = R"(one_file: Mixtral in one file, on MLX
  one_file pretrain --data DATA --out DIR              all weights, from scratch or from --init
  one_file finetune --model DIR --data DATA --out DIR  a LoRA, or all weights
  one_file generate --model DIR --prompt TEXT          by one of five methods
DATA: a .jsonl file, or a directory with train.jsonl and val.jsonl, of {"text"} or {"input_ids",
"labels"} lines. Models are Hugging Face directories, adapters PEFT's. Flags and their defaults:
Model     --model tiny, or a directory whose shape to take   --init DIR, whose weights to go on from
          --adapter DIR   --tokenizer bytes | bytes-256 | FILE | DIR   --device cpu | gpu
Training  --context 256   --batch-size 16   --shuffle on | off   --rows windows | records
          --iters 1000   --lr RATE   --schedule cosine | constant   --warmup STEPS   --seed 1
          --beta1 0.9   --beta2 0.99   --adam-eps 1e-8   --weight-decay 0.1   --grad-clip 1
          --aux-loss per-layer | hf | off   --aux-coef 0.02   --log-every 10   --eval-every 100
          --sample-prompt TEXT, which the finished model continues
finetune  --method lora | full  --rank 8  --alpha 16  --rslora off | on  --targets q_proj,v_proj,gate
generate  --method generate | generate_raw | generate_one_token | generate_after_training |
          just_generate_one_god_damn_token   --prompt TEXT or --ids 5,7,9   --max-tokens 256
          --temp 0.8   --logprobs off | on   --out FILE for generate_raw's logits
)";

struct UsageError : std::runtime_error {  // exit status 2; of any other exception it is 1
  using std::runtime_error::runtime_error;
};

void require(bool good, const std::string& otherwise) {
  if (!good) throw std::runtime_error(otherwise);
}

struct Flags {
  std::map<std::string, std::string> values;

  Flags(int argc, char** argv) {
    for (int i = 2; i < argc; i += 2) {
      const std::string flag = argv[i];
      if (!flag.starts_with("--") ||
          std::string(kUsage).find(" " + flag + " ") == std::string::npos || i + 1 == argc)
        throw UsageError(flag + " is not a flag of this program with a value; see --help");
      values[flag.substr(2)] = argv[i + 1];
    }
  }
  bool has(const std::string& name) const { return values.contains(name); }
  std::string text(const std::string& name, std::optional<std::string> otherwise = {}) const {
    if (!has(name) && !otherwise) throw UsageError("--" + name + " is needed; see --help");
    return has(name) ? values.at(name) : *otherwise;
  }
  template <class T>
  T number(const std::string& name, T otherwise, T least = 0) const {  // an integer if T is
    std::istringstream stream(text(name, ""));
    if (has(name) && (!(stream >> otherwise) || !stream.eof() || otherwise < least))
      throw UsageError("--" + name + ": expected a number of at least " + std::to_string(least));
    return otherwise;
  }
  // One of several words, "on|off": the first one where the flag is absent.
  std::string word(const std::string& name, const std::string& words) const {
    const std::string value = text(name, words.substr(0, words.find('|')));
    if (("|" + words + "|").find("|" + value + "|") == std::string::npos)
      throw UsageError("--" + name + " " + value + ": expected " + words);
    return value;
  }
};

// ------------------------------------------------------------------------------ 1 configuration

// A model that learns to imitate a text within minutes on a laptop. The released 8x7B has
// V 32000, D 4096, F 14336, L 32, H 32, G 8, theta 1e6.
constexpr const char* kTiny = R"({
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
  "vocab_size": 258, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 4,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
  "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 1024,
  "rms_norm_eps": 1e-5, "rope_theta": 1e4, "initializer_range": 0.04,
  "router_aux_loss_coef": 0.02, "tie_word_embeddings": false, "sliding_window": null})";

struct Config {
  Json json;  // as it stands in the file; the defaults below are transformers'

  template <class T>
  T get(const char* key, T otherwise) const {
    const Json value = json.value(key, Json());
    return value.is_null() ? otherwise : value.get<T>();
  }
  int vocab_size = get("vocab_size", 32000);                // V
  int hidden_size = get("hidden_size", 4096);               // D
  int intermediate_size = get("intermediate_size", 14336);  // F
  int num_layers = get("num_hidden_layers", 32);            // L
  int num_heads = get("num_attention_heads", 32);           // H
  int num_kv_heads = get("num_key_value_heads", num_heads);
  int head_dim = get("head_dim", hidden_size / std::max(1, num_heads));
  int num_experts = get("num_local_experts", 8);          // E
  int experts_per_token = get("num_experts_per_tok", 2);  // k
  int max_positions = get("max_position_embeddings", 131072);
  int window = get("sliding_window", 0);  // tokens that a token sees, itself included; 0: all
  float norm_eps = get("rms_norm_eps", 1e-5f), initializer = get("initializer_range", 0.02f);
  float aux_coef = get("router_aux_loss_coef", 0.001f);
  bool tied = get("tie_word_embeddings", false);       // the output matrix is the embedding
  Json rope = get("rope_parameters", Json::object());  // where transformers 5 has the next
  float rope_theta = rope.value("rope_theta", get("rope_theta", 1e6f));

  void check(const std::string& source) const {
    require(get("model_type", std::string()) == "mixtral", source + ": is not of a Mixtral");
    for (const Json& kind : {rope, get("rope_scaling", Json::object())})
      require(kind.value("rope_type", "default") == "default", source + ": unknown rope_type");
    require(num_kv_heads > 0 && num_heads % num_kv_heads == 0 && head_dim % 2 == 0 &&
                experts_per_token <= num_experts,
            source + ": heads must be a multiple of kv heads, head_dim even, and k at most E");
  }
  bool ends(int id) const {  // eos_token_id is a number, several, or null
    const Json eos = json.value("eos_token_id", Json());
    return eos.is_array() ? std::ranges::count(eos, Json(id)) > 0 : eos == id;
  }
};

Json read_json(const fs::path& path) {
  std::ifstream file(path);
  require(file.good(), path.string() + ": cannot be opened");
  const Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  require(!json.is_discarded(), path.string() + ": is not JSON");
  return json;
}

void write_json(const fs::path& path, const Json& json) {
  std::ofstream file(path);
  require((file << json.dump(2) << '\n').good(), path.string() + ": cannot be written");
}

// ------------------------------------------------------------------------------------- 2 tokens

// Text becomes numbers below V: the pieces of a SentencePiece model, or simply the 256 bytes, to
// which two tokens may be added for the begin (256) and the end (257) of a document.
struct Tokenizer {
  int bos = -1, eos = -1;  // -1: none
  int size = 0;            // 0: no tokenizer; a model without one takes and gives token ids
  fs::path file;           // of SentencePiece
  sentencepiece::SentencePieceProcessor pieces;

  // From "bytes", "bytes-256" (without those two), a SentencePiece file, or a model's directory.
  explicit Tokenizer(const fs::path& from) {
    const fs::path bytes = from / "byte_tokenizer.json", model = from / "tokenizer.model";
    if (from == "bytes" || (fs::exists(bytes) && read_json(bytes).at("bos_id").is_number())) {
      bos = 256, eos = 257, size = 258;
    } else if (from == "bytes-256" || fs::exists(bytes)) {
      size = 256;
    } else if (!fs::is_directory(from) || fs::exists(model)) {
      file = fs::is_directory(from) ? model : from;
      require(pieces.Load(file.string()).ok(), file.string() + ": is no SentencePiece model");
      bos = pieces.bos_id(), eos = pieces.eos_id(), size = pieces.GetPieceSize();
    }
  }

  // With the begin token in front, where there is one.
  std::vector<int> encode(const std::string& text) const {
    require(size > 0, "text needs a tokenizer, and the model has none: give --tokenizer");
    std::vector<int> ids = file.empty() ? std::vector<int>() : pieces.EncodeAsIds(text);
    for (const unsigned char byte : file.empty() ? text : "") ids.push_back(byte);
    if (bos >= 0) ids.insert(ids.begin(), bos);
    return ids;
  }

  // What a token adds to a text: perhaps only a part of a character.
  std::string text(int id) const {
    if (file.empty()) return id < std::min(size, 256) ? std::string(1, static_cast<char>(id)) : "";
    if (pieces.IsControl(id)) return "";
    const std::string piece = pieces.IdToPiece(id);
    if (pieces.IsByte(id))  // spelt "<0x0A>"
      return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
    return std::regex_replace(piece, std::regex("\u2581"), " ");  // the sign for a blank
  }

  void save(const fs::path& directory) const {
    const fs::path bytes = directory / "byte_tokenizer.json", model = directory / "tokenizer.model";
    const Json begin = bos < 0 ? Json() : Json(bos), end = eos < 0 ? Json() : Json(eos);
    if (size > 0 && file.empty())
      write_json(bytes, {{"kind", "bytes"}, {"bos_id", begin}, {"eos_id", end}});
    else if (size > 0 && !(fs::exists(model) && fs::equivalent(file, model)))
      fs::copy_file(file, model, fs::copy_options::overwrite_existing);
  }
};

// ---------------------------------------------------------------------------------- 3 the model

// What the layers' routers did, for the loss that keeps experts in use: of all tokens, the share
// that was sent to each expert (the shares sum to k), and the mean probability each was given.
struct Routing {
  array share;                                      // [N]: 1/(number of tokens), or 0 for padding
  std::vector<array> loads = {}, importances = {};  // [E] for each layer
};

// Keys and values of the tokens so far: a token never changes those of earlier ones, so generating
// needs only the newest token's row of everything. Only the G kv heads are kept, which is the point
// of grouped-query attention: the cache is H/G times smaller.
struct KvCache {
  std::vector<std::pair<array, array>> layers;  // [1, G, length, h] each
  int length = 0;
};

struct Model {
  Config config;
  // By Hugging Face's names, except that a layer's experts are stacked into one array each:
  // "model.layers.0.block_sparse_moe.experts.w1.weight" is [E, F, D].
  std::map<std::string, array> weights = {};
  float lora_scale = 0;

  const array& weight(const std::string& name) const { return weights.at(name + ".weight"); }

  // y = x Wᵀ, and with a LoRA (part 4) y = x Wᵀ + scale · (x Aᵀ) Bᵀ.
  array linear(const array& x, const std::string& name) const {
    const array y = matmul(x, transpose(weight(name)));
    if (!weights.contains(name + ".lora_A.weight")) return y;
    const array low = matmul(x, transpose(weight(name + ".lora_A")));
    return y + lora_scale * matmul(low, transpose(weight(name + ".lora_B")));
  }

  // x / sqrt(mean(x²) + eps) · weight: keeps activations at one scale, without LayerNorm's mean.
  array norm(const array& x, const std::string& name) const {
    return fast::rms_norm(x, weight(name), config.norm_eps);
  }

  // Every token looks back: softmax(q kᵀ / √h) v, in H heads; H/G of them share a key/value head.
  array attention(const array& x, const std::string& layer, int index, KvCache* cache) const {
    const int B = x.shape(0), T = x.shape(1), h = config.head_dim;
    const int past = cache ? cache->length : 0;
    auto heads = [&](const char* name, int count) {  // [B, T, D] -> [B, count, T, h]
      return transpose(reshape(linear(x, layer + name), {B, T, count, h}), {0, 2, 1, 3});
    };
    // Rotary positions turn each pair (i, i + h/2) of a query or key by an angle proportional to
    // its position. A product of two turned vectors then depends on their distance only.
    auto turn = [&](const array& y) {
      return fast::rope(y, h, /*traditional=*/false, config.rope_theta, 1.0f, past);
    };
    const array queries = turn(heads("self_attn.q_proj", config.num_heads));
    array keys = turn(heads("self_attn.k_proj", config.num_kv_heads));
    array values = heads("self_attn.v_proj", config.num_kv_heads);
    if (cache) {
      // This copies the cache at every token, but attention reads all of it at every token anyway.
      if (past == 0) cache->layers.emplace_back(keys, values);
      auto& [all_keys, all_values] = cache->layers[static_cast<size_t>(index)];
      if (past > 0) all_keys = keys = concatenate({all_keys, keys}, 2);
      if (past > 0) all_values = values = concatenate({all_values, values}, 2);
    }
    // A token sees none after itself, and with a sliding window only the last few.
    const int S = keys.shape(2), window = config.window;
    std::string mask = T > 1 ? "causal" : "";
    std::optional<array> window_mask;
    if (window > 0 && window < S) {
      const array q = reshape(arange(S - T, S), {T, 1}), k = reshape(arange(S), {1, S});
      mask = "array";
      window_mask = logical_and(less_equal(k, q), greater(k, q - window));  // [T, S]
    }
    const array o = fast::scaled_dot_product_attention(
        queries, keys, values, 1 / std::sqrt(static_cast<float>(h)), mask, window_mask);
    return linear(reshape(transpose(o, {0, 2, 1, 3}), {B, T, -1}), layer + "self_attn.o_proj");
  }

  // The mixture of experts, for tokens x [N, D].
  array mixture(const array& x, const std::string& layer, Routing* routing) const {
    const int N = x.shape(0), k = config.experts_per_token;
    const std::string moe = layer + "block_sparse_moe.";
    // The router scores the experts, and the k best are chosen. argsort is stable, so of equals the
    // first wins. The choice itself has no gradient; the router learns through the weights below.
    const array logits = linear(x, moe + "gate");  // [N, E]
    const array chosen = slice(argsort(stop_gradient(-logits), -1), {0, 0}, {N, k});
    // Softmax over all experts, then the chosen renormalised: the same as a softmax over the k.
    const array weights_of_k = softmax(take_along_axis(logits, chosen, -1), -1, true);  // [N, k]
    if (routing) {
      const array every = arange(config.num_experts, chosen.dtype());
      const array hits = astype(equal(expand_dims(chosen, 2), every), float32);  // [N, k, E]
      routing->loads.push_back(matmul(routing->share, sum(hits, 1)));
      routing->importances.push_back(matmul(routing->share, softmax(logits, -1, true)));
    }
    // N·k rows, sorted by expert: gather_mm multiplies row i by the matrix of expert e[i], and when
    // it knows that they are sorted, it fetches each matrix once.
    const array flat = flatten(chosen);  // [N·k]
    const array origin = argsort(flat);  // where each sorted row comes from
    const array e = take(flat, origin);  // its expert
    const array token = floor_divide(origin, array(k, origin.dtype()));
    const array rows = expand_dims(take(x, token, 0), 1);  // [N·k, 1, D]
    auto apply = [&](const array& y, const char* name) {
      const array matrices = swapaxes(weight(moe + "experts." + name), 1, 2);
      return gather_mm(y, matrices, std::nullopt, e, /*sorted_indices=*/true);
    };
    // SwiGLU: w2 (silu(w1 x) · w3 x), where silu(z) = z · sigmoid(z).
    const array gate = apply(rows, "w1"), up = apply(rows, "w3");  // [N·k, 1, F]
    const array y = apply(gate * sigmoid(gate) * up, "w2");        // [N·k, 1, D]
    // Back in the tokens' order, and the k answers added, each with its weight.
    const array answers = reshape(take(squeeze(y, 1), argsort(origin), 0), {N, k, -1});
    return sum(answers * expand_dims(weights_of_k, 2), 1);  // [N, D]
  }

  // Token ids [B, T] to the last layer's output [B, T, D]. Every block adds to the stream x.
  array hidden(const array& ids, KvCache* cache, Routing* routing = nullptr) const {
    array x = take(weight("model.embed_tokens"), ids, 0);
    for (int i = 0; i < config.num_layers; ++i) {
      const std::string layer = "model.layers." + std::to_string(i) + ".";
      x = x + attention(norm(x, layer + "input_layernorm"), layer, i, cache);
      const array n = norm(x, layer + "post_attention_layernorm");
      const array tokens = reshape(n, {-1, config.hidden_size});  // experts know no rows
      x = x + reshape(mixture(tokens, layer, routing), x.shape());
    }
    if (cache) cache->length += ids.shape(1);
    return norm(x, "model.norm");
  }

  // [.., D] to logits [.., V]: the score of each token to come next.
  array head(const array& x) const {
    return config.tied ? matmul(x, transpose(weight("model.embed_tokens"))) : linear(x, "lm_head");
  }
};

// Every weight of a model and its shape: what initialising, loading and checking go through.
std::map<std::string, Shape> weight_shapes(const Config& c) {
  const int D = c.hidden_size, F = c.intermediate_size, E = c.num_experts, V = c.vocab_size;
  const int Q = c.num_heads * c.head_dim, K = c.num_kv_heads * c.head_dim;
  std::map<std::string, Shape> shapes = {{"model.embed_tokens", {V, D}}, {"model.norm", {D}}};
  if (!c.tied) shapes["lm_head"] = {V, D};
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    shapes[layer + "input_layernorm"] = shapes[layer + "post_attention_layernorm"] = Shape{D};
    shapes[layer + "self_attn.q_proj"] = {Q, D};
    shapes[layer + "self_attn.k_proj"] = shapes[layer + "self_attn.v_proj"] = Shape{K, D};
    shapes[layer + "self_attn.o_proj"] = {D, Q};
    const std::string moe = layer + "block_sparse_moe.";
    shapes[moe + "gate"] = {E, D};
    shapes[moe + "experts.w1"] = shapes[moe + "experts.w3"] = Shape{E, F, D};
    shapes[moe + "experts.w2"] = {E, D, F};
  }
  return shapes;
}

Model new_model(const Config& config) {
  Model model{config};
  for (const auto& [name, shape] : weight_shapes(config))
    model.weights.insert_or_assign(
        name + ".weight",
        shape.size() == 1 ? ones(shape) : random::normal(shape, 0.0f, config.initializer));
  return model;
}

// --------------------------------------------------------------------------------------- 4 LoRA

// Fine-tuning changes a weight by little, and the change is nearly of low rank: so W stays frozen,
// and W + scale·B·A is trained with B [out, r] and A [r, in]. B starts at zero, hence the model
// starts as it was. The scale is alpha / r (rsLoRA: alpha / √r).

bool is_lora(const std::string& name) { return name.find(".lora_") != std::string::npos; }

// Puts new LoRAs on a model, as an adapter_config.json of PEFT says.
void attach(Model& model, const Json& adapter) {
  const int r = adapter.at("r").get<int>();
  const auto rank = static_cast<float>(r), alpha = adapter.at("lora_alpha").get<float>();
  model.lora_scale = alpha / (adapter.value("use_rslora", false) ? std::sqrt(rank) : rank);
  for (const std::string target : adapter.at("target_modules")) {
    bool found = false;
    for (const auto& [name, shape] : weight_shapes(model.config)) {
      if (shape.size() != 2 || name.substr(name.rfind('.') + 1) != target) continue;
      const float bound = 1 / std::sqrt(static_cast<float>(shape[1]));
      model.weights.insert_or_assign(name + ".lora_A.weight",
                                     random::uniform(-bound, bound, {r, shape[1]}));
      model.weights.insert_or_assign(name + ".lora_B.weight", zeros({shape[0], r}));
      found = true;
    }
    require(found, target + " is nothing that this program puts a LoRA on; try q_proj,v_proj,gate");
  }
}

// -------------------------------------------------------------------------------------- 5 files

// All tensors of DIRECTORY/STEM.safetensors, or of the shards that its index names.
std::map<std::string, array> read_tensors(const fs::path& directory, const std::string& stem) {
  std::set<fs::path> files = {stem + ".safetensors"};
  if (const fs::path index = directory / (stem + ".safetensors.index.json"); fs::exists(index)) {
    files.clear();
    const Json json = read_json(index);
    for (const Json& file : json.at("weight_map"))
      files.insert(fs::path(file.get<std::string>()).filename());
  }
  std::map<std::string, array> tensors;
  for (const fs::path& file : files)
    for (const auto& [name, tensor] : load_safetensors((directory / file).string()).first)
      tensors.insert_or_assign(name, astype(tensor, float32));
  return tensors;
}

// Reads either of transformers' spellings: a tensor an expert ("experts.3.w1.weight"), or all
// experts in one ("mlp.experts.gate_up_proj", where w1's rows come first, then w3's).
Model load_model(const fs::path& directory) {
  Model model{Config{read_json(directory / "config.json")}};
  model.config.check((directory / "config.json").string());
  std::map<std::string, array> tensors = read_tensors(directory, "model");
  auto take_out = [&](const std::string& name) {
    auto node = tensors.extract(name);
    require(!node.empty(), directory.string() + ": the tensor " + name + " is missing");
    return node.mapped();
  };
  for (const auto& [name, shape] : weight_shapes(model.config)) {
    const auto moe = name.find("block_sparse_moe."), which = name.find(".w");
    const std::string fused = name.substr(0, moe) + "mlp.experts.";
    std::vector<array> parts;
    if (tensors.contains(fused + "gate_up_proj") && name.ends_with(".w1")) {
      auto halves = split(take_out(fused + "gate_up_proj"), 2, 1);
      parts = {halves[0]};
      tensors.insert_or_assign(name.substr(0, which) + ".w3.weight", halves[1]);
    } else if (tensors.contains(fused + "down_proj") && name.ends_with(".w2")) {
      parts = {take_out(fused + "down_proj")};
    } else if (name.ends_with(".gate") && !tensors.contains(name + ".weight")) {
      parts = {take_out(name.substr(0, moe) + "mlp.gate.weight")};
    } else if (shape.size() < 3 || tensors.contains(name + ".weight")) {
      parts = {take_out(name + ".weight")};
    } else {
      for (int e = 0; e < shape[0]; ++e)
        parts.push_back(take_out(name.substr(0, which + 1) + std::to_string(e) +
                                 name.substr(which) + ".weight"));
    }
    const array value =
        parts.size() > 1 || parts[0].ndim() < shape.size() ? stack(parts) : parts[0];
    require(value.shape() == shape, name + ": has not the shape that config.json says");
    model.weights.insert_or_assign(name + ".weight", value);
  }
  if (model.config.tied) tensors.erase("lm_head.weight");
  require(tensors.empty(), directory.string() + ": the model of config.json has fewer tensors");
  return model;
}

using Strings = std::unordered_map<std::string, std::string>;
const Strings kMetadata = {{"format", "pt"}};  // without any, MLX writes a null that some refuse

// The layout of `save_pretrained`: an expert a tensor.
void save_model(const Model& model, const fs::path& directory) {
  std::unordered_map<std::string, array> tensors;
  for (const auto& [name, value] : model.weights) {
    const auto at = name.find(".experts.");
    if (at == std::string::npos) tensors.insert_or_assign(name, value);
    for (int e = 0; e < model.config.num_experts && at != std::string::npos; ++e)
      tensors.insert_or_assign(name.substr(0, at + 9) + std::to_string(e) + name.substr(at + 8),
                               take(value, e, 0));
  }
  save_safetensors((directory / "model.safetensors").string(), tensors, kMetadata);
  Json json = model.config.json;
  json["torch_dtype"] = json["dtype"] = "float32";  // the names of transformers 4 and 5
  write_json(directory / "config.json", json);
}

// PEFT's layout: adapter_config.json, and "base_model.model.<module>.lora_A.weight" and lora_B.
const std::string kPeftPrefix = "base_model.model.";

Json load_adapter(Model& model, const fs::path& directory) {
  const std::string source = directory.string() + ": ";
  const Json adapter = read_json(directory / "adapter_config.json");
  require(adapter.value("peft_type", "") == "LORA", source + "peft_type is not LORA");
  for (const char* key : {"target_parameters", "rank_pattern", "alpha_pattern", "modules_to_save"})
    require(adapter.value(key, Json()).empty(), source + key + " is not supported here");
  attach(model, adapter);  // makes what the file must then fill
  auto wanted = std::ranges::count_if(model.weights, is_lora, [](auto& w) { return w.first; });
  for (const auto& [name, tensor] : read_tensors(directory, "adapter_model")) {
    const auto place = model.weights.find(name.substr(std::min(name.size(), kPeftPrefix.size())));
    require(place != model.weights.end() && is_lora(place->first) &&
                place->second.shape() == tensor.shape() && wanted-- > 0,
            source + name + " has no place in this model, or another shape");
    place->second = tensor;
  }
  require(wanted == 0, source + "tensors of target_modules are missing");
  return adapter;
}

void save_adapter(const Model& model, const Json& adapter, const fs::path& directory) {
  std::unordered_map<std::string, array> tensors;
  for (const auto& [name, value] : model.weights)
    if (is_lora(name)) tensors.insert_or_assign(kPeftPrefix + name, value);
  save_safetensors((directory / "adapter_model.safetensors").string(), tensors, kMetadata);
  write_json(directory / "adapter_config.json", adapter);
}

// --------------------------------------------------------------------------------------- 6 data

constexpr int kIgnored = -100;  // a label that is not learnt

struct Row {
  std::vector<int> ids, labels;  // labels[i] is the token to predict after ids[i], or kIgnored
};

void append(Row& to, const Row& from) {
  to.ids.insert(to.ids.end(), from.ids.begin(), from.ids.end());
  to.labels.insert(to.labels.end(), from.labels.begin(), from.labels.end());
}

// Reads JSON lines of {"text"}, or of {"input_ids"} with or without "labels" (there not shifted,
// as Hugging Face has them). Each record is a row, or several where it is longer than T tokens; or,
// as suits pretraining, all records stand end to end and are cut into windows of T.
std::vector<Row> read_rows(const fs::path& path, const Tokenizer& tokenizer, int vocab_size, int T,
                           bool windows) {
  std::ifstream file(path);
  require(file.good(), path.string() + ": cannot be opened");
  std::vector<Row> records, rows;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const std::string where = path.string() + ":" + std::to_string(number) + ": ";
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool is_text = json.is_object() && json.value("text", Json()).is_string();
    require(is_text || json.contains("input_ids"), where + "expected \"text\" or \"input_ids\"");
    Row record;
    record.ids = is_text ? tokenizer.encode(json["text"]) : std::vector<int>(json["input_ids"]);
    if (is_text && tokenizer.eos >= 0) record.ids.push_back(tokenizer.eos);
    record.labels = json.value("labels", record.ids);
    require(record.ids.size() == record.labels.size(), where + "expected a label for each token");
    auto known = [&](int id) { return id >= 0 && id < vocab_size; };
    for (const int id : record.ids) require(known(id), where + "a token is not in the vocabulary");
    for (const int id : record.labels) require(known(id) || id == kIgnored, where + "bad label");
    if (!windows || records.empty()) records.emplace_back();
    append(records.back(), record);
  }
  for (Row& record : records) {
    record.labels.push_back(kIgnored);  // nothing is known to follow the last token
    for (std::ptrdiff_t begin = 0; begin < std::ssize(record.ids); begin += T) {
      const auto end = std::min(begin + T, std::ssize(record.ids));
      Row row{{record.ids.begin() + begin, record.ids.begin() + end},
              {record.labels.begin() + begin + 1, record.labels.begin() + end + 1}};
      const auto ignored = std::ranges::count(row.labels, kIgnored);
      if (ignored < std::ssize(row.labels)) rows.push_back(std::move(row));
    }
  }
  require(!rows.empty(), path.string() + ": there is nothing to learn in it");
  return rows;
}

// Ids and labels, [B, T] each. Where a row is shorter, its ids end with -1s.
std::pair<array, array> make_batch(std::span<const Row> rows) {
  size_t T = 0;
  for (const Row& row : rows) T = std::max(T, row.ids.size());
  Row all;
  for (const Row& row : rows) {
    append(all, row);
    all.ids.resize(all.ids.size() + T - row.ids.size(), -1);
    all.labels.resize(all.ids.size(), kIgnored);
  }
  const Shape shape = {static_cast<int>(rows.size()), static_cast<int>(T)};
  return {array(all.ids.data(), shape), array(all.labels.data(), shape)};
}

// ----------------------------------------------------------------------------------- 7 training

// {objective, cross-entropy, balancing loss, labels}. Cross-entropy is the mean over labels of
// −log p(label) = log Σ exp(logits) − logits[label]. Without a balancing loss a router soon sends
// everything to its few best experts, which then are the only ones that learn. E · Σₑ load[e] ·
// importance[e] is least when both are even; it is taken of each layer and averaged, or ("hf", as
// in transformers) of the layers' average.
std::vector<array> losses(const Model& model, const std::pair<array, array>& batch,
                          const std::string& balance, float coef) {
  // No token looks ahead, so padding changes nothing but the routing statistics.
  const auto& [ids, labels] = batch;
  const array real = astype(greater_equal(ids, array(0)), float32);
  Routing routing{flatten(real / sum(real))};
  const array logits = model.head(model.hidden(maximum(ids, array(0)), nullptr, &routing));
  const array learnt = astype(not_equal(labels, array(kIgnored)), float32);
  const array label = expand_dims(maximum(labels, array(0)), -1);
  const array score = squeeze(take_along_axis(logits, label, -1), -1);
  const array count = sum(learnt);
  const array cross_entropy = sum((logsumexp(logits, -1) - score) * learnt) / count;
  array load = stack(routing.loads), importance = stack(routing.importances);  // [L, E]
  if (balance == "hf") load = mean(load, 0, true), importance = mean(importance, 0, true);
  const array aux = static_cast<float>(load.shape(1)) * mean(sum(load * importance, -1));
  return {balance == "off" ? cross_entropy : cross_entropy + coef * aux, cross_entropy, aux, count};
}

// Nats a label, over all rows.
float evaluate(const Model& model, std::span<const Row> rows, size_t batch_size) {
  float total = 0, count = 0;
  for (size_t i = 0; i < rows.size(); i += batch_size) {
    const size_t size = std::min(batch_size, rows.size() - i);
    auto result = losses(model, make_batch(rows.subspan(i, size)), "off", 0);
    total += result[1].item<float>() * result[3].item<float>();
    count += result[3].item<float>();
  }
  return total / count;
}

// AdamW: steps of about the learning rate whatever the gradient's scale, since its running mean is
// divided by the root of its mean square. Both means start at zero, which 1 − βᵗ corrects. Matrices
// decay, by themselves and not through the gradient. Gradients above a norm of `clip` are scaled to
// it.
struct AdamW {
  float beta1, beta2, eps, decay, clip;
  float steps = 0;
  std::map<std::string, std::pair<array, array>> state = {};  // m and v of each weight

  void step(Model& model, const std::vector<std::string>& names,
            const std::vector<array>& gradients, float lr) {
    ++steps;
    const float correct1 = 1 - std::pow(beta1, steps), correct2 = 1 - std::pow(beta2, steps);
    array squares = array(0.0f);
    for (const array& g : gradients) squares = squares + sum(g * g);
    const array shrink = minimum(array(1.0f), clip / (sqrt(squares) + 1e-6f));
    std::vector<array> changed;
    for (size_t i = 0; i < names.size(); ++i) {
      array& w = model.weights.at(names[i]);
      const array g = clip > 0 ? gradients[i] * shrink : gradients[i];
      auto& [m, v] = state.try_emplace(names[i], zeros_like(w), zeros_like(w)).first->second;
      m = beta1 * m + (1 - beta1) * g;
      v = beta2 * v + (1 - beta2) * g * g;
      const array update = (m / correct1) / (sqrt(v / correct2) + eps);
      w = w - lr * (w.ndim() > 1 ? update + decay * w : update);
      changed.insert(changed.end(), {w, m, v});
    }
    eval(changed);  // here the whole step is computed, forward and backward
  }
};

// Trains all weights, or only the LoRA's where there is one. `save` is called at each validation.
void train(Model& model, std::vector<Row> rows, const std::vector<Row>& val_rows,
           const Flags& flags, bool tune, const std::function<void()>& save) {
  const bool lora = model.lora_scale != 0;
  std::vector<std::string> names;
  for (const auto& [name, value] : model.weights)
    if (is_lora(name) == lora) names.push_back(name);
  std::vector<int> positions(names.size());
  std::iota(positions.begin(), positions.end(), 0);
  const int iters = flags.number("iters", 1000, 1), log_every = flags.number("log-every", 10, 1);
  const int eval_every = flags.number("eval-every", 100, 1);
  const auto batch_size = static_cast<size_t>(flags.number("batch-size", 16, 1));
  const bool shuffle = flags.word("shuffle", "on|off") == "on";
  const std::string balance = flags.word("aux-loss", "per-layer|hf|off");
  const float coef = flags.number("aux-coef", model.config.aux_coef);
  AdamW optimizer{flags.number("beta1", 0.9f), flags.number("beta2", 0.99f),
                  flags.number("adam-eps", 1e-8f), flags.number("weight-decay", tune ? 0 : 0.1f),
                  flags.number("grad-clip", 1.0f)};
  // Wider models take smaller steps, and all weights of a trained model smaller ones still. The
  // rate rises in a straight line over the warm-up, then falls to a tenth along half a cosine.
  const float usual = 1.2e-3f * std::sqrt(128.0f / static_cast<float>(model.config.hidden_size));
  const float lr = flags.number("lr", tune && !lora ? usual / 10 : usual);
  const bool cosine = flags.word("schedule", "cosine|constant") == "cosine";
  const int warmup = flags.number("warmup", std::min(100, iters / 10));
  auto rate = [&](int step) {
    if (step <= warmup) return lr * static_cast<float>(step) / static_cast<float>(warmup);
    const float part = static_cast<float>(step - warmup) / static_cast<float>(iters - warmup);
    return cosine ? lr / 10 + 0.45f * lr * (1 + std::cos(std::acos(-1.0f) * part)) : lr;
  };
  fs::create_directories(flags.text("out"));
  std::ofstream metrics(fs::path(flags.text("out")) / "metrics.jsonl");
  std::mt19937 engine(flags.number("seed", 1u));
  size_t next = 0;
  for (int step = 1; step <= iters; ++step) {
    const auto start = std::chrono::steady_clock::now();
    if (next == 0 && shuffle) std::ranges::shuffle(rows, engine);
    const size_t count = std::min(batch_size, rows.size() - next);
    const auto batch = make_batch(std::span(rows).subspan(next, count));
    next = (next + count) % rows.size();
    // The losses as a function of the trained weights; gradients are of the first one.
    auto objective = [&](const std::vector<array>& values) {
      Model with = model;
      for (size_t i = 0; i < names.size(); ++i) with.weights.at(names[i]) = values[i];
      return losses(with, batch, balance, coef);
    };
    std::vector<array> values;
    for (const std::string& name : names) values.push_back(model.weights.at(name));
    auto [result, gradients] = value_and_grad(objective, positions)(values);
    optimizer.step(model, names, gradients, rate(step));
    const float loss = result[0].item<float>();
    require(std::isfinite(loss), "the loss is not finite; try a lower --lr");
    const bool validate = step % eval_every == 0 || step == iters;
    if (step % log_every != 0 && !validate) continue;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    Json line = {{"step", step}, {"train_loss", loss}, {"cross_entropy", result[1].item<float>()}};
    line["aux_loss"] = result[2].item<float>(), line["lr"] = rate(step);
    line["tok_per_s"] = std::round(static_cast<double>(batch.first.size()) / seconds.count());
    if (validate && !val_rows.empty()) line["val_loss"] = evaluate(model, val_rows, batch_size);
    if (validate) save();
    metrics << line.dump() << std::endl;
    std::cerr << line.dump() << std::endl;
  }
}

// --------------------------------------------------------------------------------- 8 generation

struct Choice {
  int id;
  float logprob;
};

// The five likeliest tokens; of equals the lower ids.
std::vector<Choice> ranked(const array& logits) {
  array ids = argsort(-logits), logprobs = take(logits - logsumexp(logits), ids);
  eval(ids, logprobs);
  std::vector<Choice> best;
  for (size_t i = 0; i < std::min<size_t>(5, ids.size()); ++i)
    best.push_back({static_cast<int>(ids.data<uint32_t>()[i]), logprobs.data<float>()[i]});
  return best;
}

// One token: drawn, where temperature below 1 sharpens the distribution; at 0 the likeliest.
Choice sample(const array& logits, float temperature) {
  array drawn = temperature > 0 ? random::categorical(logits * (1 / temperature)) : argmax(logits);
  const int id = static_cast<int>(drawn.item<uint32_t>());
  return {id, take(logits - logsumexp(logits), id).item<float>()};
}

// The logits at every token of a prompt, whose tokens come after those of the cache. [T, V]
array generate_raw(const Model& model, const std::vector<int>& ids, KvCache* cache = nullptr) {
  const array row(ids.data(), {1, static_cast<int>(ids.size())});
  return squeeze(model.head(model.hidden(row, cache)), 0);
}

// What follows is told by the last token's. [V]
array next_logits(const Model& model, const std::vector<int>& ids, KvCache* cache = nullptr) {
  return take(generate_raw(model, ids, cache), static_cast<int>(ids.size()) - 1, 0);
}

Choice generate_one_token(const Model& model, const std::vector<int>& ids, float temperature) {
  return sample(next_logits(model, ids), temperature);
}

// The likeliest token, with the next best behind it.
std::vector<Choice> just_generate_one_god_damn_token(const Model& m, const std::vector<int>& ids) {
  return ranked(next_logits(m, ids));
}

// Continues a prompt: reads it at once, then feeds each new token back. Stops at an end token.
std::vector<Choice> generate(const Model& model, std::vector<int> ids, int max_tokens,
                             float temperature, const std::function<void(int)>& on_token) {
  KvCache cache;
  std::vector<Choice> tokens;
  while (std::ssize(tokens) < max_tokens) {
    const Choice token = sample(next_logits(model, ids, &cache), temperature);
    if (model.config.ends(token.id)) break;
    tokens.push_back(token);
    on_token(token.id);
    ids = {token.id};
  }
  return tokens;
}

// What a training run ends with: a sample, streamed.
void generate_after_training(const Model& model, const Tokenizer& tokenizer,
                             const std::string& prompt, int max_tokens) {
  std::cout << prompt;
  generate(model, tokenizer.encode(prompt), max_tokens, 0.8f,
           [&](int id) { std::cout << tokenizer.text(id) << std::flush; });
  std::cout << std::endl;
}

// -------------------------------------------------------------------------------- 9 the commands

void run_training(const Flags& flags, bool tune) {
  const fs::path out = flags.text("out"), data = flags.text("data");
  const std::string base = tune ? flags.text("model") : flags.text("init", "");
  const std::string shape = base.empty() ? flags.text("model", "tiny") : base;
  const Tokenizer tokenizer(flags.text("tokenizer", shape == "tiny" ? "bytes" : shape));
  Config config{shape == "tiny" ? Json::parse(kTiny) : read_json(fs::path(shape) / "config.json")};
  if (tokenizer.size > 0) {
    config.json["vocab_size"] = config.vocab_size = tokenizer.size;
    config.json["bos_token_id"] = tokenizer.bos < 0 ? Json() : Json(tokenizer.bos);
    config.json["eos_token_id"] = tokenizer.eos < 0 ? Json() : Json(tokenizer.eos);
  }
  config.check(shape);
  Model model = base.empty() ? new_model(config) : load_model(base);
  const bool lora = tune && flags.word("method", "lora|full") == "lora";
  Json adapter = {
      {"peft_type", "LORA"}, {"task_type", "CAUSAL_LM"}, {"base_model_name_or_path", base}};
  adapter["r"] = flags.number("rank", 8, 1), adapter["lora_alpha"] = flags.number("alpha", 16.0f);
  adapter["use_rslora"] = flags.word("rslora", "off|on") == "on";
  std::istringstream targets(flags.text("targets", "q_proj,v_proj,gate"));
  for (std::string target; std::getline(targets, target, ',');)
    adapter["target_modules"].push_back(target);
  if (lora && flags.has("adapter")) adapter = load_adapter(model, flags.text("adapter"));
  if (lora && !flags.has("adapter")) attach(model, adapter);
  const bool windows =
      flags.word("rows", tune ? "records|windows" : "windows|records") == "windows";
  const int context = flags.number("context", std::min(256, model.config.max_positions), 1);
  auto read = [&](const fs::path& file) {
    return read_rows(file, tokenizer, model.config.vocab_size, context, windows);
  };
  const bool splits = fs::is_directory(data), validates = splits && fs::exists(data / "val.jsonl");
  const auto validation = validates ? read(data / "val.jsonl") : std::vector<Row>();
  train(model, read(splits ? data / "train.jsonl" : data), validation, flags, tune, [&] {
    if (lora) save_adapter(model, adapter, out);
    if (!lora) save_model(model, out);
    tokenizer.save(out);
  });
  if (flags.has("sample-prompt"))
    generate_after_training(model, tokenizer, flags.text("sample-prompt"), 200);
}

void run_generate(const Flags& flags) {
  Model model = load_model(flags.text("model"));
  if (flags.has("adapter")) load_adapter(model, flags.text("adapter"));
  const Tokenizer tokenizer(flags.text("tokenizer", flags.text("model")));
  const std::string prompt = flags.text("prompt", "");
  std::vector<int> ids = Json::parse("[" + flags.text("ids", "") + "]");
  if (ids.empty()) ids = tokenizer.encode(prompt);
  auto known = [&](int id) { return id >= 0 && id < model.config.vocab_size; };
  require(!ids.empty() && std::ranges::all_of(ids, known),
          "give --prompt, or --ids of tokens that the vocabulary has");
  const float temperature = flags.number("temp", 0.8f);
  const int max_tokens = flags.number("max-tokens", 256);
  // A token for people to read: its text, quoted, with odd characters escaped.
  auto label = [&](int id) {
    const Json text = tokenizer.text(id);
    return std::to_string(id) + " " + text.dump(-1, ' ', true, Json::error_handler_t::replace);
  };
  auto show = [&](const Choice& c) {
    std::cout << "  " << label(c.id) << "  log-probability " << c.logprob << ", probability "
              << std::exp(c.logprob) << '\n';
  };
  const std::string method =
      flags.word("method",
                 "generate|generate_raw|generate_one_token|just_generate_one_god_damn_token|"
                 "generate_after_training");
  if (method == "generate") {
    std::cout << prompt;
    const auto tokens = generate(model, ids, max_tokens, temperature, [&](int id) {
      std::cout << tokenizer.text(id) << std::flush;
      ids.push_back(id);
    });
    for (size_t i = 0; i < ids.size() && tokenizer.size == 0; ++i)
      std::cout << (i > 0 ? "," : "") << ids[i];
    std::cout << '\n';
    if (flags.word("logprobs", "off|on") == "on") std::ranges::for_each(tokens, show);
  } else if (method == "generate_raw") {
    const array logits = generate_raw(model, ids);
    if (flags.has("out")) save_safetensors(flags.text("out"), {{"logits", logits}}, kMetadata);
    for (int i = 0; i < logits.shape(0) && !flags.has("out"); ++i) {
      std::cout << "after " << label(ids[static_cast<size_t>(i)]) << ":\n";
      std::ranges::for_each(ranked(take(logits, i, 0)), show);
    }
  } else if (method == "generate_one_token") {
    show(generate_one_token(model, ids, temperature));
  } else if (method == "just_generate_one_god_damn_token") {
    std::cout << "prompt:";
    for (const int id : ids) std::cout << "  " << label(id);
    std::cout << "\nthe next token, and the next best:\n";
    std::ranges::for_each(just_generate_one_god_damn_token(model, ids), show);
  } else {
    generate_after_training(model, tokenizer, prompt, max_tokens);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string command = argc > 1 ? argv[1] : "--help";
    if (command == "--help" || std::string(argv[argc - 1]) == "--help")
      return (std::cout << kUsage) ? 0 : 1;
    const Flags flags(argc, argv);
    if (flags.has("device"))
      set_default_device(flags.word("device", "cpu|gpu") == "cpu" ? Device::cpu : Device::gpu);
    random::seed(flags.number("seed", uint64_t{1}));
    const bool generating = command == "generate", tune = command == "finetune";
    if (!generating && !tune && command != "pretrain")
      throw UsageError(command + ": expected pretrain, finetune or generate; see --help");
    generating ? run_generate(flags) : run_training(flags, tune);
  } catch (const std::exception& error) {
    std::cerr << "one_file: " << error.what() << '\n';
    return dynamic_cast<const UsageError*>(&error) ? 2 : 1;
  }
}
