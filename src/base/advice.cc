#include "base/advice.h"

#include <algorithm>

namespace mixtral {
namespace {

std::string worded(const Remedy& remedy, const SettingWords& write) {
  switch (remedy.change) {
    case Remedy::Change::other:
      return "another " + write({remedy.setting.name, {}});
    case Remedy::Change::raise:
      return "a higher " + write({remedy.setting.name, {}});
    case Remedy::Change::lower:
      return "a lower " + write({remedy.setting.name, {}});
    case Remedy::Change::drop:
      return "no " + write({remedy.setting.name, {}});
    case Remedy::Change::set:
      break;
  }
  return write(remedy.setting);
}

std::string plain(const Setting& setting) {
  return setting.name + (setting.value.empty() ? "" : " " + setting.value);
}

}  // namespace

std::string word_settings(std::string_view sentence, const SettingWords& write) {
  constexpr std::string_view kOpen = "‹", kClose = "›";
  std::string worded;
  while (true) {
    const size_t open = sentence.find(kOpen);
    const size_t close = open == sentence.npos ? open : sentence.find(kClose, open);
    worded += sentence.substr(0, close == sentence.npos ? close : open);
    if (close == sentence.npos) return worded;
    const std::string_view inside =
        sentence.substr(open + kOpen.size(), close - open - kOpen.size());
    const size_t space = std::min(inside.find(' '), inside.size());
    worded += write({std::string(inside.substr(0, space)),
                     std::string(inside.substr(std::min(space + 1, inside.size())))});
    sentence.remove_prefix(close + kClose.size());
  }
}

std::string plain_settings(std::string_view sentence) { return word_settings(sentence, plain); }

std::string in_words(const std::string& sentence, const Advice& advice, const SettingWords& write) {
  std::string text = word_settings(sentence, write);
  if (!advice.subject.name.empty()) text = write(advice.subject) + ": " + text;
  for (size_t i = 0; i < advice.remedies.size(); ++i) {
    const bool last = i + 1 == advice.remedies.size();
    if (i == 0)
      text += "; " + advice.lead + " ";
    else if (advice.join == Advice::Join::all)
      text += " ";
    else
      text += last ? " or " : ", ";
    text += worded(advice.remedies[i], write);
  }
  return text;
}

AdvisedError::AdvisedError(const std::string& text, Advice about)
    : Error(in_words(text, about, plain)), Advised{text, std::move(about)} {}

AdvisedUsageError::AdvisedUsageError(const std::string& text, Advice about)
    : UsageError(in_words(text, about, plain)), Advised{text, std::move(about)} {}

AdvisedUsageError setting_error(std::string name, const std::string& sentence) {
  return AdvisedUsageError(sentence, {.subject = {std::move(name), {}}, .remedies = {}});
}

}  // namespace mixtral
