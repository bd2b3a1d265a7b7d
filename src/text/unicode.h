#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mixtral {

/// A character and the bytes that it takes. A byte that is not part of a valid UTF-8 character is
/// taken by itself; its code is then -1.
struct Character {
  int32_t code = -1;
  size_t length = 0;
};

/// The character that `text`, which must not be empty, begins with.
Character first_character(std::string_view text);
/// The character that `text`, which must not be empty, ends with.
Character last_character(std::string_view text);
/// How many characters there are.
size_t count_characters(std::string_view text);
void append_utf8(int32_t code, std::string& text);

// Properties by the Unicode Character Database. A code of -1 has none of them.
bool is_letter(int32_t code);       // categories L*
bool is_numeric(int32_t code);      // N*
bool is_decimal(int32_t code);      // Nd
bool is_mark(int32_t code);         // M*
bool is_punctuation(int32_t code);  // P*
bool is_upper(int32_t code);        // Lu
bool is_lower(int32_t code);        // Ll
bool is_title(int32_t code);        // Lt
bool is_cased(int32_t code);        // Lu, Ll, Lt
bool is_white_space(int32_t code);  // White_Space
/// What \w means to Rust's regular expressions: letters, marks, decimal digits, connecting
/// punctuation, letter-like numbers and joiners.
bool is_word_character(int32_t code);
/// Whether Python's repr() writes the character as it is.
bool is_printable(int32_t code);

/// The normalization forms of Unicode Standard Annex 15.
enum class NormalizationForm { nfc, nfd, nfkc, nfkd };
/// Bytes that are not UTF-8 stay as they are.
std::string normalize_unicode(std::string_view text, NormalizationForm form);

// Cases of whole texts, by Unicode's full mappings: "ß" is "SS" in upper case. Bytes that are not
// UTF-8 stay as they are.
std::string to_upper(std::string_view text);
std::string to_title(std::string_view character);  // of one character
/// A capital sigma becomes "ς" at the end of a word where `final_sigma` asks for it (as Python
/// does), and "σ" everywhere else.
enum class FinalSigma { no, yes };
std::string to_lower(std::string_view text, FinalSigma final_sigma = FinalSigma::no);
std::string fold_case(std::string_view text);  // full case folding: "ß" becomes "ss"

}  // namespace mixtral
