#include "open/companions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

TEST(Companions, AreEveryFileThatStaysTrueBesideOtherWeights) {
  const TemporaryDirectory from, to, elsewhere;
  const std::vector<std::string> kept = {"LICENSE.txt",
                                         "added_tokens.json",
                                         "additional_chat_templates/tools.jinja",
                                         "byte_tokenizer.json",
                                         "chat_template.jinja",
                                         "generation_config.json",
                                         "merges.txt",
                                         "special_tokens_map.json",
                                         "tekken.json",
                                         "tokenizer.json",
                                         "tokenizer.model",
                                         "tokenizer.model.v3",
                                         "tokenizer_config.json",
                                         "vocab.json"};
  fs::create_directories(from.path() / "additional_chat_templates");
  for (const std::string& name : kept) write_file(from.path() / name, name);
  fs::remove(from.path() / "tokenizer.json");  // as in the hub's cache
  write_file(elsewhere.path() / "blob", "tokenizer.json");
  fs::create_symlink(elsewhere.path() / "blob", from.path() / "tokenizer.json");
  for (const char* name :
       {"config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json",
        "state.json", "manifest.json", "README.md", "optimizer.safetensors", "pytorch_model.bin"})
    write_file(from.path() / name, "x");
  fs::permissions(from.path() / "vocab.json", fs::perms::owner_read);
  write_file(to.path() / "generation_config.json", "older");
  EXPECT_EQ(copy_companions(from.path(), to.path()), kept);
  for (const std::string& name : kept) {
    EXPECT_FALSE(fs::is_symlink(to.path() / name)) << name;
    EXPECT_EQ(read_file(to.path() / name), name);
  }
  EXPECT_FALSE(fs::exists(to.path() / "config.json"));
  EXPECT_TRUE(is_tokenizer_file("tekken.json"));
  EXPECT_FALSE(is_tokenizer_file("tokenizer_config.json"));
}

}  // namespace
}  // namespace mixtral
