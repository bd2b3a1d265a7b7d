#include "cli/advice.h"

namespace mixtral {

std::string in_flags(const Error& error) {
  const auto* advised = dynamic_cast<const Advised*>(&error);
  if (!advised) return error.what();
  return in_words(advised->sentence, advised->advice, [](const Setting& setting) {
    return "--" + setting.name + (setting.value.empty() ? "" : " " + setting.value);
  });
}

}  // namespace mixtral
