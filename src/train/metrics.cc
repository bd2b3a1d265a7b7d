#include "train/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(std::string_view what, const fs::path& path) {
  throw Error(fmt::format("cannot {} {}: {}", what, path.string(), std::strerror(errno)));
}

double number_or_nan(const Json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.as_double();
}

/// Calls take(line, number) for each whole line, until it returns false. Returns how many bytes the
/// lines that were taken have.
template <class Take>
size_t for_each_line(std::string_view text, const Take& take) {
  size_t begin = 0;
  for (int64_t number = 1; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) break;
    if (!take(text.substr(begin, end - begin), number)) break;
    begin = end + 1;
  }
  return begin;
}

}  // namespace

std::string MetricsLine::to_json() const {
  nlohmann::ordered_json json;
  json["step"] = step;
  json["tokens"] = tokens;
  json["loss"] = loss;
  json["cross_entropy"] = cross_entropy;
  json["train_loss"] = train_loss;
  if (val_loss) json["val_loss"] = *val_loss;
  json["lr"] = lr;
  json["grad_norm"] = grad_norm;
  json["aux_loss"] = aux_loss;
  json["z_loss"] = z_loss;
  for (const auto& [name, value] : more) json[name] = value;
  if (router) {
    auto& object = json["router"];
    object["load"] = router->load;
    object["entropy"] = router->entropy;
    object["dead"] = router->dead;
  }
  json["skipped"] = skipped;
  json["tok_per_s"] = tok_per_s;
  json["it_per_s"] = it_per_s;
  json["peak_bytes"] = peak_bytes;
  json["seconds"] = seconds;
  return json.dump();
}

MetricsLine MetricsLine::parse(const Json& json) {
  MetricsLine line;
  for (const auto& [key, value] : json.members()) {
    if (key == "step") {
      line.step = value.as_int();
    } else if (key == "tokens") {
      line.tokens = value.as_int();
    } else if (key == "loss") {
      line.loss = number_or_nan(value);
    } else if (key == "cross_entropy") {
      line.cross_entropy = number_or_nan(value);
    } else if (key == "train_loss") {
      line.train_loss = number_or_nan(value);
    } else if (key == "val_loss") {
      line.val_loss = number_or_nan(value);
    } else if (key == "lr") {
      line.lr = number_or_nan(value);
    } else if (key == "grad_norm") {
      line.grad_norm = number_or_nan(value);
    } else if (key == "aux_loss") {
      line.aux_loss = number_or_nan(value);
    } else if (key == "z_loss") {
      line.z_loss = number_or_nan(value);
    } else if (key == "router") {
      RouterFigures& router = line.router.emplace();
      for (const Json& layer : value.at("load").items()) {
        auto& shares = router.load.emplace_back();
        for (const Json& share : layer.items()) shares.push_back(number_or_nan(share));
        const size_t experts = router.load.front().size();
        if (shares.empty() || shares.size() != experts)
          throw Error(fmt::format("{}: expected the shares of {} experts, found {}", layer.where(),
                                  experts > 0 ? std::to_string(experts) : "one or more",
                                  shares.size()));
      }
      for (const Json& entropy : value.at("entropy").items())
        router.entropy.push_back(number_or_nan(entropy));
      router.dead = value.at("dead").as_int();
    } else if (key == "skipped") {
      line.skipped = value.as_int();
    } else if (key == "tok_per_s") {
      line.tok_per_s = number_or_nan(value);
    } else if (key == "it_per_s") {
      line.it_per_s = number_or_nan(value);
    } else if (key == "peak_bytes") {
      line.peak_bytes = value.as_int();
    } else if (key == "seconds") {
      line.seconds = number_or_nan(value);
    } else if (value.is_number()) {
      line.more.emplace_back(key, value.as_double());
    }
  }
  return line;
}

MetricsLog::MetricsLog(fs::path path, int64_t last_step) : path_(std::move(path)) {
  size_t keep = 0;
  if (fs::exists(path_)) {
    const MappedFile file(path_);
    keep = for_each_line(file.text(), [&](std::string_view text, int64_t) {
      try {
        return MetricsLine::parse(Json::parse(text, path_.string())).step <= last_step;
      } catch (const Error&) {
        return false;  // torn by a crash: it and what follows will be written again
      }
    });
  }
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail("open", path_);
  if (::ftruncate(descriptor_, static_cast<off_t>(keep)) != 0) {
    ::close(descriptor_);
    fail("truncate", path_);
  }
}

MetricsLog::~MetricsLog() { ::close(descriptor_); }

void MetricsLog::append(const MetricsLine& line) {
  const std::string text = line.to_json() + "\n";
  std::string_view rest = text;
  while (!rest.empty()) {
    const ssize_t written = ::write(descriptor_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("append to", path_);
    rest.remove_prefix(static_cast<size_t>(written));
  }
}

void MetricsLog::sync() {
  if (::fdatasync(descriptor_) != 0) fail("sync", path_);
}

std::vector<MetricsLine> read_metrics(const fs::path& path) {
  const MappedFile file(path);
  std::vector<MetricsLine> lines;
  for_each_line(file.text(), [&](std::string_view text, int64_t number) {
    lines.push_back(
        MetricsLine::parse(Json::parse(text, fmt::format("{}:{}", path.string(), number))));
    return true;
  });
  return lines;
}

}  // namespace mixtral
