#include "model/tensor_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "io/model_tensors.h"
#include "io/safetensors_writer.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

TEST(TensorNames, EveryTensorHasANameThatIsFoundAgain) {
  const ModelConfig config = testing::uneven_config();
  std::set<std::string> names;
  for_each_tensor(config, [&](const TensorId& id) {
    const std::string name = tensor_name(id);
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_EQ(parse_tensor_name(name), id) << name;
  });
  EXPECT_EQ(names.size(), 3u + 2 * (7 + 3 * 3));
  EXPECT_TRUE(names.contains("model.layers.1.block_sparse_moe.experts.2.w3.weight"));
}

TEST(TensorNames, OtherNamesAreNotTaken) {
  for (const char* name :
       {"", "model", "model.embed_tokens.weight2", "model.layers..input_layernorm.weight",
        "model.layers.-1.input_layernorm.weight", "model.layers.01.input_layernorm.weight",
        "model.layers.1.input_layernorm.bias", "model.layers.x.input_layernorm.weight",
        "model.layers.99999999999999999999.input_layernorm.weight",
        "model.layers.1.block_sparse_moe.experts.w1.weight",
        "model.layers.1.block_sparse_moe.experts.0.w4.weight", "lm_head.weight."})
    EXPECT_EQ(parse_tensor_name(name), std::nullopt) << name;
}

TEST(TensorNames, NoSchemeNamesAKindTwice) {
  for (const NamingScheme& scheme : naming_schemes()) {
    std::set<TensorKind> kinds;
    for (const TensorNaming& row : scheme.rows) {
      EXPECT_TRUE(kinds.insert(row.kind).second) << scheme.name << ": " << row.name;
      const bool expert =
          row.kind == TensorKind::w1 || row.kind == TensorKind::w2 || row.kind == TensorKind::w3;
      EXPECT_EQ(row.name.find("{expert}") != std::string_view::npos,
                expert && !row.all_experts && !row.lone_expert)
          << row.name;
    }
  }
}

// A matrix of expert 1 or of a layer, stored in every way that a row of the table can say.
TEST(TensorNames, ReadsEveryPackingInTheModelsOrder) {
  const ModelConfig config = testing::uneven_config();  // h = 4, D = 8, F = 6, E = 3
  struct Case {
    TensorKind kind;
    bool all_experts;
    int part, parts;
    bool transposed;
    TensorNaming::RowOrder order = TensorNaming::RowOrder::same;
  };
  const Case cases[] = {
      {TensorKind::w1, false, 0, 1, false},
      {TensorKind::w1, true, 0, 1, false},
      {TensorKind::w3, true, 1, 2, false},
      {TensorKind::w2, true, 0, 1, true},
      {TensorKind::w3, true, 1, 2, true},
      {TensorKind::attention_output, false, 0, 1, true},
      {TensorKind::query, false, 0, 1, false, TensorNaming::RowOrder::interleaved},
      {TensorKind::key, false, 0, 1, false, TensorNaming::RowOrder::interleaved},
  };
  for (const Case& c : cases) {
    const Shape shape = tensor_shape(config, c.kind);
    const int64_t rows = shape[0], columns = shape[1];
    const TensorId id{.kind = c.kind, .layer = 0, .expert = 1};
    TensorPlace place{
        "x",
        {c.kind, "x", c.all_experts, c.part, c.parts, c.transposed, c.order},
        c.transposed ? Shape{columns, c.parts * rows} : Shape{c.parts * rows, columns}};
    if (c.all_experts) place.shape = {config.num_experts, place.shape[0], place.shape[1]};
    std::vector<float> stored(static_cast<size_t>(place.shape.numel()));
    std::iota(stored.begin(), stored.end(), 0.f);
    const TemporaryDirectory directory;
    write_safetensors(directory.path() / "model.safetensors",
                      {{"x", Tensor(stored.data(), place.shape, Dtype::f32)}});
    const ModelTensors source(directory.path());
    std::vector<double> read(static_cast<size_t>(shape.numel()));
    read_tensor(source, place, config, id, Tensor(read.data(), shape, Dtype::f64));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t column = 0; column < columns; ++column) {
        int64_t row = r;
        if (c.order == TensorNaming::RowOrder::interleaved) {
          const int64_t pair = r % 4 % 2, half = r % 4 / 2;  // of a head of four rows
          row = r / 4 * 4 + 2 * pair + half;
        }
        const int64_t all = c.parts * rows, in_part = c.part * rows + row;
        const int64_t group = c.all_experts ? all * columns : 0;
        const int64_t at =
            group + (c.transposed ? column * all + in_part : in_part * columns + column);
        EXPECT_EQ(read[static_cast<size_t>(r * columns + column)], static_cast<double>(at))
            << tensor_name(id) << " row " << r << " column " << column;
      }
    }
  }
}

}  // namespace
}  // namespace mixtral
