// finetune from the command line on.
#include <fmt/ranges.h>

#include "io/checksum.h"
#include "model/adapter_file.h"
#include "tests/cli/finetune_rig.h"
#include "tests/support/fixtures.h"
#include "text/chat_template.h"
#include "train/checkpoint_store.h"
#include "train/metrics.h"

namespace mixtral {
namespace {

TEST_F(Finetune, AResumedRunEndsWithTheBitsOfTheUninterruptedOne) {
  const Arguments more{
      "--targets",   "all", "--dropout",          "0.3", "--grad-accumulation", "2",
      "--iters",     "6",   "--log-every",        "2",   "--save-every",        "3",
      "--keep-last", "9",   "--rope-frequencies", "fp16"};
  ASSERT_EQ(run(flags("whole", more)).code, 0);
  ASSERT_EQ(run(flags("torn", more)).code, 0);
  fs::remove_all(checkpoint("torn", 6));
  const Outcome resumed = run({"finetune", "--resume", path("torn")});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  for (const char* file : {"adapter_model.safetensors", "optimizer.safetensors"})
    EXPECT_EQ(checksum_file(checkpoint("torn", 6) / file).hex(),
              checksum_file(checkpoint("whole", 6) / file).hex())
        << file;
}

TEST_F(Finetune, ARunsOwnConfigurationRepeatsIt) {
  ASSERT_EQ(run(flags("first", {"--iters", "3", "--targets", "attention", "--rank", "2"})).code, 0);
  const Outcome again =
      run({"finetune", "--config", (scratch_.path() / "first" / "config.yaml").string(), "--out",
           path("second")});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(checksum_file(checkpoint("second", 3) / "adapter_model.safetensors").hex(),
            checksum_file(checkpoint("first", 3) / "adapter_model.safetensors").hex());
}

TEST_F(Finetune, DropoutChangesTrainingAndTheSeedDecidesHow) {
  auto weights = [&](const std::string& out, const Arguments& more) {
    Arguments all{"--iters", "2", "--targets", "attention"};
    all.insert(all.end(), more.begin(), more.end());
    EXPECT_EQ(run(flags(out, all)).code, 0);
    return checksum_file(checkpoint(out, 2) / "adapter_model.safetensors").hex();
  };
  const std::string plain = weights("a", {});
  const std::string dropped = weights("b", {"--dropout", "0.5"});
  EXPECT_NE(dropped, plain);
  EXPECT_EQ(weights("c", {"--dropout", "0.5"}), dropped);
}

TEST_F(Finetune, TunesTheChosenExpertsAloneAndWritesTheOthersAsZeros) {
  const Outcome o = run(flags("run", {"--targets", "experts", "--experts", "3,1", "--iters", "2"}));
  ASSERT_EQ(o.code, 0) << o.err;
  const AdapterFile file = AdapterFile::load(checkpoint("run", 2), config_of(path("base")));
  ASSERT_EQ(file.modules.size(), 6u);  // w1, w2, w3 of two layers
  for (const AdapterModule& module : file.modules)
    EXPECT_EQ(module.experts, (std::vector<int64_t>{1, 3}));
  const Json config = Json::load(checkpoint("run", 2) / "adapter_config.json");
  EXPECT_EQ(config.at("target_modules").items().front().as_string(), "w1");
  const SafetensorsFile weights(checkpoint("run", 2) / "adapter_model.safetensors");
  for (const char* name : {"experts.0.w1.lora_A", "experts.0.w2.lora_B", "experts.2.w3.lora_A"}) {
    const auto values = testing::read_values(
        weights, fmt::format("base_model.model.model.layers.1.block_sparse_moe.{}.weight", name));
    EXPECT_TRUE(std::ranges::all_of(values, [](double value) { return value == 0; })) << name;
  }
}

TEST_F(Finetune, SaysWhatPeftCannotDoWithAnAdapter) {
  const Outcome two =
      run(flags("two", {"--targets", "experts", "--target-alphas", "w1=3", "--iters", "1"}));
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_NE(two.err.find("packs w1 and w3 under one scale"), std::string::npos) << two.err;
  const Outcome dropped =
      run(flags("dropped", {"--targets", "gate", "--dropout", "0.1", "--iters", "1"}));
  ASSERT_EQ(dropped.code, 0) << dropped.err;
  EXPECT_NE(dropped.err.find("lora_dropout 0"), std::string::npos) << dropped.err;
  EXPECT_EQ(run(flags("plain", {"--targets", "all", "--iters", "1"})).err.find("PEFT"),
            std::string::npos);
}

TEST_F(Finetune, TakesTheBusiestExpertsOfEachLayer) {
  const Outcome o = run(flags("run", {"--targets", "w2", "--experts", "top:1", "--iters", "1"}));
  ASSERT_EQ(o.code, 0) << o.err;
  const AdapterFile file = AdapterFile::load(checkpoint("run", 1), config_of(path("base")));
  for (const AdapterModule& module : file.modules) EXPECT_EQ(module.experts.size(), 1u);
  EXPECT_NE(o.err.find("layer 1: tuning experts"), std::string::npos) << o.err;
}

TEST_F(Finetune, LastLayersAndRanksOfTargetsAreWritten) {
  ASSERT_EQ(run(flags("run", {"--targets", "q_proj,gate", "--num-layers", "1", "--rank", "4",
                              "--alpha", "6", "--target-ranks", "gate=2", "--iters", "1"}))
                .code,
            0);
  const AdapterFile file = AdapterFile::load(checkpoint("run", 1), config_of(path("base")));
  ASSERT_EQ(file.modules.size(), 2u);
  EXPECT_EQ(file.modules[0].layer, 1);
  EXPECT_EQ(file.modules[0].rank, 4);
  EXPECT_EQ(file.modules[0].scale, 1.5);
  EXPECT_EQ(file.modules[1].rank, 2);
  EXPECT_EQ(file.modules[1].scale, 3);
}

TEST_F(Finetune, ABaseIn16BitsIsTunedAsItIs) {
  Arguments all = flags("run", {"--iters", "3"});
  all[2] = path("narrow");
  const Outcome o = run(all);
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_TRUE(std::isfinite(read_metrics(scratch_.path() / "run" / "metrics.jsonl").back().loss));
}

TEST_F(Finetune, ABaseInFewBitsIsTunedAndResumedBitForBit) {
  for (const std::string bits : {"fp8", "nf4"}) {
    const Arguments more{"--quantize-base", bits,  "--targets",    "all", "--iters",     "4",
                         "--dropout",       "0.1", "--save-every", "2",   "--keep-last", "9"};
    const std::string whole = bits + "-whole", torn = bits + "-torn";
    const Outcome o = run(flags(whole, more));
    ASSERT_EQ(o.code, 0) << o.err;
    ASSERT_EQ(run(flags(torn, more)).code, 0);
    fs::remove_all(checkpoint(torn, 4));
    const Outcome resumed = run({"finetune", "--resume", path(torn)});
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    for (const char* file : {"adapter_model.safetensors", "optimizer.safetensors"})
      EXPECT_EQ(checksum_file(checkpoint(torn, 4) / file).hex(),
                checksum_file(checkpoint(whole, 4) / file).hex())
          << bits << " " << file;
    EXPECT_NE(read_file(scratch_.path() / whole / "config.yaml").find("quantize-base: " + bits),
              std::string::npos);
  }
}

TEST_F(Finetune, ABaseInFewBitsChangesWhatIsLearntAndServesPreferencesToo) {
  auto loss = [&](const std::string& bits) {
    EXPECT_EQ(run(flags("run-" + bits, {"--iters", "1", "--quantize-base", bits})).code, 0);
    return read_metrics(scratch_.path() / ("run-" + bits) / "metrics.jsonl").back().loss;
  };
  const double off = loss("off"), fp8 = loss("fp8"), nf4 = loss("nf4");
  EXPECT_NE(fp8, off);
  EXPECT_NEAR(fp8, off, 0.05);
  EXPECT_NEAR(nf4, off, 0.2);
  Arguments all = flags("dpo", {"--method", "dpo", "--quantize-base", "nf4", "--iters", "2"});
  all[4] = path("pairs.jsonl");
  const Outcome o = run(all);
  ASSERT_EQ(o.code, 0) << o.err;
}

TEST_F(Finetune, FullTuningOfTheLastLayerLeavesTheRestAlone) {
  ASSERT_EQ(run(flags("run",
                      {"--method", "full", "--num-layers", "1", "--freeze-router", "--iters", "2"}))
                .code,
            0);
  const SafetensorsFile before(fs::path(path("base")) / "model.safetensors");
  const SafetensorsFile after(checkpoint("run", 2) / "model.safetensors");
  for (const auto& entry : before.entries()) {
    const bool tuned = entry.name.starts_with("model.layers.1.") &&
                       entry.name.find("gate.weight") == std::string::npos;
    const bool same =
        testing::read_values(before, entry.name) == testing::read_values(after, entry.name);
    EXPECT_NE(same, tuned) << entry.name;
  }
}

TEST_F(Finetune, PreferencesAreLearntByAdapterAndInFull) {
  for (const char* method : {"dpo", "dpo-full"}) {
    Arguments all = flags(method, {"--method", method, "--iters", "20", "--log-every", "20"});
    all[4] = path("pairs.jsonl");
    const Outcome o = run(all);
    ASSERT_EQ(o.code, 0) << o.err;
    const auto lines = read_metrics(scratch_.path() / method / "metrics.jsonl");
    EXPECT_NEAR(lines.front().loss, std::log(2.0), 1e-6) << method;
    EXPECT_LT(lines.back().loss, lines.front().loss) << method;
    ASSERT_FALSE(lines.back().more.empty());
    EXPECT_EQ(lines.back().more[0].first, "margin");
    EXPECT_GT(lines.back().more[0].second, 0);
  }
}

TEST_F(Finetune, PairsAreReadWholeUnlessAContextIsGiven) {
  ModelConfig config = testing::minimal_config();
  config.max_positions = 512;
  save(config, Dtype::f32, "long");
  std::vector<int> prompt(300, 1);
  std::string pairs;
  for (int i = 0; i < 4; ++i)
    pairs +=
        fmt::format("{{\"prompt_ids\": [{}], \"chosen_ids\": [5, {}], \"rejected_ids\": [3]}}\n",
                    fmt::join(prompt, ","), i);
  write_file(path("pairs.jsonl"), pairs);
  const auto tune = [&](const std::string& out, const Arguments& more) {
    Arguments all{"finetune",
                  "--method",
                  "dpo",
                  "--model",
                  path("long"),
                  "--data",
                  path("pairs.jsonl"),
                  "--out",
                  path(out),
                  "--device",
                  "cpu",
                  "--threads",
                  "1",
                  "--iters",
                  "2",
                  "--batch-size",
                  "2"};
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  };
  const auto last_margin = [&](const std::string& out) {
    return read_metrics(scratch_.path() / out / "metrics.jsonl").back().more.at(0).second;
  };
  const Outcome whole = tune("whole", {});
  ASSERT_EQ(whole.code, 0) << whole.err;
  EXPECT_EQ(whole.err.find("longer than --context"), std::string::npos) << whole.err;
  EXPECT_NE(last_margin("whole"), 0);
  const Outcome cut = tune("cut", {"--context", "256"});
  EXPECT_EQ(cut.code, 1) << cut.err;
  EXPECT_NE(cut.err.find("none of 4 pairs has a label within --context 256"), std::string::npos)
      << cut.err;
  EXPECT_NE(cut.err.find("give --context 301 or more"), std::string::npos) << cut.err;
  EXPECT_FALSE(fs::exists(path("cut") + "/checkpoints"));
}

TEST_F(Finetune, SaysHowMuchOfRecordsIsCutOff) {
  write_file(path("rows.jsonl"), read_file(path("rows.jsonl")) + "{\"input_ids\": [" +
                                     fmt::format("{}", fmt::join(std::vector<int>(30, 1), ",")) +
                                     "]}\n");
  const Outcome o = run(flags("run", {"--iters", "1", "--context", "5"}));
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_NE(o.err.find("note: 1 of 13 records are longer than --context 5 and are cut off there, "
                       "which leaves out 25 of 90 tokens; --context 32 --batch-size 1 reads all"),
            std::string::npos)
      << o.err;
  write_file(
      path("rows.jsonl"),
      "{\"input_ids\": [" + fmt::format("{}", fmt::join(std::vector<int>(40, 1), ",")) + "]}\n");
  const Outcome most = run(flags("most", {"--iters", "1"}));
  ASSERT_EQ(most.code, 0) << most.err;
  EXPECT_NE(most.err.find("leaves out 8 of 40 tokens; the model has no more than 32 positions"),
            std::string::npos)
      << most.err;
}

TEST_F(Finetune, ARunOfAnAdapterIsAModelWithItsBase) {
  ASSERT_EQ(run(flags("run", {"--iters", "2"})).code, 0);
  const Outcome by_run =
      run({"generate", "--model", path("run"), "--ids", "1,2,3", "-n", "4", "--temp", "0", "-q"});
  const Outcome by_parts =
      run({"generate", "--model", path("base"), "--adapter", checkpoint("run", 2).string(), "--ids",
           "1,2,3", "-n", "4", "--temp", "0", "-q"});
  ASSERT_EQ(by_run.code, 0) << by_run.err;
  EXPECT_EQ(by_run.out, by_parts.out);
}

TEST_F(Finetune, DoesNotReplaceTheRunThatItStartsFrom) {
  ASSERT_EQ(run(flags("run", {"--iters", "2"})).code, 0);
  for (const Arguments& more :
       {Arguments{"--model", path("run")}, Arguments{"--adapter", path("run") + "/"},
        Arguments{"--model", checkpoint("run", 2).string()}}) {
    Arguments all{"--overwrite", "--iters", "1"};
    all.insert(all.end(), more.begin(), more.end());
    const Outcome o = run(flags("run", all));
    EXPECT_EQ(o.code, 1);
    EXPECT_NE(o.err.find("choose another --out"), std::string::npos) << o.err;
    EXPECT_TRUE(fs::exists(checkpoint("run", 2) / "adapter_model.safetensors"));
  }
  EXPECT_EQ(run(flags("run", {"--overwrite", "--iters", "1"})).code, 0);
  // What lies there and is no part of the run is not removed.
  fs::copy(path("base"), path("run") + "/base");
  const Outcome o =
      run(flags("run", {"--model", path("run") + "/base", "--overwrite", "--iters", "1"}));
  EXPECT_EQ(o.code, 0) << o.err;
}

TEST_F(Finetune, GoesOnFromTheCheckpointItStartedFrom) {
  ASSERT_EQ(run(flags("basis", {"--method", "full", "--iters", "2", "--save-every", "2"})).code, 0);
  for (const char* latest : {"basis", "basis/checkpoints/latest"}) {
    fs::remove_all(path("run"));
    ASSERT_EQ(run(flags("run", {"--model", path(latest), "--iters", "2"})).code, 0);
    fs::remove_all(path("undisturbed"));
    fs::copy(path("run"), path("undisturbed"),
             fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    ASSERT_EQ(run({"finetune", "--resume", path("undisturbed"), "--iters", "4"}).code, 0);
    ASSERT_EQ(run({"finetune", "--resume", path("basis"), "--iters", "4"}).code, 0);
    const Outcome resumed = run({"finetune", "--resume", path("run"), "--iters", "4"});
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_EQ(checksum_file(checkpoint("run", 4) / "adapter_model.safetensors").hex(),
              checksum_file(checkpoint("undisturbed", 4) / "adapter_model.safetensors").hex());
    fs::remove_all(checkpoint("basis", 4));
    fs::remove(path("basis/checkpoints/latest"));
    fs::create_directory_symlink("step-00000002", path("basis/checkpoints/latest"));
  }
}

TEST_F(Finetune, GoesOnWhereItsFolderHasMoved) {
  fs::create_directory(path("there"));
  ASSERT_EQ(run(flags("there/basis", {"--method", "full", "--iters", "2"})).code, 0);
  const fs::path here = fs::current_path();
  fs::current_path(path("there"));
  Arguments tuning = flags("run", {"--iters", "2"});
  tuning[2] = "basis";
  tuning[6] = "run";
  EXPECT_EQ(run(tuning).code, 0);
  fs::current_path(here);
  fs::rename(path("there"), path("elsewhere"));
  fs::current_path(path("elsewhere"));
  const Outcome moved = run({"finetune", "--resume", "run", "--iters", "4"});
  fs::remove_all("basis/checkpoints");
  const Outcome gone = run({"finetune", "--resume", "run", "--iters", "6"});
  fs::current_path(here);
  EXPECT_EQ(moved.code, 0) << moved.err;
  EXPECT_EQ(gone.code, 1);
  EXPECT_NE(gone.err.find("step-00000002"), std::string::npos) << gone.err;
  EXPECT_NE(gone.err.find("--adapter run"), std::string::npos) << gone.err;
}

TEST_F(Finetune, NotesTheTemplateOfItsBaseAlsoWhenResumed) {
  save_chat_template_name(path("base"), ChatTemplate::seed);
  ASSERT_EQ(run(flags("run", {"--iters", "2"})).code, 0);
  ASSERT_EQ(run({"finetune", "--resume", path("run"), "--iters", "4"}).code, 0);
  for (const int step : {2, 4})
    EXPECT_EQ(find_chat_template_name(checkpoint("run", step)), ChatTemplate::seed) << step;
}

TEST_F(Finetune, ARunOfAnAdapterStandsWhereModelsAreLookedAt) {
  ASSERT_EQ(run(flags("run", {"--iters", "2", "--targets", "all"})).code, 0);
  const std::string adapter = checkpoint("run", 2).string();
  const Arguments route{"inspect", "route", "--ids", "1,2,3", "--json", "-q"};
  const Arguments preference{"inspect", "gradients",         "--method", "dpo",
                             "--data",  path("pairs.jsonl"), "--json",   "-q"};
  const auto of = [](Arguments all, const Arguments& more) {
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  };
  for (const Arguments& command : {route, preference}) {
    const Outcome by_run = of(command, {"--model", path("run")});
    const Outcome by_parts = of(command, {"--model", path("base"), "--adapter", adapter});
    ASSERT_EQ(by_run.code, 0) << by_run.err;
    EXPECT_EQ(by_run.out, by_parts.out);
  }
  const Outcome base = of(route, {"--model", path("base")});
  EXPECT_NE(of(route, {"--model", path("run")}).out, base.out);
  const Outcome info = of({"info", "--json"}, {"--model", path("run")});
  ASSERT_EQ(info.code, 0) << info.err;
  EXPECT_NE(info.err.find("this is of its base"), std::string::npos) << info.err;
  // Where weights are trained or compared with, a whole model is needed.
  const Outcome init = run({"pretrain", "--init", path("run"), "--data", path("rows.jsonl"),
                            "--out", path("more"), "-q"});
  Arguments dpo = flags("dpo", {"--method", "dpo", "--iters", "1", "--reference", path("run")});
  dpo[4] = path("pairs.jsonl");
  for (const Outcome& o : {init, run(dpo)}) {
    EXPECT_EQ(o.code, 1);
    EXPECT_NE(o.err.find("holds an adapter, and here a whole model is needed; merge it into its "
                         "base, " +
                         path("base")),
              std::string::npos)
        << o.err;
  }
}

TEST_F(Finetune, ErrorsNameWhatIsWrong) {
  struct Wrong {
    Arguments flags;
    int code;
    const char* says;
  };
  ASSERT_EQ(run(flags("adapter", {"--iters", "1"})).code, 0);
  const std::string adapter = path("adapter");
  const std::vector<Wrong> table{
      {{"--targets", "qproj"}, 2, "q_proj"},
      {{"--experts", "1"}, 2, "w1, w2 or w3"},
      {{"--targets", "w1", "--experts", "9"}, 2, "4 experts"},
      {{"--targets", "w1", "--experts", "top:x"}, 2, "top:N"},
      {{"--method", "full", "--rank", "2"}, 2, "--rank"},
      {{"--method", "full", "--quantize-base", "fp8"}, 2, "use --method lora"},
      {{"--quantize-base", "int8"}, 2, "--quantize-base"},
      {{"--beta", "1"}, 2, "--method dpo"},
      {{"--method", "dpo"}, 1, "no preference pairs"},
      {{"--rank", "2", "--adapter", path("rows.jsonl")}, 1, "adapter_config.json"},
      {{"--adapter", path("nowhere")}, 1, "no such directory"},
      {{"--num-layers", "1", "--adapter", adapter}, 2, "--num-layers describes a new adapter"},
      {{"--freeze-router", "--adapter", adapter}, 2, "--freeze-router describes a new adapter"},
      {{"--scale", "5000", "--rank", "512"}, 2, "that of q_proj is 2560000, expected 1000000"},
      {{"--alpha", "nan"}, 2, "--alpha: expected a finite number, found nan"},
      {{"--scale", "inf"}, 2, "--scale: expected a finite number, found inf"},
      {{"--target-alphas", "gate=inf"}, 2, "--alpha: that of gate is inf"},
      {{"--target-ranks", "q_proj:8"}, 2, "q_proj=8"},
      {{"--target-ranks", "w1=4"}, 2, "--target-ranks w1=4: what is tuned is q_proj, v_proj, gate"},
      {{"--target-alphas", "experts=4"}, 2, "--target-alphas experts=4"},
      {{"--freeze-router", "--target-ranks", "gate=2"}, 2, "what is tuned is q_proj, v_proj;"},
      {{"--context", "1000"}, 2, "32 positions"},
  };
  for (const Wrong& wrong : table) {
    const Outcome o = run(flags("run", wrong.flags));
    EXPECT_EQ(o.code, wrong.code) << wrong.flags[1] << ": " << o.err;
    EXPECT_NE(o.err.find(wrong.says), std::string::npos) << o.err;
    EXPECT_FALSE(fs::exists(path("run"))) << wrong.flags[0];
  }
}

TEST_F(Finetune, FlagsThatSayNothingAreRefusedBeforeDataAreRead) {
  const auto tune = [&](const Arguments& more) {
    Arguments all{"finetune", "--model", path("base"),   "--data",
                  path("no"), "--out",   path("nothing")};
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  };
  EXPECT_NE(tune({}).err.find(path("no")), std::string::npos);  // what reading them would say
  Outcome o = tune({"--targets", "router", "--freeze-router"});
  EXPECT_EQ(o.code, 2);
  EXPECT_NE(o.err.find("--freeze-router leaves nothing of --targets router"), std::string::npos)
      << o.err;
  o = tune({"--targets", "w1", "--experts", "9"});
  EXPECT_EQ(o.code, 2);
  EXPECT_NE(o.err.find("4 experts"), std::string::npos) << o.err;
  o = tune({"--targets", ","});
  EXPECT_EQ(o.code, 2);
  EXPECT_NE(o.err.find("--targets is empty"), std::string::npos) << o.err;
  for (const char* command : {"finetune", "pretrain"}) {
    o = run({command, "--model", path("base"), "--data", path("no"), "--out", path("nothing"),
             "--keep-layers", "1"});
    EXPECT_EQ(o.code, 2);
    EXPECT_NE(o.err.find("give --recompute too"), std::string::npos) << o.err;
  }
}

TEST_F(Finetune, TunesAModelWhoseWeightsAreDrawn) {
  const Arguments drawn{"--model",      "tiny", "--random-weights", "--context", "16",
                        "--save-every", "2",    "--dropout",        "0.2"};
  auto tune = [&](const std::string& out, const std::string& iterations) {
    Arguments more = drawn;
    more.insert(more.end(), {"--iters", iterations});
    return run(flags(out, more));
  };
  const Outcome whole = tune("whole", "4");
  ASSERT_EQ(whole.code, 0) << whole.err;
  ASSERT_EQ(tune("torn", "4").code, 0);
  fs::remove_all(checkpoint("torn", 4));
  ASSERT_EQ(run({"finetune", "--resume", path("torn")}).code, 0);
  EXPECT_EQ(checksum_file(checkpoint("torn", 4) / "adapter_model.safetensors").hex(),
            checksum_file(checkpoint("whole", 4) / "adapter_model.safetensors").hex());

  // The run knows its base; the same weights are drawn for it anywhere.
  const Arguments ask{"--ids", "1,2", "-n", "6", "--temp", "0", "--device", "cpu"};
  auto generate = [&](Arguments arguments) {
    arguments.insert(arguments.begin(), "generate");
    arguments.insert(arguments.end(), ask.begin(), ask.end());
    return run(arguments);
  };
  const Outcome by_run = generate({"--model", path("whole")});
  EXPECT_EQ(by_run.code, 0);
  EXPECT_NE(by_run.err.find("tiny is a built-in configuration"), std::string::npos) << by_run.err;
  const Outcome by_base =
      generate({"--model", "tiny", "--random-weights", "--adapter", path("whole")});
  EXPECT_EQ(by_base.out, by_run.out);
  EXPECT_EQ(by_base.err.find("note"), std::string::npos) << by_base.err;
}

TEST_F(Finetune, EvaluatesAndGeneratesOnTheRoundedBaseThatItTunedOn) {
  fs::create_directories(path("data"));
  for (const char* split : {"train", "val"})
    fs::copy_file(path("rows.jsonl"), path("data") + "/" + split + ".jsonl");
  const Outcome tuned =
      run(flags("run", {"--data", path("data"), "--iters", "3", "--eval-every", "3", "--json",
                        "--quantize-base", "nf4", "--targets", "attention"}));
  ASSERT_EQ(tuned.code, 0) << tuned.err;
  const double loss = Json::parse(tuned.out, "stdout").at("val_loss").as_double();
  auto evaluated = [&](const std::string& base) {
    const Outcome o = run({"evaluate", "--model", path("run"), "--data", path("data"), "--pack",
                           "off", "--quantize-base", base, "--json", "--device", "cpu"});
    EXPECT_EQ(o.code, 0) << o.err;
    return Json::parse(o.out, "stdout").at("cross_entropy").as_double();
  };
  EXPECT_NEAR(evaluated("nf4"), loss, 1e-5);
  EXPECT_GT(std::abs(evaluated("off") - loss), 1e-4);
  EXPECT_GT(std::abs(evaluated("fp8") - loss), 1e-4);

  // Decoding, a token at a time, gives the text the probability that evaluation gives it.
  const Outcome generated =
      run({"generate", "--model", path("run"), "--quantize-base", "nf4", "--ids", "1", "-n", "5",
           "--temp", "0", "--json", "--logprobs", "--device", "cpu"});
  ASSERT_EQ(generated.code, 0) << generated.err;
  const Json text = Json::parse(generated.out, "stdout");
  std::vector<int64_t> ids;
  double sum = 0;
  for (const Json& id : text.at("ids").items()) ids.push_back(id.as_int());
  for (const Json& token : text.at("logprobs").items()) sum += token.as_double();
  write_file(path("text.jsonl"), fmt::format("{{\"input_ids\": [{}]}}\n", fmt::join(ids, ", ")));
  const Outcome scored = run({"evaluate", "--model", path("run"), "--data", path("text.jsonl"),
                              "--quantize-base", "nf4", "--json", "--device", "cpu"});
  ASSERT_EQ(scored.code, 0) << scored.err;
  const Json figures = Json::parse(scored.out, "stdout");
  EXPECT_NEAR(figures.at("cross_entropy").as_double() * figures.at("tokens").as_double(), -sum,
              1e-4);
}

TEST_F(Finetune, DrawsTheWeightsOfADirectoryThatHasOnlyAConfiguration) {
  fs::create_directories(path("shape"));
  fs::copy_file(path("base") + "/config.json", path("shape") + "/config.json");
  const Arguments more{"--model", path("shape"), "--iters", "2"};
  EXPECT_EQ(run(flags("without", more)).code, 1);
  Arguments drawn = more;
  drawn.emplace_back("--random-weights");
  EXPECT_EQ(run(flags("with", drawn)).code, 0);
  drawn.insert(drawn.end(), {"--method", "dpo-full", "--data", path("pairs.jsonl")});
  const Outcome preferences = run(flags("preferences", drawn));
  EXPECT_EQ(preferences.code, 0) << preferences.err;
}

}  // namespace
}  // namespace mixtral
