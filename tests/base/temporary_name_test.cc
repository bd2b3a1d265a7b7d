#include "base/temporary_name.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

TEST(TemporaryNames, AreOfAFormThatNoUserChooses) {
  const std::string name = temporary_name("model.safetensors");
  EXPECT_TRUE(is_temporary_name(name)) << name;
  EXPECT_NE(name, temporary_name("model.safetensors"));
  EXPECT_LE(temporary_name(std::string(255, 'n')).size(), 255u);
  for (const std::string other :
       {"thesis.tmp-final.txt", ".tmp-step-00000001", "x.tmp-123", ".x.mixtral-tmp-", "",
        "x.mixtral-tmp-0123456789abcdef", ".x.mixtral-tmp-0123456789ABCDEF",
        ".x.mixtral-tmp-0123456789abcdef.txt"})
    EXPECT_FALSE(is_temporary_name(other)) << other;
}

TEST(TemporaryNames, RemovingThemTouchesNothingElseAndFollowsNoLink) {
  const TemporaryDirectory scratch;
  const fs::path directory = scratch.path() / "run", other = scratch.path() / "other";
  fs::create_directories(directory);
  fs::create_directories(other);
  write_file(other / "precious.txt", "mine");
  write_file(directory / "thesis.tmp-final.txt", "mine");
  write_file(directory / ".config.yaml.tmp-1234", "mine");
  const fs::path half = directory / temporary_name("half"), link = directory / temporary_name("l");
  fs::create_directories(half / "inner");
  fs::create_directory_symlink(other, half / "link");
  fs::create_directory_symlink(other, link);
  EXPECT_THAT(remove_temporaries(directory), ::testing::UnorderedElementsAre(half, link));
  EXPECT_TRUE(fs::exists(other / "precious.txt"));
  EXPECT_TRUE(fs::exists(directory / "thesis.tmp-final.txt"));
  EXPECT_TRUE(fs::exists(directory / ".config.yaml.tmp-1234"));
  EXPECT_FALSE(fs::exists(fs::symlink_status(half)));
  EXPECT_FALSE(fs::exists(fs::symlink_status(link)));
}

}  // namespace
}  // namespace mixtral
