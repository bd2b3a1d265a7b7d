#include "cli/advice.h"

namespace mixtral {
namespace {

std::string flag(const Setting& setting) {
  return "--" + setting.name + (setting.value.empty() ? "" : " " + setting.value);
}

}  // namespace

std::string in_flags(const Error& error) {
  const auto* advised = dynamic_cast<const Advised*>(&error);
  if (!advised) return error.what();
  return in_words(advised->sentence, advised->advice, flag);
}

std::string in_flags(std::string_view sentence) { return word_settings(sentence, flag); }

}  // namespace mixtral
