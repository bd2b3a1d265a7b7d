#include "base/error.h"

#include <cstring>

namespace mixtral::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  const char* source = std::strstr(file, "src/");
  std::string text = std::string(source ? source : file) + ":" + std::to_string(line) +
                     ": internal check failed: " + condition;
  if (!message.empty()) text += " (" + message + ")";
  throw InternalError(text);
}

}  // namespace mixtral::detail
