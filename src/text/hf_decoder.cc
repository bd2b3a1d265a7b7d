#include "text/hf_decoder.h"

#include <fmt/format.h>

#include "base/error.h"
#include "text/byte_level.h"
#include "text/text_pattern.h"
#include "text/unicode.h"

namespace mixtral {
namespace {

std::string replace_all(std::string_view text, std::string_view part, std::string_view by) {
  std::string result;
  while (true) {
    const size_t at = text.find(part);
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    result += by;
    text.remove_prefix(at + part.size());
  }
}

/// "<0x0A>" becomes its byte.
void read_byte_piece(std::string& piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return;
  const std::string digits = piece.substr(3, 2);
  if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) return;
  piece.assign(1, static_cast<char>(std::stoi(digits, nullptr, 16)));
}

}  // namespace

HfDecoder::HfDecoder(const Json& json) {
  if (json.is_null())
    spaces_between_ = true;
  else
    read(json);
}

std::string HfDecoder::middle(const std::string& piece) const {
  std::string text = piece;
  for (const Step& step : steps_) step(text);
  if (spaces_between_) text.insert(text.begin(), ' ');
  return text;
}

std::string HfDecoder::start(const std::string& piece) const {
  std::string text = first_only_.empty() ? piece : replace_all(piece, first_only_, "");
  for (const Step& step : steps_) step(text);
  if (!stripped_.empty() && text.starts_with(stripped_)) text.erase(0, stripped_.size());
  return text;
}

void HfDecoder::read(const Json& json) {
  const std::string& type = json.at("type").as_string();
  const auto refuse = [&](std::string_view why) {
    throw Error(fmt::format("{}: the decoder {} {}", json.where(), printable(type), why));
  };
  if (type == "Sequence") {
    for (const Json& part : json.at("decoders").items()) read(part);
  } else if (type == "ByteLevel") {
    steps_.emplace_back([](std::string& piece) {
      if (auto bytes = ByteLevelAlphabet::get().read(piece)) piece = std::move(*bytes);
    });
  } else if (type == "ByteFallback") {
    if (fused_) refuse("after Fuse is not supported");
    steps_.emplace_back(read_byte_piece);
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Replace") {
    const TextPattern pattern(json.at("pattern"));
    if (fused_ && count_characters(pattern.literal()) != 1)
      refuse("of more than one character after Fuse is not supported");
    steps_.emplace_back([pattern, content = json.at("content").as_string()](std::string& piece) {
      piece = replace_matches(piece, pattern, content);
    });
  } else if (type == "Strip") {
    const int64_t start = json.at("start").as_int(), stop = json.at("stop").as_int();
    const std::string& content = json.at("content").as_string();
    if (start == 0 && stop == 0) return;
    if (!fused_ || start != 1 || stop != 0 || count_characters(content) != 1 || !stripped_.empty())
      refuse(
          fmt::format("with start {} and stop {} {}Fuse is not supported; expected one "
                      "character to be stripped from the start, after Fuse",
                      start, stop, fused_ ? "after " : "without "));
    stripped_ = content;
  } else if (type == "Metaspace") {
    const std::string& symbol = json.at("replacement").as_string();
    bool prepended = true;
    if (const Json* scheme = json.find("prepend_scheme"); scheme != nullptr && !scheme->is_null())
      prepended = scheme->as_string() != "never";
    if (const Json* older = json.find("add_prefix_space"); older != nullptr && !older->is_null())
      prepended = prepended && older->as_bool();
    if (symbol.empty() || fused_ || !steps_.empty())
      refuse("is only supported as the first decoder");
    if (prepended) first_only_ = symbol;
    steps_.emplace_back([symbol](std::string& piece) { piece = replace_all(piece, symbol, " "); });
  } else {
    refuse(
        "is not supported; expected ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip or "
        "Sequence");
  }
}

}  // namespace mixtral
