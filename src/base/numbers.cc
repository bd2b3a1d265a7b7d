#include "base/numbers.h"

#include <charconv>

namespace mixtral {
namespace {

template <class T>
std::optional<T> parse(std::string_view text) {
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::optional<int64_t> parse_integer(std::string_view text) { return parse<int64_t>(text); }
std::optional<uint64_t> parse_unsigned(std::string_view text) { return parse<uint64_t>(text); }
std::optional<double> parse_number(std::string_view text) { return parse<double>(text); }

}  // namespace mixtral
