// Streamed experts give the same bits as experts in memory, with a cache of any size. Which experts
// are read depends on which were needed before.
#include "model/expert_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <span>

#include "backends/registry.h"
#include "base/file.h"
#include "infer/engine.h"
#include "infer/inference_plan.h"
#include "model/checkpoint.h"
#include "model/open_tensors.h"
#include "model/stored_formats.h"
#include "model/tensor_names.h"
#include "tests/support/files.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/greedy.h"
#include "tests/support/safetensors_builder.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using nn::ExpertProduct;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// `width` numbers are whole blocks of the formats that a test uses.
ModelConfig streamed_config(int64_t width) {
  ModelConfig config;
  config.vocab_size = 40;
  config.hidden_size = config.intermediate_size = width;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = width / 4;
  config.num_experts = 4;
  config.experts_per_token = 2;
  config.max_positions = 128;
  config.rope_theta = 1e4;
  return config;
}

/// All of a tensor's numbers, of experts one after another.
std::vector<float> values_of(const ModelConfig& c, const testing::Weights& weights,
                             const TensorId& id) {
  if (id.expert < 0) return weights.at(tensor_name(id));
  std::vector<float> values;
  for (int64_t e = 0; e < c.num_experts; ++e) {
    const auto& one = weights.at(tensor_name({id.kind, id.layer, e}));
    values.insert(values.end(), one.begin(), one.end());
  }
  return values;
}

/// The model's numbers as a GGUF file, its matrices in `format`, its down projections in `down`.
void write_gguf(const fs::path& path, const ModelConfig& c, const testing::Weights& weights,
                std::string_view format, std::string_view down) {
  testing::GgufBuilder b;
  const auto number = [](int64_t value) { return static_cast<uint32_t>(value); };
  b.key("general.architecture", "llama");
  b.key("llama.block_count", number(c.num_layers));
  b.key("llama.context_length", number(c.max_positions));
  b.key("llama.embedding_length", number(c.hidden_size));
  b.key("llama.feed_forward_length", number(c.intermediate_size));
  b.key("llama.attention.head_count", number(c.num_heads));
  b.key("llama.attention.head_count_kv", number(c.num_kv_heads));
  b.key("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  b.key("llama.rope.freq_base", 1e4f);
  b.key("llama.expert_count", number(c.num_experts));
  b.key("llama.expert_used_count", number(c.experts_per_token));
  const NamingScheme& names = *find_naming_scheme("GGUF");
  for_each_tensor(c, [&](const TensorId& id) {
    if (id.expert > 0) return;  // all experts are one tensor
    const Shape shape = tensor_shape(c, id.kind);
    std::vector<uint64_t> dims;
    if (id.expert == 0) dims.push_back(static_cast<uint64_t>(c.num_experts));
    for (int i = 0; i < shape.rank(); ++i) dims.push_back(static_cast<uint64_t>(shape[i]));
    const std::vector<float> values = values_of(c, weights, id);
    const std::string name = tensor_name(names, id);
    const bool plain = shape.rank() == 1 || id.kind == TensorKind::router || format == "f32";
    if (plain) {
      b.tensor(name, dims, values);
      return;
    }
    const auto packed = *ops::find_weight_format(id.kind == TensorKind::w2 ? down : format);
    std::string bytes(static_cast<size_t>(packed.row_bytes(static_cast<int64_t>(values.size()))),
                      '\0');
    const auto pack = packed == ops::WeightFormat::q4_k   ? ops::pack_q4_k
                      : packed == ops::WeightFormat::q6_k ? ops::pack_q6_k
                                                          : packed.row().pack;
    pack(values, {.codes = bytes.data()});
    b.tensor(name, dims, find_gguf_type(packed.name())->number, bytes);
  });
  b.write(path);
}

/// The model's numbers as an MLX directory, its matrices in a format with groups of 32.
void write_mlx(const fs::path& path, const ModelConfig& c, const testing::Weights& weights,
               std::string_view format) {
  const ops::WeightFormat groups = *ops::find_weight_format(format);
  const NamingScheme& names = *find_naming_scheme("mlx-lm");
  testing::SafetensorsBuilder builder;
  for_each_tensor(c, [&](const TensorId& id) {
    if (id.expert > 0) return;  // all experts are one tensor
    const Shape shape = tensor_shape(c, id.kind);
    const std::string name = id.expert < 0 ? tensor_name(id) : tensor_name(names, id);
    const std::vector<float> values = values_of(c, weights, id);
    std::vector<int64_t> dims;
    if (id.expert == 0) dims.push_back(c.num_experts);
    for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
    if (shape.rank() == 1) {
      builder.add(name, "F32", dims, values);
      return;
    }
    const int64_t columns = dims.back();
    const auto rows = values.size() / static_cast<size_t>(columns);
    const auto of_row = [&](int64_t count) { return static_cast<size_t>(count); };
    const size_t width = of_row(groups.codes(columns)), count = of_row(groups.scales(columns));
    std::vector<uint8_t> codes(rows * width);
    std::vector<uint16_t> scales(rows * count), biases(scales.size());
    for (size_t row = 0; row < rows; ++row)
      groups.row().pack(std::span(values).subspan(row * of_row(columns), of_row(columns)),
                        {.codes = codes.data() + row * width,
                         .scales = scales.data() + row * count,
                         .minima = biases.data() + row * count});
    const std::string module = name.substr(0, name.size() - std::string_view(".weight").size());
    dims.back() = static_cast<int64_t>(width / 4);
    builder.add(name, "U32", dims, codes);
    dims.back() = static_cast<int64_t>(count);
    builder.add(module + ".scales", "F16", dims, scales);
    builder.add(module + ".biases", "F16", dims, biases);
  });
  fs::create_directories(path);
  builder.write(path / "model.safetensors");
  std::string config = c.to_json();
  config.insert(config.find('{') + 1, R"("quantization": {"group_size": 32, "bits": )" +
                                          std::to_string(groups.row().bits) + "},");
  write_file(path / "config.json", config);
}

/// What a model's files are kept as, and how they are opened.
struct Case {
  std::string name;
  // Of a GGUF file; "int...": of an MLX directory; off: safetensors in f32.
  std::string format = "off";
  std::string down = format;
  Dtype weights = Dtype::f32;

  int64_t width() const { return format.ends_with("_k") ? 256 : 64; }
  bool in_groups() const { return format.starts_with("int"); }
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

class ExpertCacheTest : public ::testing::Test {
 protected:
  void write(const Case& c) {
    const ModelConfig config = config_ = streamed_config(c.width());
    const auto weights = testing::draw_model(config, 7);
    if (c.format == "off")
      testing::write_mixtral(scratch_.path(), config, weights);
    else if (c.in_groups())
      write_mlx(file(c), config, weights, c.format);
    else
      write_gguf(file(c), config, weights, c.format, c.down);
    tensors_ = open_tensors(*find_model_files(c.format == "off" ? scratch_.path() : file(c)));
    options_ = {.weights = c.weights, .operands = ops::Operands::as_weight};
    if (c.format != "off")
      options_.formats = stored_formats(*tensors_, config, [](ops::WeightFormat) { return true; });
  }
  fs::path file(const Case& c) const {
    if (c.in_groups()) return scratch_.path() / "mlx";
    return scratch_.path() / (c.format == "off" ? "model.safetensors" : "model.gguf");
  }

  std::unique_ptr<Mixtral> open(bool streamed) {
    Mixtral::Options options = options_;
    options.stream_experts = streamed;
    auto model = std::make_unique<Mixtral>(*backend_, config_, options);
    load_weights(*backend_, *model, *tensors_);
    return model;
  }
  /// Memory for so many experts of each layer.
  static int64_t memory_for(Mixtral& model, int64_t experts) {
    return experts * expert_sizes(model).least_bytes();
  }

  /// Three prompts, one of them longer than a step reads, continued together.
  testing::Greedy run(const Mixtral& model) {
    Engine engine(*backend_, model,
                  {.context = 100, .sequences = 3, .chunk = 16, .share_pages = false});
    testing::Greedy result = testing::continue_prompts(engine, {3, 50, 1});
    return result;
  }

  /// A pass over a layer that needs these experts. Returns the order in which they came.
  static std::vector<int32_t> pass(ExpertCache& cache, int64_t layer,
                                   const std::vector<int32_t>& experts) {
    cache.need(layer, experts);
    for (const auto product : {ExpertProduct::gate_up, ExpertProduct::down})
      for (const int32_t expert : cache.order(layer, product)) {
        (void)cache.hold(layer, product, expert);
        cache.give_back(layer, product, expert);
      }
    return cache.order(layer, ExpertProduct::gate_up);
  }

  const TemporaryDirectory scratch_;
  const std::unique_ptr<Backend> backend_ = make_backend("cpu", 2);
  std::unique_ptr<TensorSource> tensors_;
  ModelConfig config_;
  Mixtral::Options options_;
};

class StreamedExpertsTest : public ExpertCacheTest, public ::testing::WithParamInterface<Case> {};

TEST_P(StreamedExpertsTest, GiveTheBitsOfAModelInMemory) {
  write(GetParam());
  const testing::Greedy whole = run(*open(false));
  ASSERT_EQ(whole.ids[1].size(), 20u);
  ASSERT_EQ(whole.logits.size(), 50u * 40u);
  for (const int64_t places : {1, 2, 3, 4})
    for (const bool read_ahead : {false, true}) {
      const auto model = open(true);
      ExpertCache cache(*backend_, *model, *tensors_,
                        {.memory = memory_for(*model, places),
                         .readers = places == 3 ? 1 : 3,
                         .read_ahead = read_ahead});
      EXPECT_EQ(cache.places(), 3 * places);
      EXPECT_EQ(run(*model), whole) << places << " places, read ahead: " << read_ahead;
      const auto figures = cache.figures();
      EXPECT_GT(figures.needed, 0);
      EXPECT_GT(figures.expected, 0);
      const int64_t all = int64_t{3} * 4 * 2;  // read once where there is room
      EXPECT_LE(figures.read, places == 4 ? all : 10'000);
      EXPECT_GT(figures.read, places == 1 ? figures.needed / 4 : 0);
    }
}

INSTANTIATE_TEST_SUITE_P(Files, StreamedExpertsTest,
                         ::testing::Values(Case{"f32"}, Case{"bf16", "off", "off", Dtype::bf16},
                                           Case{"q4_0", "q4_0"}, Case{"q8_0", "q8_0"},
                                           Case{"int4", "int4_g32_f16"},
                                           Case{"int8", "int8_g32_f16"},
                                           Case{"q4_k_with_q6_k", "q4_k", "q6_k"}),
                         [](const auto& one) { return one.param.name; });

TEST_F(ExpertCacheTest, CountsWhatAScriptOfPassesFinds) {
  write({"q4_0", "q4_0"});
  const auto model = open(true);
  ExpertCache cache(*backend_, *model, *tensors_,
                    {.memory = memory_for(*model, 2), .read_ahead = false});
  const auto found_by = [&](int64_t layer, const std::vector<int32_t>& experts) {
    const auto before = cache.figures();
    pass(cache, layer, experts);
    const auto now = cache.figures() - before;
    EXPECT_EQ(now.needed, 2 * static_cast<int64_t>(experts.size()));
    EXPECT_EQ(now.read, now.needed - now.found);
    return now.found / 2;  // products
  };
  EXPECT_EQ(found_by(0, {0, 1}), 0);
  EXPECT_EQ(found_by(0, {0, 1}), 2);
  EXPECT_EQ(found_by(1, {0, 1}), 0);  // another layer
  EXPECT_EQ(found_by(0, {1, 2}), 1);
  EXPECT_EQ(found_by(0, {0}), 0);  // went for 2; 1 goes
  EXPECT_EQ(found_by(0, {0, 2}), 2);
  EXPECT_EQ(found_by(0, {3}), 0);  // 0 goes, which was used before 2
  EXPECT_EQ(found_by(0, {0}), 0);  // 2 goes
  EXPECT_EQ(found_by(0, {3}), 1);
  EXPECT_EQ(found_by(1, {0, 1}), 2);
  EXPECT_EQ(found_by(0, {}), 0);
  // Of more experts than there are places, those in memory come first, and each is read once.
  EXPECT_EQ(found_by(0, {0, 1, 2, 3}), 2);
  const auto total = cache.figures();
  EXPECT_EQ(total.bytes_read, total.read / 2 * 3 * 64 * 64 / 32 * 18);
}

TEST_F(ExpertCacheTest, ComesToThoseInMemoryFirst) {
  write({"q4_0", "q4_0"});
  const auto model = open(true);
  ExpertCache cache(*backend_, *model, *tensors_,
                    {.memory = memory_for(*model, 2), .read_ahead = false});
  EXPECT_THAT(pass(cache, 2, {1, 3}), ElementsAre(1, 3));
  EXPECT_THAT(pass(cache, 2, {0, 1, 2, 3}), ElementsAre(1, 3, 0, 2));
}

TEST_F(ExpertCacheTest, ReadsWhatIsExpectedBeforeItIsNeeded) {
  write({"q4_0", "q4_0"});
  const auto model = open(true);
  ExpertCache cache(*backend_, *model, *tensors_, {.memory = memory_for(*model, 2)});
  const std::vector<int32_t> guess{3, 1};
  cache.expect(1, guess);
  pass(cache, 1, {1, 3});
  EXPECT_EQ(cache.figures().found, 0);
  EXPECT_EQ(cache.figures().foretold, 4);
  EXPECT_EQ(cache.figures().right, 4);
  pass(cache, 1, {1, 3});
  EXPECT_EQ(cache.figures().found, 4);
  EXPECT_EQ(cache.figures().repeated, 4);
  const std::vector<int32_t> wrong{0, 2};
  cache.expect(1, wrong);
  pass(cache, 1, {3});
  EXPECT_EQ(cache.figures().expected, 8);
  EXPECT_EQ(cache.figures().right, 4);
}

TEST_F(ExpertCacheTest, HoldsTheWeightsOfTheFile) {
  write({"q4_k_with_q6_k", "q4_k", "q6_k"});
  const auto model = open(true);
  ExpertCache cache(*backend_, *model, *tensors_, {.memory = memory_for(*model, 1)});
  for (int64_t layer = 0; layer < 3; ++layer) {
    cache.need(layer, std::vector<int32_t>{2});
    const auto compare = [&](ExpertProduct product, const std::vector<TensorKind>& kinds) {
      const ops::Weight weight = cache.hold(layer, product, 2).front();
      int64_t row = 0;
      for (const TensorKind kind : kinds) {
        const TensorId id{kind, layer, 2};
        std::vector<float> expected(256 * 256), values(256);
        read_tensor(*tensors_, *find_place(*tensors_, config_, id), config_, id,
                    Tensor(expected.data(), {256, 256}, Dtype::f32));
        for (size_t r = 0; r < 256; ++r, ++row) {
          ops::unpack_row(weight, row, values);
          ASSERT_TRUE(std::ranges::equal(values, std::span(expected).subspan(r * 256, 256))) << row;
        }
      }
      cache.give_back(layer, product, 2);
    };
    compare(ExpertProduct::gate_up, {TensorKind::w1, TensorKind::w3});
    compare(ExpertProduct::down, {TensorKind::w2});
  }
}

TEST_F(ExpertCacheTest, FailsWithoutACrashWhereAFileChangesUnderWay) {
  for (const Case& c : {Case{"q4_0", "q4_0"}, Case{"f32"}}) {
    write(c);
    const auto model = open(true);
    ExpertCache cache(*backend_, *model, *tensors_, {.memory = memory_for(*model, 1)});
    fs::resize_file(file(c), fs::file_size(file(c)) / 4);
    Engine engine(*backend_, *model, {.context = 20});
    const auto attempt = [&] {
      const RequestId id = engine.submit({.prompt = {1, 2, 3}, .options = {.max_tokens = 3}});
      const std::string message = message_of([&] { engine.run(); });
      engine.cancel(id);
      return message;
    };
    EXPECT_THAT(attempt(), HasSubstr(file(c).filename().string() + " was changed")) << c.name;
    EXPECT_THAT(attempt(), HasSubstr(" was changed")) << c.name;  // and again
    tensors_.reset();
  }
}

TEST_F(ExpertCacheTest, NamesATensorThatIsNotFinite) {
  const Case c{"q4_0", "q4_0"};
  write(c);
  const auto place = *tensors_->file_place("blk.1.ffn_down_exps.weight");
  tensors_.reset();
  std::string bytes = read_file(file(c));
  const size_t expert = 64 * 64 / 32 * 18, at = place.begin + 3 * expert + 18 * 5;
  bytes[at] = 0;
  bytes[at + 1] = 0x7c;  // infinity
  write_file(file(c), bytes);
  tensors_ = open_tensors(*find_model_files(file(c)));
  EXPECT_THAT(message_of([&] { open(false); }), HasSubstr("blk.1.ffn_down_exps.weight"));
  const auto model = open(true);
  ExpertCache cache(*backend_, *model, *tensors_, {.memory = memory_for(*model, 2)});
  pass(cache, 1, {0, 2});
  EXPECT_THAT(message_of([&] { pass(cache, 1, {2, 3}); }),
              HasSubstr("tensor \"blk.1.ffn_down_exps.weight\" has a NaN or an infinity"));
  pass(cache, 1, {0, 1});  // others are as good as before
}

TEST_F(ExpertCacheTest, MayEndWhileReadsAreUnderWay) {
  write({"q4_0", "q4_0"});
  const auto model = open(true);
  for (int i = 0; i < 20; ++i) {
    ExpertCache cache(*backend_, *model, *tensors_, {.memory = memory_for(*model, 2)});
    cache.need(0, std::vector<int32_t>{0, 1, 2, 3});
    cache.expect(1, std::vector<int32_t>{0, 1});
    if (i % 2 == 0) (void)cache.hold(0, ExpertProduct::gate_up, 0);
  }
}

TEST_F(ExpertCacheTest, ARequestMayBeCancelledBetweenSteps) {
  write({"q4_0", "q4_0"});
  const testing::Greedy whole = run(*open(false));
  const auto model = open(true);
  ExpertCache cache(*backend_, *model, *tensors_, {.memory = memory_for(*model, 1)});
  {
    Engine engine(*backend_, *model, {.context = 40});
    const RequestId id = engine.submit({.prompt = {1, 2, 3}, .options = {.max_tokens = 30}});
    for (int i = 0; i < 3; ++i) engine.step();
    engine.cancel(id);
  }
  EXPECT_EQ(run(*model), whole);
}

TEST_F(ExpertCacheTest, SaysWhatItCannotRead) {
  write({"q4_0", "q4_0"});
  auto model = open(true);
  EXPECT_EQ(why_not_streamed(*model, *tensors_), "");
  EXPECT_THAT(message_of([&] {
                ExpertCache(*backend_, *model, *tensors_, {.memory = memory_for(*model, 1) - 1});
              }),
              HasSubstr("one of the 4 experts of each layer"));
  options_.formats.clear();  // the q4_0 experts as f32
  model = open(true);
  EXPECT_THAT(why_not_streamed(*model, *tensors_),
              HasSubstr("is kept as Q4_0 and would have to be converted to f32"));
}

TEST_F(ExpertCacheTest, IsPlannedWithTheExpertsThatAreInMemory) {
  write({"q4_0", "q4_0"});
  const auto planner = make_planning_backend(backend_.get());
  InferenceShape shape{.config = config_, .options = options_, .context = 64};
  const MemoryPlan whole = plan_inference(*planner, shape);
  shape.options.stream_experts = true;
  const auto model = open(true);
  const ExpertSizes sizes = expert_sizes(*model);
  shape.expert_memory = memory_for(*model, 2);
  const MemoryPlan plan = plan_inference(*planner, shape);
  EXPECT_EQ(plan.bytes_of("experts in memory"),
            2 * sizes.least_bytes() + ExpertCache::staging_bytes());
  EXPECT_EQ(plan.bytes_of("weights") + sizes.all_bytes(), whole.bytes_of("weights"));
}

}  // namespace
}  // namespace mixtral
