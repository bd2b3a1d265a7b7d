#include "serve/query.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "base/printable.h"
#include "serve/access.h"
#include "serve/api_error.h"

namespace mixtral::serve {

std::vector<std::pair<std::string, std::string>> query_of(const HttpHead& head) {
  std::vector<std::pair<std::string, std::string>> items;
  const size_t mark = head.target.find('?');
  if (mark == std::string::npos) return items;
  std::string_view rest = std::string_view(head.target).substr(mark + 1);
  rest = rest.substr(0, rest.find('#'));
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(item.size() + 1, rest.size()));
    const size_t equals = std::min(item.find('='), item.size());
    auto name = percent_decoded(item.substr(0, equals));
    auto value = percent_decoded(item.substr(std::min(equals + 1, item.size())));
    if (!name || !value)
      throw ApiError(400, fmt::format("the query ?{} cannot be decoded", printable(item)));
    items.emplace_back(std::move(*name), std::move(*value));
  }
  return items;
}

}  // namespace mixtral::serve
