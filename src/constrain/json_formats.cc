#include "constrain/json_formats.h"

#include <array>
#include <initializer_list>
#include <string>

namespace mixtral::constrain {
namespace {

// 29 February only in leap years, and no year 0.
constexpr std::string_view kDate =
    "(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-"
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|"
    "02-(?:0[1-9]|1[0-9]|2[0-8]))|"
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)";
constexpr std::string_view kTime =
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?"
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
constexpr std::string_view kHostname =
    "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    "(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,2}";
constexpr std::string_view kIpv4 =
    "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    "(?:\\.(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}";
constexpr std::string_view kIpv6 =
    "(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){1,7}:|"
    "(?:[0-9a-fA-F]{1,4}:){1,6}(?::[0-9a-fA-F]{1,4})|"
    "(?:[0-9a-fA-F]{1,4}:){1,5}(?::[0-9a-fA-F]{1,4}){1,2}|"
    "(?:[0-9a-fA-F]{1,4}:){1,4}(?::[0-9a-fA-F]{1,4}){1,3}|"
    "(?:[0-9a-fA-F]{1,4}:){1,3}(?::[0-9a-fA-F]{1,4}){1,4}|"
    "(?:[0-9a-fA-F]{1,4}:){1,2}(?::[0-9a-fA-F]{1,4}){1,5}|"
    "[0-9a-fA-F]{1,4}:(?::[0-9a-fA-F]{1,4}){1,6}|:(?::[0-9a-fA-F]{1,4}){1,7}|::)";
constexpr std::string_view kDuration =
    "P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?|"
    "[0-9]{1,9}D)(?:T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|"
    "[0-9]{1,9}S))?|T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|"
    "[0-9]{1,9}S))";
constexpr std::string_view kPath =
    "(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
    "(?:\\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
    "(?:#(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?";

struct Format {
  std::string_view name;
  std::string expression;
};

/// The texts one after the other.
std::string joined(std::initializer_list<std::string_view> texts) {
  std::string all;
  for (const std::string_view text : texts) all += text;
  return all;
}

const std::array<Format, 14>& formats() {
  static const std::array<Format, 14> known = {{
      {"date", joined({kDate})},
      {"time", joined({kTime})},
      {"date-time", joined({kDate, "T", kTime})},
      {"duration", joined({kDuration})},
      {"email", joined({"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@",
                        kHostname})},
      {"hostname", joined({kHostname})},
      {"ipv4", joined({kIpv4})},
      {"ipv6", joined({kIpv6})},
      {"uuid",
       joined({"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"})},
      {"uri", joined({"[a-z][a-z0-9+.-]*://", kHostname, "(?::[0-9]{1,5})?(?:/", kPath, ")?"})},
      {"uri-reference", joined({"/", kPath})},
      {"json-pointer", joined({"(?:/(?:[^~/]|~[01])*)*"})},
      {"byte", joined({"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"})},
      {"password", joined({"[\\s\\S]*"})},
  }};
  return known;
}

}  // namespace

const char* format_expression(std::string_view name) {
  for (const Format& format : formats())
    if (format.name == name) return format.expression.c_str();
  return nullptr;
}

std::string_view format_names() {
  static const std::string names = [] {
    std::string all;
    for (const Format& format : formats())
      all += (all.empty() ? "" : ", ") + std::string(format.name);
    return all;
  }();
  return names;
}

}  // namespace mixtral::constrain
