// merge from the command line on, of what finetune makes.
#include "io/safetensors.h"
#include "model/merge_check.h"
#include "tests/cli/finetune_rig.h"
#include "tests/support/fixtures.h"
#include "text/chat_template.h"

namespace mixtral {
namespace {

class Merge : public Finetune {};

TEST_F(Merge, OtherWeightsThanTheFilesSayAreFound) {
  ASSERT_EQ(run(flags("run", {"--iters", "2", "--targets", "all"})).code, 0);
  ASSERT_EQ(run({"merge", "--model", path("base"), "--adapter", path("run") + ":1.5", "--out",
                 path("merged"), "-q"})
                .code,
            0);
  const fs::path adapter = checkpoint("run", 2);
  EXPECT_LE(check_merged(path("base"), {{adapter, 1.5}}, path("merged")).difference, 1);
  const MergeCheck scaled = check_merged(path("base"), {{adapter, 1}}, path("merged"));
  EXPECT_GT(scaled.difference, 100);
  EXPECT_FALSE(scaled.tensor.empty());
  EXPECT_GT(check_merged(path("base"), {}, path("merged")).difference, 100);
}

TEST_F(Merge, MergedItIsTheSameModel) {
  ASSERT_EQ(run(flags("run", {"--iters", "4", "--targets", "all,lm_head"})).code, 0);
  const Outcome o = run({"merge", "--model", path("base"), "--adapter", path("run"), "--out",
                         path("merged"), "--json"});
  ASSERT_EQ(o.code, 0) << o.err;
  const Json json = Json::parse(o.out, "stdout");
  EXPECT_EQ(json.at("changed").as_int(), 2 * (4 + 1 + 12) + 1);
  EXPECT_LT(json.at("logits_difference").as_double(), 1e-5);
  EXPECT_GT(json.at("rows_checked").as_int(), 4 * 2 * (4 + 1 + 12));
  EXPECT_LE(json.at("rows_difference").as_double(), 1);
  EXPECT_NE(
      run({"merge", "--model", path("base"), "--adapter", path("run"), "--out", path("merged")})
          .err.find("--overwrite"),
      std::string::npos);
  // Half and half of the same adapter is that adapter.
  ASSERT_EQ(run({"merge", "--model", path("base"), "--adapter", path("run") + ":0.5", "--adapter",
                 path("run") + ":0.5", "--out", path("halves")})
                .code,
            0);
  const SafetensorsFile one(fs::path(path("merged")) / "model.safetensors");
  const SafetensorsFile two(fs::path(path("halves")) / "model.safetensors");
  for (const auto& entry : one.entries())
    EXPECT_LE(testing::relative_error(testing::read_values(two, entry.name),
                                      testing::read_values(one, entry.name)),
              1e-6)
        << entry.name;
}

TEST_F(Merge, ADirectoryThatHoldsMoreThanAModelIsNotReplaced) {
  ASSERT_EQ(run(flags("run", {"--iters", "2"})).code, 0);
  const std::vector<std::string> merge = {"merge",      "--model",   path("base"),
                                          "--adapter",  path("run"), "--out",
                                          path("mine"), "-q",        "--overwrite"};
  ASSERT_EQ(run(merge).code, 0);
  for (const std::string name : {"thesis.txt", "folder"}) {
    const fs::path foreign = fs::path(path("mine")) / name;
    if (name == "folder")
      fs::create_directory(foreign);
    else
      write_file(foreign, "mine");
    const Outcome o = run(merge);
    EXPECT_EQ(o.code, 1);
    EXPECT_NE(o.err.find(name), std::string::npos) << o.err;
    EXPECT_TRUE(fs::exists(foreign));
    fs::remove(foreign);
  }
  EXPECT_EQ(run(merge).code, 0);
}

TEST_F(Merge, MergedItTakesItsPlaceUnderAnyFormOfItsName) {
  ASSERT_EQ(run(flags("run", {"--iters", "2"})).code, 0);
  fs::create_directory(path("models"));
  const auto merge = [&](const std::string& out) {
    return run({"merge", "--model", path("base"), "--adapter", path("run"), "--out", out, "-q",
                "--overwrite"});
  };
  const auto expect_whole = [&](const std::string& out) {
    const Outcome o = merge(out);
    ASSERT_EQ(o.code, 0) << o.err;
    EXPECT_EQ(run({"generate", "--model", path("models/qa"), "--ids", "1", "-n", "2", "-q"}).code,
              0);
    const auto beside = fs::directory_iterator(path("models"));
    EXPECT_EQ(std::distance(begin(beside), end(beside)), 1) << "something is left over";
  };
  expect_whole(path("models/qa/"));
  expect_whole(path("models/qa/"));  // over the one that is there now
  expect_whole(path("models/./qa//"));
  fs::create_directory_symlink(path("models/qa"), path("link"));
  expect_whole(path("link"));
  EXPECT_TRUE(fs::is_symlink(path("link")));
}

TEST_F(Merge, MergedItConversesAsItsLastAdapterLearntTo) {
  ASSERT_EQ(run(flags("run", {"--iters", "1"})).code, 0);
  ASSERT_EQ(run(flags("other", {"--iters", "1"})).code, 0);
  const auto merged = [&] {
    const Outcome o = run({"merge", "--model", path("base"), "--adapter", path("run"), "--adapter",
                           path("other"), "--out", path("merged"), "-q", "--overwrite"});
    EXPECT_EQ(o.code, 0) << o.err;
    return find_chat_template_name(path("merged"));
  };
  EXPECT_EQ(merged(), std::nullopt);
  save_chat_template_name(path("base"), ChatTemplate::mistral_v1);
  EXPECT_EQ(merged(), ChatTemplate::mistral_v1);
  const auto learn = [&](const std::string& out, const std::string& name) {
    const Outcome o = run(flags(out, {"--iters", "1", "--overwrite", "--chat-template", name}));
    EXPECT_EQ(o.code, 0) << o.err;
  };
  learn("run", "seed");
  EXPECT_EQ(merged(), ChatTemplate::seed);
  learn("other", "mistral-hf-old");
  EXPECT_EQ(merged(), ChatTemplate::mistral_hf_old);
}

}  // namespace
}  // namespace mixtral
