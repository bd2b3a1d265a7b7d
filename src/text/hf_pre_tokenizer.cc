#include "text/hf_pre_tokenizer.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "base/error.h"
#include "text/byte_level.h"
#include "text/text_pattern.h"
#include "text/unicode.h"

namespace mixtral {
namespace {

/// What becomes of the matches that a text is split by.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

constexpr std::array<std::pair<std::string_view, Behavior>, 5> kBehaviors = {{
    {"Removed", Behavior::removed},
    {"Isolated", Behavior::isolated},
    {"MergedWithPrevious", Behavior::merged_with_previous},
    {"MergedWithNext", Behavior::merged_with_next},
    {"Contiguous", Behavior::contiguous},
}};

Behavior read_behavior(const Json& json) {
  for (const auto& [name, behavior] : kBehaviors)
    if (name == json.as_string()) return behavior;
  throw Error(
      fmt::format("{}: the behavior {} is not known; expected Removed, Isolated, "
                  "MergedWithPrevious, MergedWithNext or Contiguous",
                  json.where(), printable(json.as_string())));
}

struct Part {
  TextRange range;
  bool match = false;
};

/// The matches and what is between them.
std::vector<Part> all_parts(std::string_view text, const std::vector<TextRange>& matches) {
  std::vector<Part> parts;
  size_t done = 0;
  for (const TextRange& match : matches) {
    if (done < match.begin) parts.push_back({{done, match.begin}, false});
    parts.push_back({match, true});
    done = match.end;
  }
  if (done < text.size()) parts.push_back({{done, text.size()}, false});
  return parts;
}

std::vector<Part> join(const std::vector<Part>& parts, Behavior behavior) {
  std::vector<Part> joined;
  bool after_match = false;
  for (const Part& part : parts) {
    const bool appended = behavior == Behavior::contiguous
                              ? !joined.empty() && joined.back().match == part.match
                              : !joined.empty() && part.match && !after_match;
    if (appended)
      joined.back().range.end = part.range.end;
    else
      joined.push_back(part);
    after_match = part.match;
  }
  return joined;
}

std::vector<Part> join_with_next(const std::vector<Part>& parts) {
  std::vector<Part> joined;  // from the last to the first
  bool after_match = false;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (part->match && !after_match && !joined.empty())
      joined.back().range.begin = part->range.begin;
    else
      joined.push_back(*part);
    after_match = part->match;
  }
  return {joined.rbegin(), joined.rend()};
}

void split_word(const Word& word, const std::vector<TextRange>& matches, Behavior behavior,
                bool invert, std::vector<Word>& words) {
  std::vector<Part> parts = all_parts(word.text, matches);
  for (Part& part : parts) part.match = part.match != invert;
  if (behavior == Behavior::merged_with_next)
    parts = join_with_next(parts);
  else if (behavior == Behavior::merged_with_previous || behavior == Behavior::contiguous)
    parts = join(parts, behavior);
  for (const Part& part : parts) {
    if (part.range.begin == part.range.end) continue;
    if (behavior == Behavior::removed && part.match) continue;
    words.push_back({word.text.substr(part.range.begin, part.range.end - part.range.begin),
                     word.first && part.range.begin == 0});
  }
}

/// Splits where characters are, each of them a match of its own.
HfPreTokenizer::Step at_characters(bool (*is_match)(int32_t code), Behavior behavior) {
  return [is_match, behavior](const Word& word, std::vector<Word>& words) {
    std::vector<TextRange> matches;
    for (size_t at = 0; at < word.text.size();) {
      const Character c = first_character(std::string_view(word.text).substr(at));
      if (is_match(c.code)) matches.push_back({at, at + c.length});
      at += c.length;
    }
    split_word(word, matches, behavior, false, words);
  };
}

HfPreTokenizer::Step at_pattern(const TextPattern& pattern, Behavior behavior, bool invert) {
  return [pattern, behavior, invert](const Word& word, std::vector<Word>& words) {
    split_word(word, pattern.find(word.text), behavior, invert, words);
  };
}

bool is_any_punctuation(int32_t code) {
  const bool ascii = (code >= 33 && code <= 47) || (code >= 58 && code <= 64) ||
                     (code >= 91 && code <= 96) || (code >= 123 && code <= 126);
  return ascii || is_punctuation(code);
}

bool flag(const Json& json, const char* key, bool otherwise) {
  const Json* value = json.find(key);
  return value == nullptr || value->is_null() ? otherwise : value->as_bool();
}

void read_byte_level(const Json& json, std::vector<HfPreTokenizer::Step>& steps) {
  if (flag(json, "add_prefix_space", true)) {
    steps.emplace_back([](Word& word, std::vector<Word>& words) {
      if (!word.text.starts_with(' ')) word.text.insert(0, 1, ' ');
      words.push_back(std::move(word));
    });
  }
  if (flag(json, "use_regex", true)) {
    // GPT-2's words: contractions, letters, numbers and other characters with the space before
    // them.
    const TextPattern pattern(
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
        json.where());
    steps.push_back(at_pattern(pattern, Behavior::isolated, false));
  }
  steps.emplace_back([](Word& word, std::vector<Word>& words) {
    word.text = ByteLevelAlphabet::get().write(word.text);
    words.push_back(std::move(word));
  });
}

HfPreTokenizer::Step metaspace(const Json& json) {
  enum class Prepend { always, first, never };
  std::string symbol = json.at("replacement").as_string();
  if (count_characters(symbol) != 1) {
    throw Error(fmt::format("{}: the replacement is \"{}\"; expected one character", json.where(),
                            printable(symbol)));
  }
  Prepend prepend = Prepend::always;
  if (const Json* scheme = json.find("prepend_scheme"); scheme != nullptr && !scheme->is_null()) {
    const std::string& name = scheme->as_string();
    if (name != "always" && name != "first" && name != "never") {
      throw Error(fmt::format("{}: is \"{}\"; expected always, first or never", scheme->where(),
                              printable(name)));
    }
    if (name != "always") prepend = name == "first" ? Prepend::first : Prepend::never;
  }
  if (!flag(json, "add_prefix_space", true)) prepend = Prepend::never;  // the older field
  const bool split = flag(json, "split", true);
  return [symbol, prepend, split](const Word& word, std::vector<Word>& words) {
    Word changed{"", word.first};
    for (const char c : word.text) {
      if (c == ' ')
        changed.text += symbol;
      else
        changed.text += c;
    }
    if (!changed.text.starts_with(symbol) &&
        (prepend == Prepend::always || (prepend == Prepend::first && word.first)))
      changed.text.insert(0, symbol);
    if (!split) {
      words.push_back(std::move(changed));
      return;
    }
    std::vector<TextRange> matches;
    for (size_t at = 0; (at = changed.text.find(symbol, at)) != std::string::npos;
         at += symbol.size())
      matches.push_back({at, at + symbol.size()});
    split_word(changed, matches, Behavior::merged_with_next, false, words);
  };
}

}  // namespace

std::vector<Word> HfPreTokenizer::split(Word text) const {
  std::vector<Word> words;
  if (!text.text.empty()) words.push_back(std::move(text));
  for (const Step& step : steps_) {
    std::vector<Word> next;
    next.reserve(words.size());
    for (Word& word : words) step(word, next);
    words = std::move(next);
  }
  return words;
}

void HfPreTokenizer::read(const Json& json) {
  if (json.is_null()) return;
  const std::string& type = json.at("type").as_string();
  if (type == "Sequence") {
    for (const Json& part : json.at("pretokenizers").items()) read(part);
  } else if (type == "ByteLevel") {
    read_byte_level(json, steps_);
  } else if (type == "Metaspace") {
    steps_.push_back(metaspace(json));
  } else if (type == "Split") {
    steps_.push_back(at_pattern(TextPattern(json.at("pattern")), read_behavior(json.at("behavior")),
                                flag(json, "invert", false)));
  } else if (type == "Whitespace") {
    const TextPattern words("[\\w\\x{200c}\\x{200d}]+|[^\\w\\s\\x{200c}\\x{200d}]+", json.where());
    steps_.push_back(at_pattern(words, Behavior::removed, true));
  } else if (type == "WhitespaceSplit") {
    steps_.push_back(at_characters(is_white_space, Behavior::removed));
  } else if (type == "Digits") {
    const bool each = flag(json, "individual_digits", false);
    steps_.push_back(at_characters(is_numeric, each ? Behavior::isolated : Behavior::contiguous));
  } else if (type == "Punctuation") {
    const Json* behavior = json.find("behavior");
    steps_.push_back(at_characters(
        is_any_punctuation, behavior == nullptr ? Behavior::isolated : read_behavior(*behavior)));
  } else if (type == "CharDelimiterSplit") {
    const std::string& delimiter = json.at("delimiter").as_string();
    steps_.emplace_back([delimiter](const Word& word, std::vector<Word>& words) {
      std::vector<TextRange> matches;
      for (size_t at = 0;
           !delimiter.empty() && (at = word.text.find(delimiter, at)) != std::string::npos;
           at += delimiter.size())
        matches.push_back({at, at + delimiter.size()});
      split_word(word, matches, Behavior::removed, false, words);
    });
  } else if (type == "BertPreTokenizer") {
    steps_.push_back(at_characters(is_white_space, Behavior::removed));
    steps_.push_back(at_characters(is_any_punctuation, Behavior::isolated));
  } else {
    throw Error(fmt::format(
        "{}: the pre-tokenizer {} is not supported; expected ByteLevel, Metaspace, Split, "
        "Whitespace, WhitespaceSplit, Digits, Punctuation, CharDelimiterSplit, BertPreTokenizer or "
        "Sequence",
        json.where(), printable(type)));
  }
}

}  // namespace mixtral
