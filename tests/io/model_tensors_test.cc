#include "io/model_tensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <map>
#include <numeric>

#include "base/file.h"
#include "base/random.h"
#include "io/manifest.h"
#include "io/safetensors_writer.h"
#include "tests/support/files.h"
#include "tests/support/source_directory.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Ten tensors t0..t9 of 4, 8, ... 40 bytes.
struct Model {
  std::map<std::string, std::vector<float>> values;
  std::vector<PlannedTensor> plan;

  Model() {
    for (size_t i = 0; i < 10; ++i) {
      auto& tensor = values[fmt::format("t{}", i)];
      tensor.resize(i + 1);
      std::iota(tensor.begin(), tensor.end(), static_cast<float>(10 * i));
    }
    for (const auto& [name, tensor] : values)
      plan.push_back({name, Shape{static_cast<int64_t>(tensor.size())}, Dtype::f32});
  }
  TensorValues source() {
    return [this](const PlannedTensor& planned) { return Tensor(std::span(values[planned.name])); };
  }
  void expect_in(const fs::path& path) {
    const ModelTensors tensors(path);
    EXPECT_EQ(tensors.names().size(), values.size());
    EXPECT_EQ(tensors.bytes(), 220u);
    for (const auto& [name, expected] : values) {
      std::vector<float> read(expected.size());
      tensors.read_into(name, Tensor(std::span(read)));
      EXPECT_EQ(read, expected) << name;
    }
  }
};

std::vector<std::string> files_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

TEST(ModelTensors, OneFileRoundTrips) {
  const TemporaryDirectory directory;
  Model model;
  const auto written = write_model_tensors(directory.path(), model.plan, model.source());
  EXPECT_EQ(files_in(directory.path()), std::vector<std::string>{"model.safetensors"});
  EXPECT_EQ(written.at("model.safetensors"), checksum_file(directory.path() / "model.safetensors"));
  model.expect_in(directory.path());
  model.expect_in(directory.path() / "model.safetensors");
}

TEST(ModelTensors, ShardsRoundTrip) {
  for (const uint64_t limit : {1u, 4u, 39u, 40u, 100u, 219u}) {
    const TemporaryDirectory directory;
    Model model;
    const auto written = write_model_tensors(directory.path(), model.plan, model.source(), limit);
    EXPECT_TRUE(fs::exists(directory.path() / "model.safetensors.index.json"));
    EXPECT_TRUE(fs::exists(directory.path() /
                           fmt::format("model-00001-of-{:05}.safetensors", written.size() - 1)));
    for (const auto& [name, sum] : written) {
      EXPECT_EQ(sum, checksum_file(directory.path() / name));
      if (name.ends_with(".safetensors") && limit >= 40) {
        EXPECT_LE(ModelTensors(directory.path() / name).bytes(), limit);
      }
    }
    model.expect_in(directory.path());
    model.expect_in(directory.path() / "model.safetensors.index.json");
  }
}

TEST(ModelTensors, ASecondSaveReplacesTheFirst) {
  const TemporaryDirectory directory;
  Model model;
  for (const uint64_t limit : {1000u, 50u, 120u, 1000u}) {
    for (auto& [name, values] : model.values) values[0] += 1;
    const auto written = write_model_tensors(directory.path(), model.plan, model.source(), limit);
    EXPECT_EQ(files_in(directory.path()).size(), written.size());
    model.expect_in(directory.path());
  }
}

TEST(ModelTensors, MixedTypesAreAligned) {
  const TemporaryDirectory directory;
  std::vector<uint8_t> bytes = {1, 2, 3};
  std::vector<bf16> halves = {bf16(1.f)};
  std::vector<double> doubles = {2.5};
  write_safetensors(directory.path() / "x.safetensors", {{"a", Tensor(std::span(bytes))},
                                                         {"b", Tensor(std::span(halves))},
                                                         {"c", Tensor(std::span(doubles))}});
  const ModelTensors tensors(directory.path() / "x.safetensors");
  EXPECT_EQ(tensors.view("a").as<uint8_t>()[2], 3);
  EXPECT_EQ(static_cast<float>(tensors.view("b").as<bf16>()[0]), 1.f);
  EXPECT_EQ(tensors.view("c").as<double>()[0], 2.5);
  EXPECT_EQ(tensors.names(), (std::vector<std::string>{"c", "b", "a"}));
}

TEST(ModelTensors, RefusesABadIndex) {
  const TemporaryDirectory directory;
  const fs::path outside = directory.path() / "outside.safetensors";
  const fs::path model = directory.path() / "model";
  fs::create_directory(model);
  std::vector<float> values(2);
  write_safetensors(outside, {{"a", Tensor(std::span(values))}});
  write_safetensors(model / "one.safetensors", {{"a", Tensor(std::span(values))}});
  write_safetensors(model / "two.safetensors", {{"b", Tensor(std::span(values))}});
  write_safetensors(model / "copy.safetensors",
                    {{"b", Tensor(std::span(values))}, {"d", Tensor(std::span(values))}});
  const std::pair<std::string, const char*> cases[] = {
      {R"({"weight_map":{"a":"../outside.safetensors"}})", "plain name"},
      {R"({"weight_map":{"a":")" + outside.string() + R"("}})", "plain name"},
      {R"({"weight_map":{"a":"sub/one.safetensors"}})", "plain name"},
      {R"({"weight_map":{"a":".."}})", "plain name"},
      {R"({"weight_map":{"a":""}})", "plain name"},
      {R"({"weight_map":{"a":"config.json"}})", "plain name"},
      {R"({"weight_map":{"a":"sub\\one.safetensors"}})", "plain name"},
      {R"({"weight_map":{"a":"three.safetensors"}})", "which is not there"},
      {R"({"weight_map":{"a":3}})", "weight_map.a: expected a string"},
      {R"({"weight_map":{}})", "names no tensors"},
      {R"({"weight_map":[]})", "expected an object"},
      {R"({})", "\"weight_map\" is missing"},
      {R"([])", "expected an object"},
  };
  for (const auto& row : cases) {
    const auto& text = row.first;
    const char* words = row.second;
    write_file(model / "model.safetensors.index.json", text);
    EXPECT_THAT(message_of([&] { ModelTensors tensors(model); }), HasSubstr(words)) << text;
  }
  // Two shards have b, and the index names neither for it.
  write_safetensors(model / "more.safetensors",
                    {{"b", Tensor(std::span(values))}, {"e", Tensor(std::span(values))}});
  write_file(model / "model.safetensors.index.json",
             R"({"weight_map":{"d":"copy.safetensors","e":"more.safetensors"}})");
  EXPECT_THAT(message_of([&] { ModelTensors tensors(model); }), HasSubstr("does not say which"));
}

TEST(ModelTensors, ReadsAnIndexThatDiffersFromItsShards) {
  const TemporaryDirectory directory;
  const fs::path outside = directory.path() / "outside", model = directory.path() / "model";
  fs::create_directory(outside);
  fs::create_directory(model);
  std::vector<float> one{1}, two{2}, three{3}, other{4};
  write_safetensors(outside / "one.safetensors", {{"a", Tensor(std::span(one))}});
  fs::create_symlink("../outside/one.safetensors", model / "one.safetensors");
  write_safetensors(model / "two.safetensors",
                    {{"a", Tensor(std::span(other))}, {"b", Tensor(std::span(two))}});
  write_safetensors(model / "three.safetensors", {{"c", Tensor(std::span(three))}});
  const auto value = [&](const ModelTensors& tensors, const char* name) {
    float element = 0;
    tensors.read_into(name, Tensor(&element, {1}, Dtype::f32));
    return element;
  };
  // The total is wrong, a number with a fraction, text; c is in no row; b is in another shard.
  for (const char* total : {"7", "-8", "16.0", "12.5", "\"12\"", "null", "[]"}) {
    write_file(model / "model.safetensors.index.json",
               fmt::format(R"({{"metadata":{{"total_size":{}}},"weight_map":{{
                 "a":"one.safetensors","b":"three.safetensors","c":"two.safetensors",
                 "inv_freq":"two.safetensors"}}}})",
                           total));
    const ModelTensors tensors(model);
    EXPECT_EQ(value(tensors, "a"), 1);  // the index decides between two shards
    EXPECT_EQ(value(tensors, "b"), 2);
    EXPECT_EQ(value(tensors, "c"), 3);
    EXPECT_EQ(tensors.names().size(), 3u);
    EXPECT_EQ(tensors.raw("b").size(), sizeof(float));
  }
}

// git writes a link as a text file with its target where links are not supported.
TEST(ModelTensors, FollowsLinksThatAreTextFiles) {
  const TemporaryDirectory directory;
  const fs::path store = directory.path() / "store", model = directory.path() / "model";
  fs::create_directory(store);
  fs::create_directory(model);
  std::vector<float> values{1};
  write_safetensors(store / "one.safetensors", {{"a", Tensor(std::span(values))}});
  write_file(store / "index.json", R"({"weight_map":{"a":"one.safetensors"}})");
  write_file(model / "one.safetensors", "../store/one.safetensors");
  write_file(model / "model.safetensors.index.json", "../store/index.json");
  EXPECT_NE(ModelTensors(model).find("a"), nullptr);
  write_file(model / "one.safetensors", "../store/nowhere.safetensors");
  EXPECT_THAT(message_of([&] { ModelTensors tensors(model); }),
              HasSubstr("not a safetensors file"));
}

TEST(ModelTensors, SaysWhatADirectoryHoldsInsteadOfWeights) {
  const std::pair<const char*, const char*> cases[] = {
      {"pytorch_model.bin", ".bin file"},
      {"pytorch_model-00001-of-00002.bin", ".bin file"},
      {"consolidated.00.pth", ".pth file"},
      {"model-00001-of-00002.safetensors", "model.safetensors.index.json, too"},
      {"adapter_config.json", "holds an adapter"},
      {"training_args.bin", "may not be complete"},
  };
  for (const auto& [file, words] : cases) {
    const TemporaryDirectory directory;
    write_file(directory.path() / file, "x");
    EXPECT_THAT(message_of([&] { ModelTensors tensors(directory.path()); }), HasSubstr(words))
        << file;
  }
}

TEST(ModelTensors, ReadsAPartOfATensor) {
  const TemporaryDirectory directory;
  std::vector<float> values{0, 1, 2, 3, 4, 5};
  write_safetensors(directory.path() / "model.safetensors",
                    {{"x", Tensor(values.data(), {2, 3}, Dtype::f32)}});
  const ModelTensors tensors(directory.path());
  std::vector<double> part(2);
  tensors.read("x", 3, Tensor(std::span(part)));
  EXPECT_EQ(part, (std::vector<double>{3, 4}));
}

TEST(ModelTensors, ReadsHuggingFacesCache) {
  const TemporaryDirectory directory;
  const fs::path snapshot = directory.path() / "models--x" / "snapshots" / "abc";
  const fs::path blobs = directory.path() / "models--x" / "blobs";
  fs::create_directories(snapshot);
  fs::create_directories(blobs);
  std::vector<float> values(2);
  write_safetensors(blobs / "0123", {{"a", Tensor(std::span(values))}});
  fs::create_symlink("../../blobs/0123", snapshot / "one.safetensors");
  write_file(snapshot / "model.safetensors.index.json",
             R"({"weight_map":{"a":"one.safetensors"}})");
  EXPECT_EQ(ModelTensors(snapshot).names().size(), 1u);
}

TEST(ModelTensors, ReportsWhatIsMissing) {
  const TemporaryDirectory directory;
  EXPECT_THAT(message_of([&] { ModelTensors tensors(directory.path()); }),
              HasSubstr("has neither model.safetensors nor"));
  EXPECT_THAT(message_of([&] { ModelTensors tensors(directory.path() / "x.safetensors"); }),
              HasSubstr("No such file"));
  Model model;
  write_model_tensors(directory.path(), model.plan, model.source(), 50);
  const ModelTensors tensors(directory.path());
  EXPECT_EQ(tensors.find("x"), nullptr);
  EXPECT_THAT(message_of([&] { tensors.at("x"); }), HasSubstr("there is no tensor \"x\""));
}

TEST(ModelTensors, ReportsNonFiniteWeights) {
  const TemporaryDirectory directory;
  Model model;
  write_model_tensors(directory.path(), model.plan, model.source(), 50);
  EXPECT_TRUE(ModelTensors(directory.path()).non_finite().empty());
  EXPECT_NO_THROW(ModelTensors(directory.path()).refuse_non_finite());
  model.values["t5"][3] = std::nanf("");
  model.values["t9"][0] = -INFINITY;
  write_model_tensors(directory.path(), model.plan, model.source(), 50);
  const auto found = ModelTensors(directory.path()).non_finite();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].name, "t5");
  EXPECT_EQ(found[0].index, 3);
  EXPECT_TRUE(std::isnan(found[0].value));
  EXPECT_EQ(found[1].name, "t9");
  EXPECT_THAT(message_of([&] { ModelTensors(directory.path()).refuse_non_finite(); }),
              HasSubstr("tensor \"t5\" has nan at element 3, and 1 more"));
}

TEST(ModelTensors, AFailedWriteLeavesTheOldFile) {
  const TemporaryDirectory directory;
  Model model;
  write_model_tensors(directory.path(), model.plan, model.source());
  // Writing past this limit fails as on a full disk.
  std::vector<float> large(1 << 18, 1.f);
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1 << 16, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = message_of([&] {
    write_safetensors(directory.path() / "model.safetensors",
                      {{"large", Tensor(std::span(large))}});
  });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_THAT(message, HasSubstr("cannot write"));
  EXPECT_EQ(files_in(directory.path()), std::vector<std::string>{"model.safetensors"});
  model.expect_in(directory.path());
}

TEST(ModelTensors, AFullDiskIsReportedBeforeWriting) {
  const TemporaryDirectory directory;
  const std::vector<PlannedTensor> plan = {{"x", Shape{int64_t{1} << 55}, Dtype::f32}};
  EXPECT_THAT(message_of([&] { SafetensorsWriter writer(directory.path() / "m", plan); }),
              HasSubstr("free some space"));
  EXPECT_TRUE(files_in(directory.path()).empty());
}

TEST(ModelTensors, RepeatedNamesAreRefused) {
  const TemporaryDirectory directory;
  const std::vector<PlannedTensor> plan = {{"x", Shape{1}, Dtype::f32},
                                           {"x", Shape{1}, Dtype::f32}};
  EXPECT_THAT(message_of([&] { SafetensorsWriter writer(directory.path() / "m", plan); }),
              HasSubstr("two tensors are named \"x\""));
}

TEST(ModelTensors, ReadsTheFixtures) {
  const fs::path fixtures = source_directory() / "../shared/fixtures";
  if (!fs::exists(fixtures)) GTEST_SKIP() << fixtures << " is absent";
  for (const char* name : {"gqa", "mha8x2", "headdim", "sliding", "sharded", "tied"}) {
    const ModelTensors tensors(fixtures / name);
    EXPECT_NE(tensors.find("model.embed_tokens.weight"), nullptr) << name;
    EXPECT_TRUE(tensors.non_finite().empty()) << name;
    for (const auto& tensor : tensors.names()) EXPECT_NO_THROW(tensors.view(tensor)) << tensor;
  }
  EXPECT_EQ(ModelTensors(fixtures / "sharded").bytes(), 142528u);
}

// A fixture rewritten has the same bytes as what Hugging Face's library wrote: header and all.
TEST(ModelTensors, WritesWhatHuggingFaceWrites) {
  const fs::path path = source_directory() / "../shared/fixtures/gqa/model.safetensors";
  if (!fs::exists(path)) GTEST_SKIP() << path << " is absent";
  const SafetensorsFile file(path);
  std::map<std::string, Tensor> tensors;
  for (const auto& entry : file.entries()) tensors[entry.name] = file.view(entry.name);
  const TemporaryDirectory directory;
  write_safetensors(directory.path() / "copy.safetensors", tensors, file.metadata());
  EXPECT_EQ(read_file(directory.path() / "copy.safetensors"), read_file(path));
}

TEST(Manifest, FindsEveryFlippedBit) {
  const TemporaryDirectory directory;
  Model model;
  write_model_tensors(directory.path(), model.plan, model.source(), 100);
  write_file(directory.path() / "config.json", "{}");
  fs::create_directory(directory.path() / "sub");
  write_file(directory.path() / "sub" / "x", "y");
  Manifest::of_directory(directory.path()).save(directory.path());
  EXPECT_NO_THROW(verify_manifest(directory.path()));
  EXPECT_EQ(Manifest::load(directory.path()).files(),
            Manifest::of_directory(directory.path()).files());

  RandomStream random(3);
  const Manifest manifest = Manifest::load(directory.path());
  for (const auto& [name, sum] : manifest.files()) {
    const fs::path path = directory.path() / name;
    const std::string good = read_file(path);
    for (int round = 0; round < 20; ++round) {
      std::string bad = good;
      bad[random.below(bad.size())] ^= static_cast<char>(1 << random.below(8));
      write_file(path, bad);
      EXPECT_THAT(message_of([&] { verify_manifest(directory.path()); }),
                  HasSubstr(path.string() + " is damaged: its checksum"));
    }
    write_file(path, good + "x");
    EXPECT_THAT(message_of([&] { verify_manifest(directory.path()); }),
                HasSubstr(path.string() + " is damaged: it has"));
    fs::remove(path);
    EXPECT_THAT(message_of([&] { verify_manifest(directory.path()); }),
                HasSubstr(path.string() + " is named by manifest.json but cannot be read"));
    write_file(path, good);
  }
  EXPECT_NO_THROW(verify_manifest(directory.path()));
}

TEST(Manifest, IsBelievedWhereAModelIsOpened) {
  const TemporaryDirectory directory;
  const fs::path file = directory.path() / "model.safetensors";
  std::vector<float> values{1, 2};
  const std::map<std::string, Tensor> tensors{{"x", Tensor(std::span(values))}};
  write_safetensors(file, tensors);
  std::string bad = read_file(file);
  Manifest::of_directory(directory.path()).save(directory.path());
  EXPECT_NO_THROW(ModelTensors(directory.path()));
  bad.back() = static_cast<char>(bad.back() ^ 1);
  write_file(file, bad);
  EXPECT_THAT(message_of([&] { ModelTensors(directory.path()); }),
              HasSubstr(file.string() + " is damaged: its checksum"));
  // Another program's file of that name says nothing.
  write_file(directory.path() / Manifest::kFileName, "[1]");
  EXPECT_NO_THROW(ModelTensors(directory.path()));
}

TEST(Manifest, RefusesABadManifest) {
  const TemporaryDirectory directory;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"../x":{"bytes":1,"xxh3":"0123456789abcdef"}})", "inside the directory"},
      {R"({"/etc/passwd":{"bytes":1,"xxh3":"0123456789abcdef"}})", "inside the directory"},
      {R"({"x":{"bytes":-1,"xxh3":"0123456789abcdef"}})", "expected a size"},
      {R"({"x":{"bytes":1,"xxh3":"0123456789abcde"}})", "16 hexadecimal digits"},
      {R"({"x":{"bytes":1,"xxh3":"0123456789abcdeg"}})", "16 hexadecimal digits"},
      {R"({"x":{"bytes":1}})", "\"xxh3\" is missing"},
      {R"({"x":1})", "expected an object"},
  };
  for (const auto& row : cases) {
    const auto& text = row.first;
    const char* words = row.second;
    write_file(directory.path() / "manifest.json", text);
    EXPECT_THAT(message_of([&] { verify_manifest(directory.path()); }), HasSubstr(words)) << text;
  }
  fs::remove(directory.path() / "manifest.json");
  EXPECT_THAT(message_of([&] { verify_manifest(directory.path()); }), HasSubstr("manifest.json"));
}

}  // namespace
}  // namespace mixtral
