#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mixtral::stories {

enum class Gender { female, male, neuter };

/// "an" before a vowel sound, else "a": an apple, an hour, a unicorn, a one-eyed cat.
std::string_view article(std::string_view phrase);

/// The phrase with its article: "a red kite", "an old boat".
std::string with_article(std::string_view phrase);

/// "box" -> "boxes", "berry" -> "berries", "goose" -> "geese". Only the last word changes.
std::string plural(std::string_view noun);

/// "Mia" -> "Mia's", "James" -> "James's", "the boys" (when plural) -> "the boys'".
std::string possessive(std::string_view noun_phrase, bool is_plural = false);

/// The first letter as a capital.
std::string capitalized(std::string_view text);

/// 0..20 in words: "three".
std::string number_word(int number);

/// "a", "a and b", "a, b and c".
std::string join_list(const std::vector<std::string>& items);

/// he, him, his, himself of a gender.
std::string_view pronoun_subject(Gender gender);
std::string_view pronoun_object(Gender gender);
std::string_view pronoun_possessive(Gender gender);
std::string_view pronoun_reflexive(Gender gender);

}  // namespace mixtral::stories
