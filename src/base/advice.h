#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace mixtral {

/// A setting of the program, by the name that configurations give it ("context"). A command line
/// words it as a flag ("--context 512"), a server as a field of the request.
struct Setting {
  std::string name;
  std::string value;  // may be empty
};

/// A change of a setting that would help.
struct Remedy {
  enum class Change { set, other, raise, lower, drop };
  Setting setting;
  Change change = Change::set;
};

/// What an error says of settings, as data: the layers below the command line know no flags.
struct Advice {
  Setting subject = {};      // what the sentence is about; without a name where it is about none
  std::string lead = "try";  // what precedes the remedies: "it would fit, with 2 GiB, under"
  enum class Join { one, all } join = Join::one;  // which of the remedies it takes
  std::vector<Remedy> remedies = {};
};

/// How a setting is written for a reader.
using SettingWords = std::function<std::string(const Setting&)>;

/// Within a sentence a setting stands between ‹ and ›: "raise ‹context›", "use ‹dtype fp32›".
/// Words all of them.
std::string word_settings(std::string_view sentence, const SettingWords& write);
/// The same by their plain names, as a message for nobody in particular has them: "dtype fp32".
std::string plain_settings(std::string_view sentence);

/// "SUBJECT: SENTENCE; LEAD REMEDY, REMEDY or REMEDY".
std::string in_words(const std::string& sentence, const Advice& advice, const SettingWords& write);

/// What the errors below have beside an Error; catch those, and ask by dynamic_cast for this.
struct Advised {
  virtual ~Advised() = default;
  Advised(std::string text, Advice about) : sentence(std::move(text)), advice(std::move(about)) {}
  std::string sentence;
  Advice advice;
};

/// An Error with advice. what() has all of it, with settings by their plain names.
class AdvisedError : public Error, public Advised {
 public:
  AdvisedError(const std::string& text, Advice about = {});
};

/// The same for a UsageError.
class AdvisedUsageError : public UsageError, public Advised {
 public:
  AdvisedUsageError(const std::string& text, Advice about = {});
};

/// A UsageError about one setting: setting_error("rank", "expected at least 1, found 0").
AdvisedUsageError setting_error(std::string name, const std::string& sentence);

}  // namespace mixtral
