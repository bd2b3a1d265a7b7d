#include "serve/slots.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>

#include "base/printable.h"
#include "serve/cache_file.h"
#include "serve/fields.h"
#include "serve/openai_json.h"
#include "serve/query.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMostName = 128;

struct Action {
  std::string name;  // save, restore, erase
  std::string file, model;
};

/// A file of the folder and nowhere else.
void check_name(const std::string& name) {
  const bool plain = std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_-.").find(c) != std::string_view::npos;
  });
  if (name.empty() || name.size() > kMostName || !plain || name.front() == '.')
    throw bad_field("filename", fmt::format("expected 1 to {} letters, digits, '_', '-' and '.', "
                                            "the first no '.', found {}",
                                            kMostName, printable(name)));
}

Action read_action(const HttpRequest& http, const Models& models) {
  if (http.parts[0] != "0")
    throw ApiError(404, fmt::format("there is no slot {}: all answers share one cache, slot 0",
                                    printable(http.parts[0])));
  Action action;
  for (const auto& [name, value] : query_of(http.head)) {
    if (name != "action")
      throw ApiError(400, fmt::format("expected ?action=, found ?{}", printable(name)), "action");
    action.name = value;
  }
  if (action.name != "save" && action.name != "restore" && action.name != "erase")
    throw bad_field(
        "action", fmt::format("expected save, restore or erase, found {}", printable(action.name)));
  const bool erases = action.name == "erase";
  const Json body = parse_body(erases && http.body.empty() ? "{}" : http.body);
  Fields fields(body);
  action.model = fields.text("model").value_or(models.first());
  if (!erases) action.file = fields.need_text("filename");
  fields.finish();
  if (erases) return action;
  check_name(action.file);
  if (models.states().empty())
    throw ApiError(403, "this server was started without a folder to keep states of its cache in");
  return action;
}

ordered_json act(const Action& action, const std::filesystem::path& folder, Service& service) {
  const auto start = std::chrono::steady_clock::now();
  const auto milliseconds = [&] {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
        .count();
  };
  if (action.name == "erase") {
    int64_t tokens = 0;
    service.engine().with_engine([&](Engine& engine) {
      tokens = engine.prefixes().pages() * engine.cache().page_tokens();
      engine.forget_prefixes();
    });
    return {{"id_slot", 0}, {"n_erased", tokens}};
  }
  const std::filesystem::path path = folder / action.file;
  const bool saves = action.name == "save";
  if (!saves && !std::filesystem::exists(path))
    throw ApiError(404, fmt::format("there is no saved state {}", printable(action.file)),
                   "filename");
  const CacheFileReport report = saves ? save_cache(service.engine(), service.identity(), path)
                                       : restore_cache(service.engine(), service.identity(), path);
  ordered_json json{{"id_slot", 0}, {"filename", action.file}};
  json[saves ? "n_saved" : "n_restored"] = report.tokens;
  json[saves ? "n_written" : "n_read"] = report.bytes;
  json["timings"] = {{saves ? "save_ms" : "restore_ms", milliseconds()}};
  return json;
}

}  // namespace

void add_slots_route(Router& router, Models& models) {
  router.add({.method = "POST",
              .path = "/slots/{id}",
              .handler =
                  [&models](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
                    const Action action = read_action(http, models);
                    models.run(
                        action.model,
                        [&models, action, reply](Service& service) {
                          reply->send(json_response(act(action, models.states(), service)));
                        },
                        [reply](const ApiError& error) { reply->send(openai_error(error)); });
                  },
              .access = Access::administrator});
}

}  // namespace mixtral::serve
