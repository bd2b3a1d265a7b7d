#include "io/gguf_types.h"

#include <algorithm>
#include <cctype>

namespace mixtral {
namespace {

constexpr GgufType kTypes[] = {
    {0, "F32", 1, 4, Dtype::f32},           {1, "F16", 1, 2, Dtype::f16},
    {2, "Q4_0", 32, 18, std::nullopt},      {3, "Q4_1", 32, 20, std::nullopt},
    {6, "Q5_0", 32, 22, std::nullopt},      {7, "Q5_1", 32, 24, std::nullopt},
    {8, "Q8_0", 32, 34, std::nullopt},      {9, "Q8_1", 32, 36, std::nullopt},
    {10, "Q2_K", 256, 84, std::nullopt},    {11, "Q3_K", 256, 110, std::nullopt},
    {12, "Q4_K", 256, 144, std::nullopt},   {13, "Q5_K", 256, 176, std::nullopt},
    {14, "Q6_K", 256, 210, std::nullopt},   {15, "Q8_K", 256, 292, std::nullopt},
    {16, "IQ2_XXS", 256, 66, std::nullopt}, {17, "IQ2_XS", 256, 74, std::nullopt},
    {18, "IQ3_XXS", 256, 98, std::nullopt}, {19, "IQ1_S", 256, 50, std::nullopt},
    {20, "IQ4_NL", 32, 18, std::nullopt},   {21, "IQ3_S", 256, 110, std::nullopt},
    {22, "IQ2_S", 256, 82, std::nullopt},   {23, "IQ4_XS", 256, 136, std::nullopt},
    {24, "I8", 1, 1, std::nullopt},         {25, "I16", 1, 2, std::nullopt},
    {26, "I32", 1, 4, Dtype::i32},          {27, "I64", 1, 8, Dtype::i64},
    {28, "F64", 1, 8, Dtype::f64},          {29, "IQ1_M", 256, 56, std::nullopt},
    {30, "BF16", 1, 2, Dtype::bf16},        {34, "TQ1_0", 256, 54, std::nullopt},
    {35, "TQ2_0", 256, 66, std::nullopt},   {39, "MXFP4", 32, 17, std::nullopt},
};

bool same_letters(std::string_view a, std::string_view b) {
  return std::ranges::equal(
      a, b, {}, [](unsigned char c) { return std::toupper(c); },
      [](unsigned char c) { return std::toupper(c); });
}

}  // namespace

std::span<const GgufType> gguf_types() { return kTypes; }

const GgufType* find_gguf_type(uint32_t number) {
  const auto* type = std::ranges::find(kTypes, number, &GgufType::number);
  return type == std::end(kTypes) ? nullptr : type;
}

const GgufType* find_gguf_type(std::string_view name) {
  const auto* type = std::ranges::find_if(
      kTypes, [&](const GgufType& row) { return same_letters(row.name, name); });
  return type == std::end(kTypes) ? nullptr : type;
}

}  // namespace mixtral
