#include "open/model_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "backends/registry.h"
#include "base/file.h"
#include "base/random.h"
#include "io/manifest.h"
#include "io/safetensors_writer.h"
#include "model/checkpoint.h"
#include "open/hub_cache.h"
#include "tests/support/files.h"
#include "tests/support/gguf_model.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

void write_model(const fs::path& directory) {
  fs::create_directories(directory);
  const auto backend = make_backend("ref");
  Mixtral model(*backend, testing::uneven_config(), {});
  nn::initialise(*backend, model.parameters(), {.seed = 1});
  save_model(*backend, model, directory, Dtype::f32);
}

/// A run's checkpoint as far as opening it looks.
fs::path write_checkpoint(const fs::path& run) {
  const fs::path directory = run / "checkpoints" / "step-00000003";
  write_model(directory);
  std::vector<float> moments(4, 1.f);
  write_safetensors(directory / "optimizer.safetensors", {{"m", Tensor(std::span(moments))}});
  write_file(directory / "state.json", R"({"step": 3})");
  write_file(directory / "byte_tokenizer.json", "{}");
  Manifest::of_directory(directory).save(directory);
  return directory;
}

void write_adapter(const fs::path& directory, const std::string& base) {
  fs::create_directories(directory);
  write_file(directory / "adapter_config.json",
             R"({"peft_type": "LORA", "base_model_name_or_path": ")" + base + "\"}");
  write_file(directory / "adapter_model.safetensors", "x");
}

std::string problem_of(const ModelSource::Names& names) {
  return message_of([&] { ModelSource::resolve(names).tensors(); });
}

/// Sets a variable of the environment for a scope.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    ::setenv(name, value.c_str(), 1);
  }
  ~Variable() {
    if (before_)
      ::setenv(name_, before_->c_str(), 1);
    else
      ::unsetenv(name_);
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

TEST(ModelSource, ResolvesEveryKindOfName) {
  const TemporaryDirectory scratch;
  const fs::path model = scratch.path() / "model", run = scratch.path() / "run",
                 adapter = scratch.path() / "adapter";
  write_model(model);
  const fs::path checkpoint = write_checkpoint(run);
  write_adapter(adapter, model.string());

  const ModelSource builtin = ModelSource::resolve({.model = "tiny"});
  EXPECT_TRUE(builtin.is_builtin());
  EXPECT_EQ(builtin.config(), builtin_config("tiny"));
  EXPECT_THAT(message_of([&] { builtin.directory(); }),
              HasSubstr("model tiny: a built-in configuration has no weights"));

  EXPECT_EQ(ModelSource::resolve({.model = model.string()}).directory(), model);
  EXPECT_EQ(ModelSource::resolve({.model = run.string()}).directory(), checkpoint);
  EXPECT_EQ(ModelSource::resolve({.model = (run / "checkpoints").string()}).directory(),
            checkpoint);
  EXPECT_EQ(ModelSource::resolve({.model = checkpoint.string()}).directory(), checkpoint);
  const ModelSource tuned = ModelSource::resolve({.model = adapter.string()});
  EXPECT_EQ(tuned.directory(), model);
  EXPECT_EQ(tuned.adapter(), adapter);
  EXPECT_THAT(message_of([&] { tuned.refuse_adapter(); }),
              HasSubstr("holds an adapter, and here a whole model is needed"));
  const ModelSource named =
      ModelSource::resolve({.model = model.string(), .adapter = adapter.string()});
  EXPECT_EQ(named.adapter(), adapter);
  EXPECT_NO_THROW(named.refuse_adapter());
}

TEST(ModelSource, SaysWhatIsThereInstead) {
  const TemporaryDirectory scratch;
  const auto path = [&](const char* name) { return (scratch.path() / name).string(); };
  const Variable cache("HF_HUB_CACHE", path("cache"));
  fs::create_directories(path("empty"));
  write_file(path("x.gguf"), "GGUF");
  write_file(path("y.txt"), "text");
  write_adapter(path("lonely"), "ORG/base");
  write_adapter(path("nameless"), "");
  write_adapter(path("chain"), path("lonely"));
  write_model(path("trainer"));
  fs::remove(path("trainer/model.safetensors"));
  write_adapter(path("trainer"), path("gone"));
  write_model(path("pytorch"));
  fs::rename(path("pytorch/model.safetensors"), path("pytorch/pytorch_model.bin"));
  write_model(path("pointer"));
  write_file(path("pointer/model.safetensors"),
             "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4920052720\n");
  const struct {
    std::string model;
    std::vector<const char*> words;
  } cases[] = {
      {"tinny", {"there is no such directory", "did you mean tiny?"}},
      {"org/some-model", {"hf download org/some-model", "cache"}},
      {path("empty"), {"found neither config.json (a model) nor checkpoints (a run)"}},
      {path("x.gguf"), {"cut short"}},
      {path("y.txt"), {"is a file", "config.json"}},
      {path("lonely"), {"holds an adapter for the model ORG/base, which is not there", "BASE"}},
      {path("nameless"), {"does not say for which model"}},
      {path("chain"), {"is itself an adapter"}},
      {path("trainer"), {"holds an adapter for the model", "which is not there"}},
      {path("pytorch"), {"pytorch_model.bin", "save_pretrained"}},
      {path("pointer"), {"git-lfs pointer", "git lfs pull"}},
  };
  for (const auto& [model, words] : cases)
    for (const char* word : words)
      EXPECT_THAT(problem_of({.model = model}), HasSubstr(word)) << model;
  EXPECT_THAT(problem_of({.model = "tiny", .adapter = path("nowhere")}),
              HasSubstr("adapter " + path("nowhere") + ": there is no such directory"));
  EXPECT_THAT(problem_of({.model = "tiny", .adapter = path("empty")}),
              HasSubstr("found neither adapter_config.json"));
}

TEST(ModelSource, IsAGgufFileWithItsTokenizerAndTemplate) {
  const TemporaryDirectory directory;
  testing::GgufBuilder b;
  testing::toy_gguf::add_keys(b);
  b.key("tokenizer.ggml.model", "llama")
      .key("tokenizer.ggml.tokens",
           std::vector<std::string>{"<unk>", "<s>", "</s>", "a", "b", "ab", "c", "d"})
      .key("tokenizer.ggml.scores", std::vector<float>{0, 0, 0, -2, -3, -1, -4, -5})
      .key("tokenizer.ggml.token_type", std::vector<int32_t>{2, 3, 3, 1, 1, 1, 1, 1})
      .key("tokenizer.ggml.add_space_prefix", false)
      .key("tokenizer.ggml.bos_token_id", uint32_t{1})
      .key("tokenizer.ggml.eos_token_id", uint32_t{2})
      .key("tokenizer.chat_template", "{{ bos_token }}{{ messages[0]['content'] }}");
  testing::toy_gguf::add_tensors(b, "q8_0");
  const fs::path file = b.write(directory.path() / "m.gguf");
  for (const fs::path& name : {file, directory.path()}) {
    const ModelSource source = ModelSource::resolve({.model = name.string()});
    EXPECT_EQ(source.form(), ModelForm::gguf);
    EXPECT_EQ(source.directory(), file);
    EXPECT_EQ(source.config().num_experts, 3);
    source.check_tokenizer();
    EXPECT_THAT(source.require_tokenizer()->encode("abc"), ::testing::ElementsAre(5, 6));
    EXPECT_THAT(source.stop_ids(), ::testing::ElementsAre(2));
    const std::vector<Message> messages = {{"user", "ab"}};
    EXPECT_THAT(source.own_chat_template()->encode(messages), ::testing::ElementsAre(1, 5));
    const auto backend = make_backend("ref");
    EXPECT_EQ(source.stored_formats(*backend, "auto").size(), 8u);
    EXPECT_TRUE(source.stored_formats(*backend, "fp32").empty());
  }
}

TEST(ModelSource, SaysWhichOfTwoFormsItReads) {
  const TemporaryDirectory directory;
  write_model(directory.path());
  write_file(directory.path() / "params.json", "{}");
  std::string notes;
  const auto source = ModelSource::resolve({.model = directory.path().string()},
                                           [&](const std::string& note) { notes += note; });
  EXPECT_EQ(source.form(), ModelForm::hugging_face);
  EXPECT_THAT(notes, AllOf(HasSubstr("config.json"), HasSubstr("params.json")));
}

TEST(ModelSource, ReadsAHubNameFromTheHubsCache) {
  const TemporaryDirectory scratch;
  const fs::path hub = scratch.path() / "hub";
  const fs::path repository = hub / "models--org--name";
  write_model(repository / "snapshots" / "aaa");
  // As the hub's tools lay it out: a snapshot is of links to files with other names.
  fs::create_directories(repository / "blobs");
  fs::rename(repository / "snapshots" / "aaa" / "model.safetensors", repository / "blobs" / "0123");
  fs::create_symlink("../../blobs/0123", repository / "snapshots" / "aaa" / "model.safetensors");
  const struct {
    const char* name;
    fs::path value;
  } settings[] = {{"HF_HUB_CACHE", hub}, {"HF_HOME", scratch.path()}};
  for (const auto& [name, value] : settings) {
    const Variable none("HF_HUB_CACHE", "");
    const Variable home("HF_HOME", "");
    const Variable cache(name, value.string());
    EXPECT_EQ(hub_cache_folder(), hub) << name;
    std::string note;
    const ModelSource source =
        ModelSource::resolve({.model = "org/name"}, [&](const std::string& text) { note = text; });
    EXPECT_EQ(source.directory(), repository / "snapshots" / "aaa");
    EXPECT_THAT(note, HasSubstr("org/name is read from"));
    EXPECT_NO_THROW(source.tensors().at("model.norm.weight"));
  }
  const Variable cache("HF_HUB_CACHE", hub.string());
  // Of two revisions, refs/main says which.
  write_model(repository / "snapshots" / "bbb");
  EXPECT_EQ(find_in_hub_cache("org/name"), std::nullopt);
  fs::create_directories(repository / "refs");
  write_file(repository / "refs" / "main", "bbb");
  EXPECT_EQ(find_in_hub_cache("org/name"), repository / "snapshots" / "bbb");
  write_file(repository / "refs" / "main", "../../..");
  EXPECT_EQ(find_in_hub_cache("org/name"), std::nullopt);
  write_file(repository / "refs" / "main", "bbb\n");
  fs::remove(repository / "snapshots" / "bbb" / "config.json");
  EXPECT_THAT(problem_of({.model = "org/name"}), HasSubstr("has no config.json; finish it by"));
}

TEST(HubName, IsAnOrganisationAndAName) {
  for (const char* name : {"mistralai/Mixtral-8x7B-v0.1", "a/b", "a_b/c.d"})
    EXPECT_TRUE(is_hub_name(name)) << name;
  for (const char* name : {"", "a", "a/", "/a", "a/b/c", "../a", "a/..", "./a", "a b/c", "a/b..c",
                           "-a/b", "~/a", "a\n/b"})
    EXPECT_FALSE(is_hub_name(name)) << name;
}

// Whatever bit of a checkpoint's files flips, opening it says so: also in files that inference does
// not use, and in the manifest itself.
TEST(ModelSource, NoticesEveryFlippedBitOfACheckpoint) {
  const TemporaryDirectory scratch;
  const fs::path directory = write_checkpoint(scratch.path() / "run");
  const std::string run = (scratch.path() / "run").string();
  ASSERT_EQ(problem_of({.model = run}), "no error");
  RandomStream random(11);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(directory)) files.push_back(entry.path());
  ASSERT_EQ(files.size(), 7u);
  for (const fs::path& file : files) {
    const std::string good = read_file(file);
    const bool manifest = file.filename() == Manifest::kFileName;
    for (int round = 0; round < (manifest ? 300 : 8); ++round) {
      std::string bad = good;
      const uint64_t at = random.below(bad.size()), bit = random.below(8);
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      write_file(file, bad);
      EXPECT_NE(problem_of({.model = run}), "no error") << file << " byte " << at << " bit " << bit;
    }
    write_file(file, good);
  }
  EXPECT_EQ(problem_of({.model = run}), "no error");
}

TEST(ModelSource, AManifestThatSaysNothingDoesNotTurnCheckingOff) {
  const TemporaryDirectory scratch;
  const fs::path directory = write_checkpoint(scratch.path() / "run");
  const fs::path manifest = directory / Manifest::kFileName;
  const std::string run = (scratch.path() / "run").string(), good = read_file(manifest);
  for (const char* text : {"", "{}", "[]", "x", R"({"x":{"bytes":1,"xxh3":"0123456789abcdef"}})"}) {
    write_file(manifest, text);
    EXPECT_THAT(problem_of({.model = run}), HasSubstr(Manifest::kFileName)) << text;
  }
  fs::remove(manifest);
  EXPECT_THAT(problem_of({.model = run}), HasSubstr("has no manifest.json"));
  // Every file that is read must be listed.
  for (const char* name : {"config.json", "generation_config.json", "model.safetensors",
                           "state.json", "optimizer.safetensors", "byte_tokenizer.json"}) {
    write_file(manifest, good);
    Manifest all = Manifest::load(directory), rest;
    for (const auto& [file, sum] : all.files())
      if (file != name) rest.add(file, sum);
    rest.save(directory);
    EXPECT_THAT(problem_of({.model = run}), AllOf(HasSubstr("does not list"), HasSubstr(name)));
  }
  // Files that others put there are their own business; so is an optimizer's state that was removed
  // to save space.
  write_file(manifest, good);
  write_file(directory / "README.md", "mine");
  fs::remove(directory / "optimizer.safetensors");
  EXPECT_EQ(problem_of({.model = run}), "no error");
}

}  // namespace
}  // namespace mixtral
