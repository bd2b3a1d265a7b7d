#include "base/temporary_name.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <cstdint>
#include <ctime>

namespace mixtral {
namespace {

constexpr std::string_view kMark = ".mixtral-tmp-";
constexpr size_t kDigits = 16;
constexpr size_t kLongestKept = 200;  // of a name, so that the whole stays within 255 bytes

uint64_t unforeseeable() {
  uint64_t value = 0;
  if (::getrandom(&value, sizeof value, 0) == static_cast<ssize_t>(sizeof value)) return value;
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_nsec) << 32 ^ static_cast<uint64_t>(now.tv_sec);
}

}  // namespace

std::string temporary_name(std::string_view name) {
  return fmt::format(".{}{}{:016x}", name.substr(0, kLongestKept), kMark, unforeseeable());
}

bool is_temporary_name(std::string_view name) {
  if (!name.starts_with('.') || name.size() < 1 + kMark.size() + kDigits) return false;
  const std::string_view digits = name.substr(name.size() - kDigits);
  name.remove_suffix(kDigits);
  return name.ends_with(kMark) && std::ranges::all_of(digits, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

std::vector<std::filesystem::path> remove_temporaries(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    if (is_temporary_name(entry.path().filename().string())) found.push_back(entry.path());
  std::ranges::sort(found);
  for (const auto& path : found) std::filesystem::remove_all(path);  // follows no links
  return found;
}

}  // namespace mixtral
