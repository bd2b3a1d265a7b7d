#include "train/train_state.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace mixtral {
namespace {

constexpr int64_t kMost = int64_t{1} << 53;  // what JSON's numbers hold exactly

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

/// A count from 0 to `most`.
int64_t read_count(const Json& json, int64_t most) {
  const int64_t value = json.as_int();
  if (value < 0 || value > most)
    throw Error(fmt::format("{}: expected 0 to {}, found {}", json.where(), most, value));
  return value;
}

double read_finite(const Json& json) {
  const double value = read_exact(json);
  if (!std::isfinite(value))
    throw Error(fmt::format("{}: expected a finite number, found {}", json.where(), value));
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
  state.step = read_count(json.at("step"), kMost);
  state.tokens = read_count(json.at("tokens"), kMost);
  state.seed = read_seed(json.at("random").at("seed"));
  state.optimizer_steps = read_count(json.at("optimizer").at("steps"), state.step);
  if (const Json& best = json.at("best"); !best.is_null())
    state.best = {.step = read_count(best.at("step"), state.step),
                  .val_loss = read_finite(best.at("exact"))};
  if (const Json& loss = json.at("val_loss"); !loss.is_null()) state.val_loss = read_exact(loss);
  state.evaluations_since_best = read_count(json.at("evaluations_since_best"), state.step);
  state.skipped = read_count(json.at("skipped"), state.step);
  state.skipped_in_row = read_count(json.at("skipped_in_row"), state.skipped);
  const Json& window = json.at("window");
  state.window_steps = read_count(window.at("steps"), state.step);
  state.window_loss = read_finite(window.at("loss"));
  state.train_loss = read_exact(window.at("last_train_loss"));
  state.seconds = json.at("seconds").as_double();
  if (!(state.seconds >= 0))
    throw Error(fmt::format("{}: expected a time of 0 or more, found {}",
                            json.at("seconds").where(), state.seconds));
  return state;
}

}  // namespace mixtral
