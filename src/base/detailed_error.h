#pragma once

#include <string>
#include <utility>

#include "base/advice.h"
#include "base/error.h"

namespace mixtral {

/// An Error with lines below its sentence: a table that the program made. what() has both.
class DetailedError : public Error {
 public:
  DetailedError(std::string sentence, std::string details)
      : Error(plain_settings(sentence) + "\n" + details),
        sentence_(std::move(sentence)),
        details_(std::move(details)) {}

  const std::string& sentence() const { return sentence_; }
  const std::string& details() const { return details_; }

 private:
  std::string sentence_, details_;
};

}  // namespace mixtral
