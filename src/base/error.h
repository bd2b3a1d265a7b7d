#pragma once

#include <stdexcept>
#include <string>

namespace mixtral {

/// Something the user can act on: bad input, a full disk, a model that does not fit. The message is
/// one sentence that names the file, line, tensor or flag, what was expected, what was found, and
/// what to do. Ends the program with exit code 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A command line or configuration that makes no sense. Ends the program with exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A broken promise between two parts of the program: a defect here, not in the user's input.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& message);
}  // namespace detail
}  // namespace mixtral

/// CHECK(condition) or CHECK(condition, message): throws InternalError unless the condition holds.
/// For invariants of the code itself; user errors throw Error with a sentence of their own.
#define CHECK(condition, ...)                                                         \
  do {                                                                                \
    if (!(condition)) [[unlikely]]                                                    \
      ::mixtral::detail::check_failed(__FILE__, __LINE__, #condition, {__VA_ARGS__}); \
  } while (false)
