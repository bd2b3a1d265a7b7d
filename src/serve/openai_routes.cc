#include <string>
#include <string_view>

#include "serve/front_ends.h"
#include "serve/model_route.h"
#include "serve/openai_chat.h"
#include "serve/openai_completions.h"
#include "serve/openai_json.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

std::string_view word(Models::State state) {
  switch (state) {
    case Models::State::unloaded:
      return "unloaded";
    case Models::State::loading:
      return "loading";
    case Models::State::unloading:
      return "unloading";
    case Models::State::loaded:
      break;
  }
  return "loaded";
}

ordered_json model_json(const Models::Listed& listed, const std::string& id) {
  ordered_json json{{"id", id}, {"object", "model"}, {"created", 0}, {"owned_by", "mixtral"}};
  json["status"] = {{"value", word(listed.state)}, {"pinned", listed.pinned}};
  if (!listed.failure.empty()) json["status"]["failure"] = listed.failure;
  if (listed.service) {
    json["created"] = listed.service->created();
    json["context_length"] = listed.service->context();
  }
  json["parent"] = id == listed.id ? ordered_json() : ordered_json(listed.id);
  return json;
}

/// Each model, and behind it its adapters.
ordered_json models_json(const Models& models) {
  ordered_json data = ordered_json::array();
  for (const Models::Listed& listed : models.list()) {
    if (!listed.service) {
      data.push_back(model_json(listed, listed.id));
      continue;
    }
    for (const ServedModel& model : listed.service->models())
      data.push_back(model_json(listed, model.id));
  }
  return data;
}

}  // namespace

void add_openai_routes(Router& router, Models& models) {
  router.add({.method = "GET",
              .path = "/v1/models",
              .handler = [&models](const HttpRequest&, const std::shared_ptr<Reply>& reply) {
                reply->send(json_response({{"object", "list"}, {"data", models_json(models)}}));
              }});
  router.add({.method = "GET",
              .path = "/v1/models/{model}",
              .handler = [&models](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
                for (const ordered_json& json : models_json(models))
                  if (json["id"] == http.parts[0]) return reply->send(json_response(json));
                throw unknown_model(http.parts[0]);
              }});
  add_model_route(router, models, "/v1/chat/completions", answer_chat);
  add_model_route(router, models, "/v1/completions", answer_completion);
}

}  // namespace mixtral::serve
