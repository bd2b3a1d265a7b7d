#include "stories/grammar.h"

#include <array>
#include <cctype>
#include <utility>

#include "base/error.h"

namespace mixtral::stories {
namespace {

bool starts_with_any(std::string_view text, std::initializer_list<std::string_view> prefixes) {
  for (auto prefix : prefixes) {
    if (text.starts_with(prefix)) return true;
  }
  return false;
}

bool is_vowel(char c) { return std::string_view("aeiouAEIOU").find(c) != std::string_view::npos; }

}  // namespace

std::string_view article(std::string_view phrase) {
  if (phrase.empty()) return "a";
  if (starts_with_any(phrase, {"hour", "honest"})) return "an";
  if (starts_with_any(phrase, {"one", "uni", "use", "usu", "eu", "ukulele"})) return "a";
  return is_vowel(phrase[0]) ? "an" : "a";
}

std::string with_article(std::string_view phrase) {
  return std::string(article(phrase)).append(" ").append(phrase);
}

std::string plural(std::string_view noun) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 14> irregular{{
      {"goose", "geese"},
      {"mouse", "mice"},
      {"foot", "feet"},
      {"tooth", "teeth"},
      {"child", "children"},
      {"man", "men"},
      {"woman", "women"},
      {"sheep", "sheep"},
      {"fish", "fish"},
      {"loaf", "loaves"},
      {"leaf", "leaves"},
      {"calf", "calves"},
      {"knife", "knives"},
      {"potato", "potatoes"},
  }};
  const size_t space = noun.rfind(' ');
  const size_t begin = space == std::string_view::npos ? 0 : space + 1;
  const std::string head(noun.substr(0, begin));
  const std::string_view word = noun.substr(begin);
  for (const auto& [one, many] : irregular) {
    if (word == one) return head + std::string(many);
  }
  std::string result = head + std::string(word);
  if (word.size() > 1 && word.back() == 'y' && !is_vowel(word[word.size() - 2])) {
    result.pop_back();
    return result + "ies";
  }
  if (word.ends_with("s") || word.ends_with("x") || word.ends_with("z") || word.ends_with("ch") ||
      word.ends_with("sh")) {
    return result + "es";
  }
  return result + "s";
}

std::string possessive(std::string_view noun_phrase, bool is_plural) {
  std::string result(noun_phrase);
  const bool ends_in_s = !result.empty() && result.back() == 's';
  return result + (is_plural && ends_in_s ? "'" : "'s");
}

std::string capitalized(std::string_view text) {
  std::string result(text);
  if (!result.empty()) {
    result[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(result[0])));
  }
  return result;
}

std::string number_word(int number) {
  static constexpr std::array<std::string_view, 21> words{
      "no",       "one",     "two",     "three",     "four",     "five",     "six",
      "seven",    "eight",   "nine",    "ten",       "eleven",   "twelve",   "thirteen",
      "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"};
  CHECK(number >= 0 && number <= 20);
  return std::string(words[static_cast<size_t>(number)]);
}

std::string join_list(const std::vector<std::string>& items) {
  std::string result;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) result += i + 1 == items.size() ? " and " : ", ";
    result += items[i];
  }
  return result;
}

std::string_view pronoun_subject(Gender gender) {
  return gender == Gender::female ? "she" : gender == Gender::male ? "he" : "it";
}
std::string_view pronoun_object(Gender gender) {
  return gender == Gender::female ? "her" : gender == Gender::male ? "him" : "it";
}
std::string_view pronoun_possessive(Gender gender) {
  return gender == Gender::female ? "her" : gender == Gender::male ? "his" : "its";
}
std::string_view pronoun_reflexive(Gender gender) {
  return gender == Gender::female ? "herself" : gender == Gender::male ? "himself" : "itself";
}

}  // namespace mixtral::stories
