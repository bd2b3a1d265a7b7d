#include "cli/sampling_options.h"

#include "cli/run_config.h"

namespace mixtral {

void SamplingOptions::add_to(cli::App& command) {
  command.add_option("-n,--max-tokens", max_tokens, "New tokens, at most")
      ->capture_default_str()
      ->check(cli::Range(int64_t{1}, int64_t{1} << 30));
  command.add_option("--temp,--temperature", temperature, "0: always the most probable token")
      ->capture_default_str()
      ->check(between(0, 100));
  command.add_option("--top-k", top_k, "Draw from the k most probable tokens; 0: all")
      ->capture_default_str()
      ->check(at_least(0));
  command.add_option("--top-p", top_p, "Draw from the fewest tokens with this probability")
      ->capture_default_str()
      ->check(between(0, 1));
  command.add_option("--min-p", min_p, "Drop tokens below this share of the best one's")
      ->capture_default_str()
      ->check(between(0, 1));
  command.add_option("--repeat-penalty", repeat_penalty, "Above 1: discourage recent tokens")
      ->capture_default_str()
      ->check(between(0.01, 100));
  command.add_option("--repeat-last-n", repeat_last_n, "Tokens that the penalty looks back on")
      ->capture_default_str()
      ->check(cli::Range(0, 1 << 20));
  command.add_option("--stop", stop, "Text that ends the generation (may be repeated)");
  command.add_flag("--ignore-eos", ignore_eos, "Go on past the end-of-text token");
}

TextOptions SamplingOptions::text_options(uint64_t seed,
                                          const std::vector<int64_t>& eos_ids) const {
  TextOptions options{.stop = stop};
  options.tokens.sampling.temperature = temperature;
  options.tokens.sampling.top_k = top_k;
  options.tokens.sampling.top_p = top_p;
  options.tokens.sampling.min_p = min_p;
  options.tokens.sampling.repeat_penalty = repeat_penalty;
  options.tokens.sampling.seed = seed;
  options.tokens.repeat_last_n = repeat_last_n;
  options.tokens.max_tokens = max_tokens;
  if (!ignore_eos) options.tokens.stop_ids = eos_ids;
  return options;
}

}  // namespace mixtral
