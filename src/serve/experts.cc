#include "serve/experts.h"

#include <fmt/format.h>

#include "base/numbers.h"
#include "base/printable.h"
#include "serve/api_error.h"
#include "serve/openai_fields.h"
#include "serve/openai_json.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;
using std::chrono::seconds;

/// The length of "window=SECONDS".
std::optional<seconds> window_of(const HttpHead& head) {
  const size_t mark = head.target.find('?');
  if (mark == std::string::npos) return std::nullopt;
  const std::string_view query = std::string_view(head.target).substr(mark + 1);
  constexpr std::string_view kName = "window=";
  if (!query.starts_with(kName))
    throw ApiError(400, fmt::format("expected ?window=SECONDS, found ?{}", printable(query)),
                   "window");
  const std::optional<int64_t> length = parse_integer(query.substr(kName.size()));
  if (!length || *length < 1 || *length > ExpertHistory::kMost.count())
    throw bad_field(
        "window", fmt::format("expected a whole number of seconds from 1 to {}, "
                              "found '{}'",
                              ExpertHistory::kMost.count(), printable(query.substr(kName.size()))));
  return seconds(*length);
}

}  // namespace

void add_experts_route(Router& router, const ExpertHistory& history) {
  router.add({.method = "GET",
              .path = "/experts",
              .handler = [&history](const HttpRequest& http, const std::shared_ptr<Reply>& reply) {
                const ExpertHistory::Window window = history.window(window_of(http.head));
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
