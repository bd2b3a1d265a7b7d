#include "cpu/instruction_sets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "backends/registry.h"
#include "base/error.h"
#include "cpu/integer_matmul.h"
#include "cpu/matmul_kernels.h"

namespace mixtral {
namespace {

TEST(InstructionSets, RefusesThoseThatAreNotHereAndNamesTheOthers) {
  for (const char* name : {"cpu:", "cpu:sse2", "cpu:AVX2", "cpu:avx1024"}) {
    try {
      make_backend(name, 1);
      FAIL() << name;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(name));
      for (const std::string_view set : cpu::instruction_sets())
        EXPECT_THAT(error.what(), testing::HasSubstr("cpu:" + std::string(set)));
    }
  }
  EXPECT_TRUE(cpu::may_use_extensions());
}

// The last test, because a limit stays for the process. From the newest set to the oldest.
TEST(InstructionSets, UsesNothingNewer) {
  const auto sets = cpu::instruction_sets();
  ASSERT_FALSE(sets.empty()) << "kernels are compiled for no instruction set of this processor";
  for (size_t i = sets.size(); i-- > 0;) {
    const auto backend = make_backend("cpu:" + std::string(sets[i]), 1);
    EXPECT_EQ(backend->name(), "cpu");
    EXPECT_EQ(cpu::instruction_sets().size(), i + 1);
    EXPECT_EQ(cpu::bf16_kernels(), nullptr);
    ASSERT_NE(cpu::integer_kernels(), nullptr);
    const std::string_view kernels = cpu::integer_kernels()->name;
    EXPECT_EQ(kernels, sets[i] == "avx2" ? "AVX2" : sets[i] == "avx512" ? "AVX-512" : "NEON");
  }
  EXPECT_FALSE(cpu::may_use_extensions());
}

}  // namespace
}  // namespace mixtral
