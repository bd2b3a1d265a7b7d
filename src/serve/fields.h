#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace mixtral::serve {

/// The JSON of a request's body. Throws ApiError 400: not UTF-8, not JSON, a name twice, NaN,
/// numbers past f64, nested too deeply, no object.
Json parse_body(std::string_view body);

/// Reads an object of a request field by field, and refuses what nobody asked for: finish() throws
/// when a member was not taken. null is as absent. All functions throw ApiError 400 naming the
/// field ("messages[2].content").
class Fields {
 public:
  /// `object` must outlive this. `path` is where it stands: "" for the whole body, else
  /// "stream_options". Throws where it is no object.
  explicit Fields(const Json& object, std::string path = {});

  /// The member, or null where it is absent or null.
  const Json* take(std::string_view name);
  /// The same; throws where it is absent or null.
  const Json& need(std::string_view name);
  std::optional<bool> boolean(std::string_view name);
  std::optional<int64_t> integer(std::string_view name, int64_t least, int64_t most);
  std::optional<double> number(std::string_view name, double least, double most);
  std::optional<std::string> text(std::string_view name,
                                  size_t most_bytes = std::numeric_limits<size_t>::max());
  /// The same; throws where it is absent or null.
  std::string need_text(std::string_view name);
  /// Members that change nothing here.
  void ignore(std::initializer_list<std::string_view> names);
  /// Throws where members are left, naming the first and, where one is near, a known name.
  void finish() const;

  /// "stream_options.include_usage".
  std::string path_of(std::string_view name) const;

 private:
  const Json& object_;
  std::string path_;
  std::set<std::string, std::less<>> known_;
};

/// The items of an array. `path` is where it stands; throws where it is none.
const Json::Array& array_of(const Json& value, const std::string& path);

/// "path[index]".
std::string element(const std::string& path, size_t index);

}  // namespace mixtral::serve
