#include "serve/front_ends.h"
#include "serve/openai_chat.h"
#include "serve/openai_completions.h"
#include "serve/openai_json.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

ordered_json model_json(const Service& service, const ServedModel& model) {
  ordered_json json{{"id", model.id},
                    {"object", "model"},
                    {"created", service.created()},
                    {"owned_by", "mixtral"},
                    {"context_length", service.context()}};
  json["parent"] = model.parent.empty() ? ordered_json() : ordered_json(model.parent);
  return json;
}

}  // namespace

void add_openai_routes(Router& router, Service& service) {
  router.add({.method = "GET",
              .path = "/v1/models",
              .handler = [&service](const HttpRequest&, const std::shared_ptr<Reply>& reply) {
                ordered_json data = ordered_json::array();
                for (const ServedModel& model : service.models())
                  data.push_back(model_json(service, model));
                reply->send(json_response({{"object", "list"}, {"data", data}}));
              }});
  router.add({.method = "GET",
              .path = "/v1/models/{model}",
              .handler = [&service](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
                reply->send(json_response(model_json(service, service.model(http.parts[0]))));
              }});
  router.add({.method = "POST",
              .path = "/v1/chat/completions",
              .handler = [&service](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
                answer_chat(service, http, reply);
              }});
  router.add({.method = "POST",
              .path = "/v1/completions",
              .handler = [&service](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
                answer_completion(service, http, reply);
              }});
}

}  // namespace mixtral::serve
