#include "train/train_state.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace mixtral {
namespace {

// Doubles are written as text where a number might not survive: JSON has no NaN.
nlohmann::ordered_json exact(double value) { return fmt::format("{:a}", value); }

double read_exact(const Json& json) {
  const std::string& text = json.as_string();
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || end != text.c_str() + text.size())
    throw Error(fmt::format("{}: expected a number, found \"{}\"", json.where(), printable(text)));
  return value;
}

uint64_t read_seed(const Json& json) {
  const std::string& text = json.as_string();
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw Error(fmt::format("{}: expected a seed, found \"{}\"", json.where(), printable(text)));
  return value;
}

}  // namespace

std::string TrainState::to_json() const {
  nlohmann::ordered_json json;
  json["version"] = 1;
  json["step"] = step;
  json["tokens"] = tokens;
  json["random"] = {{"seed", std::to_string(seed)}, {"step", step}};
  json["optimizer"] = {{"steps", optimizer_steps}};
  json["data"] = nlohmann::ordered_json::parse(data);
  json["best"] = best ? nlohmann::ordered_json{{"step", best->step},
                                               {"val_loss", best->val_loss},
                                               {"exact", exact(best->val_loss)}}
                      : nlohmann::ordered_json();
  json["val_loss"] = val_loss ? exact(*val_loss) : nlohmann::ordered_json();
  json["evaluations_since_best"] = evaluations_since_best;
  json["skipped"] = skipped;
  json["skipped_in_row"] = skipped_in_row;
  json["window"] = {{"steps", window_steps},
                    {"loss", exact(window_loss)},
                    {"last_train_loss", exact(train_loss)}};
  json["seconds"] = seconds;
  return json.dump(2) + "\n";
}

TrainState TrainState::parse(const Json& json) {
  const int64_t version = json.at("version").as_int();
  if (version != 1)
    throw Error(fmt::format(
        "{}: version {} is not one this program knows (1); it was written by a newer one",
        json.where(), version));
  TrainState state;
  state.step = json.at("step").as_int();
  state.tokens = json.at("tokens").as_int();
  state.seed = read_seed(json.at("random").at("seed"));
  state.optimizer_steps = json.at("optimizer").at("steps").as_int();
  if (const Json& best = json.at("best"); !best.is_null())
    state.best = {.step = best.at("step").as_int(), .val_loss = read_exact(best.at("exact"))};
  if (const Json& loss = json.at("val_loss"); !loss.is_null()) state.val_loss = read_exact(loss);
  state.evaluations_since_best = json.at("evaluations_since_best").as_int();
  state.skipped = json.at("skipped").as_int();
  state.skipped_in_row = json.at("skipped_in_row").as_int();
  const Json& window = json.at("window");
  state.window_steps = window.at("steps").as_int();
  state.window_loss = read_exact(window.at("loss"));
  state.train_loss = read_exact(window.at("last_train_loss"));
  state.seconds = json.at("seconds").as_double();
  return state;
}

}  // namespace mixtral
