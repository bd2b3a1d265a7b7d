#include "text/hf_normalizer.h"

#include <fmt/format.h>

#include "base/error.h"
#include "text/byte_level.h"
#include "text/text_pattern.h"
#include "text/unicode.h"

namespace mixtral {
namespace {

void strip_left(std::string& text) {
  size_t count = 0;
  while (count < text.size()) {
    const Character c = first_character(std::string_view(text).substr(count));
    if (!is_white_space(c.code)) break;
    count += c.length;
  }
  text.erase(0, count);
}

void strip_right(std::string& text) {
  while (!text.empty()) {
    const Character c = last_character(text);
    if (!is_white_space(c.code)) return;
    text.resize(text.size() - c.length);
  }
}

void strip_marks(std::string& text) {
  std::string kept;
  for (std::string_view rest = text; !rest.empty();) {
    const Character c = first_character(rest);
    if (!is_mark(c.code)) kept += rest.substr(0, c.length);
    rest.remove_prefix(c.length);
  }
  text = std::move(kept);
}

}  // namespace

std::string HfNormalizer::normalize(std::string text) const {
  for (const auto& step : steps_) step(text);
  return text;
}

void HfNormalizer::read(const Json& json) {
  if (json.is_null()) return;
  const std::string& type = json.at("type").as_string();
  const auto unicode = [&](NormalizationForm form) {
    steps_.emplace_back([form](std::string& text) { text = normalize_unicode(text, form); });
  };
  if (type == "Sequence") {
    for (const Json& part : json.at("normalizers").items()) read(part);
  } else if (type == "NFC") {
    unicode(NormalizationForm::nfc);
  } else if (type == "NFD") {
    unicode(NormalizationForm::nfd);
  } else if (type == "NFKC") {
    unicode(NormalizationForm::nfkc);
  } else if (type == "NFKD") {
    unicode(NormalizationForm::nfkd);
  } else if (type == "Lowercase") {
    steps_.emplace_back([](std::string& text) { text = to_lower(text); });
  } else if (type == "Strip") {
    if (json.at("strip_left").as_bool()) steps_.emplace_back(strip_left);
    if (json.at("strip_right").as_bool()) steps_.emplace_back(strip_right);
  } else if (type == "StripAccents") {
    steps_.emplace_back(strip_marks);
  } else if (type == "Replace") {
    steps_.emplace_back([pattern = TextPattern(json.at("pattern")),
                         content = json.at("content").as_string()](std::string& text) {
      text = replace_matches(text, pattern, content);
    });
  } else if (type == "Prepend") {
    steps_.emplace_back([prefix = json.at("prepend").as_string()](std::string& text) {
      if (!text.empty()) text.insert(0, prefix);
    });
  } else if (type == "ByteLevel") {
    steps_.emplace_back([](std::string& text) { text = ByteLevelAlphabet::get().write(text); });
  } else {
    throw Error(
        fmt::format("{}: the normalizer {} is not supported; expected NFC, NFD, NFKC, "
                    "NFKD, Lowercase, Strip, StripAccents, Replace, Prepend, ByteLevel or "
                    "Sequence",
                    json.where(), printable(type)));
  }
}

}  // namespace mixtral
