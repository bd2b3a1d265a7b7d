#include "serve/model_route.h"

#include "serve/fields.h"

namespace mixtral::serve {

void add_model_route(Router& router, Models& models, const std::string& path, ModelAnswer answer,
                     ErrorWriter error) {
  router.add(
      {.method = "POST",
       .path = path,
       .handler =
           [&models, answer, error](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
             const Json body = parse_body(http.body);
             const Json* name = body.is_object() ? body.find("model") : nullptr;
             models.use(
                 name != nullptr && name->is_string() ? name->as_string() : std::string(),
                 [body, answer, reply, head = http.head](const std::shared_ptr<Service>& service) {
                   answer(*service, body, head, reply);
                 },
                 [reply, error](const ApiError& failure) { reply->send(error(failure)); });
           },
       .error = error});
}

}  // namespace mixtral::serve
