#include "cli/evaluate_stories.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <array>
#include <nlohmann/json.hpp>

#include "base/messages.h"
#include "infer/methods.h"
#include "stories/names.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

constexpr std::array<std::string_view, 2> kPrompts = {"Once there was a girl named",
                                                      "Once there was a boy named"};

struct ToldStory {
  std::string text;
  stories::NameCount names;
};

std::vector<ToldStory> tell(Engine& engine, const Tokenizer& tokenizer,
                            const std::vector<int64_t>& stop_ids, const ScoringOptions& o,
                            const StoryScoringOptions& how) {
  const bool terminal = !o.common.quiet && ::isatty(STDERR_FILENO) != 0;
  std::vector<ToldStory> told;
  for (int64_t i = 0; i < how.stories; ++i) {
    const std::string_view prompt = kPrompts[static_cast<size_t>(i) % kPrompts.size()];
    TextOptions options;
    options.tokens.sampling.temperature = static_cast<float>(how.temperature);
    options.tokens.sampling.seed = o.common.seed + static_cast<uint64_t>(i);
    options.tokens.max_tokens = how.max_tokens;
    options.tokens.stop_ids = stop_ids;
    const GeneratedText text =
        generate(engine, &tokenizer, prompt_tokens(tokenizer, prompt), options);
    ToldStory story{.text = std::string(prompt) + text.text, .names = {}};
    story.names = stories::count_names(story.text);
    told.push_back(std::move(story));
    if (terminal) messages::redraw(fmt::format("{} of {} stories", i + 1, how.stories));
  }
  if (terminal) messages::clear();
  return told;
}

}  // namespace

void run_story_scoring(const ScoringOptions& o, const StoryScoringOptions& how) {
  const ModelSource source = open_source(o.common, {o.model, o.adapter, o.tokenizer});
  const auto tokenizer = source.require_tokenizer();
  const ModelConfig& config = source.config();
  require_positions(o.context, config);
  const int64_t context =
      o.context > 0 ? o.context : std::min(config.max_positions, how.max_tokens + 64);
  const OpenedModel open = open_model(o.common, source, o.common.open_options(context));
  Engine engine(*open.backend, *open.model, open.engine_options());
  const auto told = tell(engine, *tokenizer, source.stop_ids(), o, how);
  int64_t mentions = 0, introduced = 0, whole = 0;
  for (const ToldStory& story : told) {
    mentions += story.names.mentions;
    introduced += story.names.introduced;
    whole += story.names.stray.empty();
  }
  const double share =
      mentions > 0 ? static_cast<double>(introduced) / static_cast<double>(mentions) : 0;
  if (o.common.json) {
    ordered_json json{{"stories", told.size()},
                      {"names", mentions},
                      {"introduced", introduced},
                      {"share", share},
                      {"stories_without_stray_names", whole},
                      {"told", ordered_json::array()}};
    for (const ToldStory& story : told)
      json["told"].push_back({{"text", story.text}, {"stray", story.names.stray}});
    fmt::print("{}\n", json.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
    return;
  }
  for (size_t i = 0; i < told.size() && static_cast<int64_t>(i) < how.show; ++i) {
    fmt::print("{}\n", told[i].text);
    if (!told[i].names.stray.empty())
      fmt::print("  (never introduced: {})\n", fmt::join(told[i].names.stray, ", "));
    fmt::print("\n");
  }
  fmt::print(
      "names that stay  {:.1f}% ({} of {} mentions are of somebody whom the story had "
      "introduced)\n",
      100 * share, introduced, mentions);
  fmt::print("stories          {} of {} name nobody else\n", whole, told.size());
}

}  // namespace mixtral
