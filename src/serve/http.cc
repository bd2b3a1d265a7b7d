#include "serve/http.h"

#include <algorithm>

namespace mixtral::serve {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, {}, lower, lower);
}

std::string_view HttpHead::header(std::string_view name) const {
  const auto found = std::ranges::find_if(
      headers, [&](const auto& item) { return equal_ignoring_case(item.first, name); });
  return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

size_t HttpHead::count(std::string_view name) const {
  return static_cast<size_t>(std::ranges::count_if(
      headers, [&](const auto& item) { return equal_ignoring_case(item.first, name); }));
}

std::string_view HttpHead::path() const {
  return std::string_view(target).substr(0, target.find_first_of("?#"));
}

}  // namespace mixtral::serve
