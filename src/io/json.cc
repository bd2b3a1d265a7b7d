#include "io/json.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/file.h"
#include "io/git_lfs.h"

namespace mixtral {
namespace {

namespace ondemand = simdjson::ondemand;

constexpr double kExactIntegers = 0x1p53;  // doubles hold every integer up to here
constexpr int kDeepest = 512;

std::string_view describe(Json::Kind kind) {
  switch (kind) {
    case Json::Kind::null:
      return "null";
    case Json::Kind::boolean:
      return "a boolean";
    case Json::Kind::integer:
    case Json::Kind::number:
      return "a number";
    case Json::Kind::string:
      return "a string";
    case Json::Kind::array:
      return "an array";
    case Json::Kind::object:
      return "an object";
  }
  return "?";
}

std::string_view describe(simdjson::error_code code) {
  switch (code) {
    case simdjson::UTF8_ERROR:
      return "the text is not valid UTF-8";
    case simdjson::UNESCAPED_CHARS:
      return "a string contains a control character that is not escaped";
    case simdjson::UNCLOSED_STRING:
      return "a string is not closed";
    case simdjson::STRING_ERROR:
      return "a string has a bad escape or half of a surrogate pair";
    case simdjson::T_ATOM_ERROR:
    case simdjson::F_ATOM_ERROR:
    case simdjson::N_ATOM_ERROR:
      return "a word other than true, false and null";
    case simdjson::NUMBER_ERROR:
    case simdjson::NUMBER_OUT_OF_RANGE:
      return "a malformed number, or one outside the range of a double";
    case simdjson::EMPTY:
      return "the text is empty";
    case simdjson::INCOMPLETE_ARRAY_OR_OBJECT:
      return "it ends inside an array or object";
    case simdjson::TRAILING_CONTENT:
      return "there is more text after the value";
    case simdjson::MEMALLOC:
      return "out of memory";
    default:
      return "a value, comma, colon or bracket is missing or out of place";
  }
}

}  // namespace

/// Walks simdjson's lazy document once, checks all that it leaves unchecked, and builds the tree.
class JsonReader {
 public:
  JsonReader(std::string_view text, std::string_view source, const JsonLimits& limits)
      : source_(source), limits_(limits) {
    CHECK(limits.depth >= 1 && limits.depth <= kDeepest);
    if (text.size() > limits.bytes)
      throw Error(fmt::format("{}: the JSON text has {} bytes; at most {} are accepted", source,
                              text.size(), limits.bytes));
    if (text.starts_with("\xef\xbb\xbf"))
      throw Error(fmt::format(
          "{}: not valid JSON: it begins with a byte order mark; save it as UTF-8 without one",
          source));
    // simdjson checks a number or word that is the whole document less strictly than one inside an
    // array, so every text is read as the only element of an array.
    text_ = simdjson::padded_string(text.size() + 2);
    text_.data()[0] = '[';
    std::ranges::copy(text, text_.data() + 1);
    text_.data()[text.size() + 1] = ']';
  }

  Json read() {
    Json root(std::make_shared<const Json::Place>(Json::Place{nullptr, source_}), -1);
    check(parser_.iterate(text_).get(document_), root);
    ondemand::array wrapper;
    check(document_.get_array().get(wrapper), root);
    size_t count = 0;
    for (auto element : wrapper) {
      if (++count == 2) fail(simdjson::TRAILING_CONTENT, root);
      ondemand::value value;
      check(std::move(element).get(value), root);
      fill(value, root, 1);
    }
    if (count == 0) fail(simdjson::EMPTY, root);
    // The location is out of bounds once every token has been read.
    const char* rest = nullptr;
    if (document_.current_location().get(rest) == simdjson::SUCCESS)
      fail(simdjson::TRAILING_CONTENT, root);
    return root;
  }

 private:
  [[noreturn]] void fail(simdjson::error_code code, const Json& place) {
    std::string position;
    const char* location = nullptr;
    const bool lost = code == simdjson::UTF8_ERROR || code == simdjson::UNCLOSED_STRING ||
                      code == simdjson::UNESCAPED_CHARS || code == simdjson::EMPTY;
    if (!lost && document_.current_location().get(location) == simdjson::SUCCESS)
      position = fmt::format(" (near byte {})", location - text_.data() - 1);
    throw Error(fmt::format("{}: not valid JSON: {}{}", place.where(), describe(code), position));
  }
  void check(simdjson::error_code code, const Json& place) {
    if (code != simdjson::SUCCESS) fail(code, place);
  }
  static Json::PlacePointer below(const Json& json) {
    if (json.index_ < 0) return json.place_;
    return std::make_shared<const Json::Place>(
        Json::Place{json.place_, fmt::format("[{}]", json.index_)});
  }

  void fill(ondemand::value value, Json& json, int depth) {
    if (++values_ > limits_.values)
      throw Error(fmt::format("{}: at most {} values are accepted", source_, limits_.values));
    ondemand::json_type type;
    check(value.type().get(type), json);
    if (type == ondemand::json_type::array) {
      check_depth(depth);
      fill_array(value, json, depth);
    } else if (type == ondemand::json_type::object) {
      check_depth(depth);
      fill_object(value, json, depth);
    } else {
      fill_scalar(value, type, json);
    }
  }
  void check_depth(int depth) {
    if (depth > limits_.depth)
      throw Error(
          fmt::format("{}: arrays and objects are nested deeper than {}", source_, limits_.depth));
  }

  void fill_array(ondemand::value& value, Json& json, int depth) {
    ondemand::array array;
    check(value.get_array().get(array), json);
    auto items = std::make_shared<Json::Array>();
    const Json::PlacePointer place = below(json);
    for (auto element : array) {
      if (items->size() >= limits_.items)
        throw Error(fmt::format("{}: at most {} items of an array are accepted", json.where(),
                                limits_.items));
      Json& item = items->emplace_back(Json(place, static_cast<int64_t>(items->size())));
      ondemand::value child;
      check(std::move(element).get(child), item);
      fill(child, item, depth + 1);
    }
    json.value_ = std::shared_ptr<const Json::Array>(std::move(items));
  }

  void fill_object(ondemand::value& value, Json& json, int depth) {
    ondemand::object object;
    check(value.get_object().get(object), json);
    auto members = std::make_shared<Json::Object>();
    const Json::PlacePointer place = below(json);
    for (auto entry : object) {
      ondemand::field field;
      check(std::move(entry).get(field), json);
      std::string_view raw;
      check(field.unescaped_key().get(raw), json);
      if (!simdjson::validate_utf8(raw)) fail(simdjson::STRING_ERROR, json);
      std::string key(raw);
      Json& member =
          members
              ->emplace_back(
                  key,
                  Json(std::make_shared<const Json::Place>(Json::Place{place, printable(key)}), -1))
              .second;
      fill(field.value(), member, depth + 1);
    }
    refuse_duplicates(*members, json);
    json.value_ = std::shared_ptr<const Json::Object>(std::move(members));
  }

  static void refuse_duplicates(const Json::Object& members, const Json& json) {
    std::vector<const std::string*> keys(members.size());
    std::ranges::transform(members, keys.begin(), [](const auto& member) { return &member.first; });
    std::ranges::sort(keys, {}, [](const std::string* key) { return std::string_view(*key); });
    const auto twice = std::ranges::adjacent_find(
        keys, [](const std::string* a, const std::string* b) { return *a == *b; });
    if (twice != keys.end())
      throw Error(
          fmt::format("{}: the key \"{}\" appears twice", json.where(), printable(**twice)));
  }

  void fill_scalar(ondemand::value& value, ondemand::json_type type, Json& json) {
    switch (type) {
      case ondemand::json_type::null: {
        bool null = false;
        check(value.is_null().get(null), json);
        if (!null) fail(simdjson::N_ATOM_ERROR, json);
        break;
      }
      case ondemand::json_type::boolean: {
        bool truth = false;
        check(value.get_bool().get(truth), json);
        json.value_ = truth;
        break;
      }
      case ondemand::json_type::string: {
        std::string_view text;
        check(value.get_string().get(text), json);
        // simdjson writes a lone low surrogate's escape as three bytes that are not UTF-8.
        if (!simdjson::validate_utf8(text)) fail(simdjson::STRING_ERROR, json);
        json.value_ = std::make_shared<const std::string>(text);
        break;
      }
      default:
        fill_number(value, json);
    }
  }

  // simdjson checks the form of the number and reads integers. Fractions are read here: both of its
  // ways to them misread more than 19 digits (version 3.0.1).
  void fill_number(ondemand::value& value, Json& json) {
    std::string_view token = value.raw_json_token();
    token = token.substr(0, token.find_last_not_of(" \t\r\n") + 1);
    ondemand::number number;
    const auto error = value.get_number().get(number);
    if (error == simdjson::SUCCESS && number.is_int64()) {
      json.value_ = number.get_int64();
      return;
    }
    // It refuses integers beyond 64 bits, which are numbers like any other.
    if (error != simdjson::SUCCESS && !is_long_integer(token)) fail(error, json);
    double real = 0;
    const auto [end, problem] = std::from_chars(token.data(), token.data() + token.size(), real);
    if (problem == std::errc::result_out_of_range && error == simdjson::SUCCESS)
      real = token.starts_with('-') ? -0.0 : 0.0;  // too small for a double
    else if (problem != std::errc() || end != token.data() + token.size())
      fail(simdjson::NUMBER_ERROR, json);
    json.value_ = real;
  }

  static bool is_long_integer(std::string_view token) {
    if (token.starts_with('-')) token.remove_prefix(1);
    return !token.empty() && token.front() != '0' &&
           token.find_first_not_of("0123456789") == std::string_view::npos;
  }

  std::string source_;
  JsonLimits limits_;
  uint64_t values_ = 0;  // that were begun
  simdjson::padded_string text_;
  ondemand::parser parser_;
  ondemand::document document_;
};

Json Json::parse(std::string_view text, std::string_view source, const JsonLimits& limits) {
  return JsonReader(text, source, limits).read();
}

Json Json::load(const std::filesystem::path& path, const JsonLimits& limits) {
  const MappedFile file(path);
  refuse_git_lfs_pointer(file.text(), path.string());
  return parse(file.text(), path.string(), limits);
}

std::string Json::where() const {
  std::vector<std::string> names;
  if (index_ >= 0) names.push_back(fmt::format("[{}]", index_));
  const Place* place = place_.get();
  for (; place->parent; place = place->parent.get()) names.push_back(place->name);
  std::string text = place->name;
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    if (name == names.rbegin())
      text += ": ";
    else if (!name->starts_with('['))
      text += '.';
    text += *name;
  }
  return text;
}

void Json::mismatch(std::string_view expected) const {
  throw Error(fmt::format("{}: expected {}, found {}", where(), expected, describe(kind())));
}

bool Json::as_bool() const {
  if (!is_bool()) mismatch("true or false");
  return std::get<bool>(value_);
}

int64_t Json::as_int() const {
  if (is_integer()) return std::get<int64_t>(value_);
  if (kind() != Kind::number) mismatch("an integer");
  const double real = std::get<double>(value_);
  if (std::abs(real) > kExactIntegers || real != std::trunc(real))
    throw Error(fmt::format("{}: expected an integer, found {}", where(), real));
  return static_cast<int64_t>(real);
}

double Json::as_double() const {
  if (is_integer()) return static_cast<double>(std::get<int64_t>(value_));
  if (kind() != Kind::number) mismatch("a number");
  return std::get<double>(value_);
}

const std::string& Json::as_string() const {
  if (!is_string()) mismatch("a string");
  return *std::get<std::shared_ptr<const std::string>>(value_);
}

const Json::Array& Json::items() const {
  if (!is_array()) mismatch("an array");
  return *std::get<std::shared_ptr<const Array>>(value_);
}

const Json::Object& Json::members() const {
  if (!is_object()) mismatch("an object");
  return *std::get<std::shared_ptr<const Object>>(value_);
}

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : members())
    if (name == key) return &value;
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  if (const Json* value = find(key)) return *value;
  throw Error(fmt::format("{}: the key \"{}\" is missing", where(), key));
}

}  // namespace mixtral
