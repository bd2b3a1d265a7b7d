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

/// Calls take(line, number) for each line that has an end.
template <class Take>
void for_each_line(std::string_view text, const Take& take) {
  size_t begin = 0;
  for (int64_t number = 1; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) break;
    take(text.substr(begin, end - begin), number);
    begin = end + 1;
  }
}

/// What a run that goes on from `last_step` keeps of its metrics.
struct Kept {
  std::string text;
  std::vector<int64_t> damaged;  // numbers of the lines that cannot be read
};

Kept read_kept(const fs::path& path, std::string_view text, int64_t last_step) {
  Kept kept;
  for_each_line(text, [&](std::string_view line, int64_t number) {
    try {
      if (MetricsLine::parse(Json::parse(line, path.string())).step > last_step) return;
      kept.text += line;
      kept.text += '\n';
    } catch (const Error&) {
      kept.damaged.push_back(number);
    }
  });
  return kept;
}

/// "metrics.jsonl.damaged", or with a number where there is one already.
fs::path free_name_beside(const fs::path& path) {
  fs::path aside = path.string() + ".damaged";
  for (int i = 2; fs::exists(fs::symlink_status(aside)); ++i)
    aside = fmt::format("{}.damaged-{}", path.string(), i);
  return aside;
}

void require_own_file(const fs::path& path) {
  const fs::file_type type = fs::symlink_status(path).type();
  if (type == fs::file_type::regular || type == fs::file_type::not_found) return;
  throw Error(fmt::format(
      "{} is {}, and a run's metrics go to a regular file of its own; remove it", path.string(),
      type == fs::file_type::symlink ? "a symbolic link" : "no regular file"));
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

MetricsLog::MetricsLog(fs::path path, int64_t last_step, const Note& note)
    : path_(std::move(path)) {
  require_own_file(path_);
  if (fs::exists(path_)) {
    const MappedFile file(path_);
    const Kept kept = read_kept(path_, file.text(), last_step);
    if (!kept.damaged.empty()) {
      const fs::path aside = free_name_beside(path_);
      write_file(aside, file.text());
      if (note)
        note(fmt::format(
            "{}: {} cannot be read and {} left out; the file as it was is now {}", path_.string(),
            kept.damaged.size() == 1 ? fmt::format("line {}", kept.damaged.front())
                                     : fmt::format("{} lines from line {} on", kept.damaged.size(),
                                                   kept.damaged.front()),
            kept.damaged.size() == 1 ? "is" : "are", aside.string()));
    }
    if (kept.text != file.text()) write_file(path_, kept.text);
  }
  descriptor_ = ::open(path_.c_str(),
                       O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail("open", path_);
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
  });
  return lines;
}

}  // namespace mixtral
