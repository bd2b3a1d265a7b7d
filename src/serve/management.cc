#include "serve/management.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/printable.h"
#include "serve/fields.h"
#include "serve/openai_json.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMostName = 128;

/// A name that a request can use behind "BASE:".
std::string adapter_name(Fields& fields) {
  std::string name = fields.need_text("lora_name");
  const bool plain = std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_-.").find(c) != std::string_view::npos;
  });
  if (name.empty() || name.size() > kMostName || !plain)
    throw bad_field("lora_name", fmt::format("expected 1 to {} letters, digits, '_', '-' and '.', "
                                             "found {}",
                                             kMostName, printable(name)));
  return name;
}

Models::Done answer_when_done(const std::shared_ptr<Reply>& reply, ordered_json done) {
  return [reply, done = std::move(done)](const ApiError* error) {
    reply->send(error != nullptr ? openai_error(*error) : json_response(done));
  };
}

void load(Models& models, Fields& fields, const std::shared_ptr<Reply>& reply) {
  const std::string model = fields.need_text("model");
  const bool pin = fields.boolean("pin").value_or(false);
  fields.finish();
  models.load(model, pin,
              answer_when_done(reply, {{"success", true}, {"model", model}, {"pinned", pin}}));
}

void unload(Models& models, Fields& fields, const std::shared_ptr<Reply>& reply) {
  const std::string model = fields.need_text("model");
  fields.finish();
  models.unload(model, answer_when_done(reply, {{"success", true}, {"model", model}}));
}

std::string base_of(Models& models, Fields& fields) {
  return fields.text("model").value_or(models.first());
}

void load_adapter(Models& models, Fields& fields, const std::shared_ptr<Reply>& reply) {
  const std::string base = base_of(models, fields), name = adapter_name(fields);
  const std::string entry = fields.need_text("lora_path");
  fields.finish();
  models.load_adapter(
      base, name, entry,
      answer_when_done(reply, {{"success", true}, {"model", fmt::format("{}:{}", base, name)}}));
}

void unload_adapter(Models& models, Fields& fields, const std::shared_ptr<Reply>& reply) {
  const std::string base = base_of(models, fields), name = adapter_name(fields);
  fields.ignore({"lora_int_id"});
  fields.finish();
  models.unload_adapter(
      base, name,
      answer_when_done(reply, {{"success", true}, {"model", fmt::format("{}:{}", base, name)}}));
}

using Change = void (*)(Models&, Fields&, const std::shared_ptr<Reply>&);

}  // namespace

void add_management_routes(Router& router, Models& models) {
  const auto add = [&](const char* path, Change change) {
    router.add(
        {.method = "POST",
         .path = path,
         .handler =
             [&models, change](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
               const Json body = parse_body(http.body);
               Fields fields(body);
               change(models, fields, reply);
             },
         .access = Access::administrator});
  };
  add("/v1/models/load", load);
  add("/v1/models/unload", unload);
  add("/v1/load_lora_adapter", load_adapter);
  add("/v1/unload_lora_adapter", unload_adapter);
}

}  // namespace mixtral::serve
