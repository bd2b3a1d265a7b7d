#include "serve/experts.h"

#include <fmt/format.h>

#include <optional>
#include <string>

#include "base/numbers.h"
#include "base/printable.h"
#include "serve/api_error.h"
#include "serve/fields.h"
#include "serve/openai_json.h"
#include "serve/query.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;
using std::chrono::seconds;

struct Query {
  std::optional<seconds> window;
  std::string model;
};

seconds window_of(const std::string& text) {
  const std::optional<int64_t> length = parse_integer(text);
  if (!length || *length < 1 || *length > ExpertHistory::kMost.count())
    throw bad_field("window", fmt::format("expected a whole number of seconds from 1 to {}, "
                                          "found '{}'",
                                          ExpertHistory::kMost.count(), printable(text)));
  return seconds(*length);
}

Query read_query(const HttpHead& head) {
  Query query;
  for (const auto& [name, value] : query_of(head)) {
    if (name == "window")
      query.window = window_of(value);
    else if (name == "model")
      query.model = value;
    else
      throw ApiError(
          400, fmt::format("expected ?window=SECONDS and ?model=NAME, found ?{}", printable(name)),
          "window");
  }
  return query;
}

}  // namespace

void add_experts_route(Router& router, Models& models) {
  router.add({.method = "GET",
              .path = "/experts",
              .handler = [&models](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
                const Query query = read_query(http.head);
                const auto service = models.loaded(query.model);
                (void)service->model(query.model);
                const ExpertHistory::Window window = service->experts().window(query.window);
                const ExpertLoad& load = window.load;
                ordered_json counts = ordered_json::array();
                for (int64_t layer = 0; layer < load.layers; ++layer) {
                  const auto row = load.taken.begin() + layer * load.experts;
                  counts.push_back(std::vector<int64_t>(row, row + load.experts));
                }
                const ordered_json answer = {{"layers", load.layers},
                                             {"experts", load.experts},
                                             {"experts_per_token", window.experts_per_token},
                                             {"tokens", load.tokens},
                                             {"seconds", window.seconds},
                                             {"counts", counts}};
                reply->send(json_response(answer));
              }});
}

}  // namespace mixtral::serve
