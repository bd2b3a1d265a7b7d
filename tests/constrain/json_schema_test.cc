#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "constrain/grammar.h"
#include "tests/support/files.h"

namespace mixtral::constrain {
namespace {

using testing::HasSubstr;

struct Case {
  std::string schema;
  std::vector<std::string> accepted, refused;
};

void check(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    const Grammar grammar = compile_json_schema(c.schema, "schema");
    for (const auto& text : c.accepted)
      EXPECT_TRUE(grammar.accepts(text)) << c.schema << " should accept " << text;
    for (const auto& text : c.refused)
      EXPECT_FALSE(grammar.accepts(text)) << c.schema << " should refuse " << text;
  }
}

TEST(ConstrainJsonSchema, KeepsTypesAndValues) {
  check({
      {"{}", {"1", "null", "{\"a\": [1, {}]}", "\"x\""}, {"", "nul", "{]", "01"}},
      {"true", {"1"}, {"x"}},
      {R"({"type":"null"})", {"null"}, {"0"}},
      {R"({"type":["boolean","null"]})", {"true", "false", "null"}, {"0", "tru"}},
      {R"({"type":"string","nullable":true})", {"null", "\"a\""}, {"0"}},
      {R"({"enum":[1,null,"x","nö",[1,{"a":2}],2.5]})",
       {"1", "null", "\"x\"", "\"nö\"", "[1, {\"a\":2}]", "[1,{\"a\": 2}]", "2.5"},
       {"2", "\"n\\u00f6\"", "[1]"}},
      {R"({"const":"a\"b"})", {R"("a\"b")"}, {"\"ab\""}},
      {R"({"type":"string","enum":["a",1,"bc"],"minLength":2})", {"\"bc\""}, {"\"a\"", "1"}},
      {R"({"type":"integer","enum":[1,2,3],"minimum":2})", {"2", "3"}, {"1"}},
      {R"({"allOf":[{"enum":[1,2,3]},{"enum":[3,4]}]})", {"3"}, {"1", "4"}},
      {R"({"$ref":"#/$defs/unit","$defs":{"unit":{"enum":["cm","inch"]}}})", {"\"cm\""}, {"\"m\""}},
      {R"({"$ref":"#/$defs/a~1b%20c","$defs":{"a/b c":{"const":1}}})", {"1"}, {"2"}},
      {R"({"anyOf":[{"type":"integer"},{"type":"null"}]})", {"12", "null"}, {"true"}},
      {R"({"type":"string","anyOf":[{"maxLength":1},{"minLength":3}]})",
       {"\"\"", "\"a\"", "\"abc\""},
       {"\"ab\"", "1"}},
      {R"({"oneOf":[{"type":"string"},{"type":"number"}]})", {"\"a\"", "1.5"}, {"null"}},
  });
}

TEST(ConstrainJsonSchema, KeepsNumbers) {
  check({
      {R"({"type":"integer"})", {"0", "-1", "123456"}, {"-0", "01", "1.0", "1e3", "-", "+1"}},
      {R"({"type":"number"})", {"0", "-1.5", "1e9", "2E-3", "-0.25"}, {"1.", ".5", "1e", "00"}},
      {R"({"type":"integer","minimum":-3,"maximum":12})",
       {"-3", "-1", "0", "9", "10", "12"},
       {"-4", "13", "-10", "100"}},
      {R"({"type":"integer","exclusiveMinimum":9,"exclusiveMaximum":1000})",
       {"10", "99", "999"},
       {"9", "1000"}},
      {R"({"type":"integer","minimum":95})",
       {"95", "99", "100", "123456"},
       {"94", "9", "0", "-95"}},
      {R"({"type":"integer","maximum":-5})", {"-5", "-10", "-99999"}, {"-4", "0", "5"}},
      {R"({"type":"integer","minimum":0.5,"maximum":2.5})", {"1", "2"}, {"0", "3"}},
      {R"({"type":"integer","minimum":5,"exclusiveMinimum":true})", {"6"}, {"5"}},
      {R"({"type":"number","minimum":0,"maximum":1})",
       {"0", "1", "0.5", "0.999", "1.0"},
       {"1.1", "-0.5", "1.01", "2", "1e0"}},
      {R"({"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1})",
       {"0.5", "0.001"},
       {"0", "1", "0.0", "1.0"}},
      {R"({"type":"number","minimum":-1.25,"maximum":3.5})",
       {"-1.25", "-1.2", "-0.5", "3.5", "3", "2.999", "3.500", "-1"},
       {"-1.26", "-1.3", "3.51", "4", "-2"}},
      {R"({"type":"number","minimum":1.05,"maximum":1.07})",
       {"1.05", "1.06", "1.07", "1.0699"},
       {"1.04", "1.1", "1", "1.071"}},
      {R"({"type":"number","maximum":-0.5})", {"-0.5", "-1", "-123.4"}, {"-0.4", "0", "1"}},
      {R"({"type":"integer","multipleOf":7,"minimum":0,"maximum":50})",
       {"0", "7", "49"},
       {"1", "48", "56"}},
      {R"({"type":"number","multipleOf":5})", {"10", "-15"}, {"12", "10.5"}},
      {R"({"type":"integer","format":"int32"})",
       {"2147483647", "-2147483648"},
       {"2147483648", "-2147483649"}},
  });
}

TEST(ConstrainJsonSchema, KeepsStrings) {
  check({
      {R"({"type":"string"})",
       {R"("")", R"("aé😀")", R"("\n\u00e9\ud83d\ude00\\\"\/")"},
       {R"("\ud83d")", R"("\ude00")", R"("\ud83d\u0041")", R"("\x")", "\"\n\"", "\"\xc3\"", "\""}},
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {R"("ab")", R"("é€😀")", R"("\n\u00e9")", R"("\ud83d\ude00a")"},
       {R"("a")", R"("abcd")", R"("\ud83d\ude00")"}},
      {R"({"type":"string","pattern":"^[a-c]{2,4}-[0-9]+$","maxLength":5})",
       {"\"ab-12\"", "\"ab-1\""},
       {"\"ab-123\"", "\"a-1\"", "\"abcc-1\""}},
      {R"({"type":"string","pattern":"b"})", {"\"b\"", "\"abc\"", "\"\\\"b\\n\""}, {"\"a\""}},
      {R"({"type":"string","pattern":"^\"\\\\$"})", {R"("\"\\")"}, {R"("\"")"}},
      {R"({"allOf":[{"pattern":"^a"},{"pattern":"z$"}],"type":"string"})",
       {"\"az\"", "\"abcz\""},
       {"\"a\"", "\"z\""}},
      {R"({"type":"string","format":"date"})",
       {"\"2024-02-29\"", "\"2023-12-31\"", "\"2000-02-29\""},
       {"\"2023-02-29\"", "\"1900-02-29\"", "\"2024-13-01\"", "\"2024-04-31\"", "\"0000-01-01\""}},
      {R"({"type":"string","format":"time"})",
       {"\"23:59:59Z\"", "\"00:00:00.5+02:00\""},
       {"\"24:00:00Z\""}},
      {R"({"type":"string","format":"date-time"})",
       {"\"2024-05-06T07:08:09Z\""},
       {"\"2024-05-06\""}},
      {R"({"type":"string","format":"uuid"})",
       {"\"123e4567-e89b-12d3-a456-426614174000\""},
       {"\"123e4567\""}},
      {R"({"type":"string","format":"email"})", {"\"a.b@c.org\""}, {"\"a@\"", "\"a..b@c\""}},
      {R"({"type":"string","format":"ipv4"})",
       {"\"192.168.0.255\""},
       {"\"256.1.1.1\"", "\"1.1.1\"", "\"01.1.1.1\""}},
      {R"({"type":"string","format":"ipv6"})",
       {"\"::1\"", "\"2001:db8::ff00:42:8329\""},
       {"\":::\""}},
      {R"({"type":"string","format":"duration"})",
       {"\"P1DT2H\"", "\"PT5M\"", "\"P2W\""},
       {"\"P\"", "\"PT\""}},
      {R"({"type":"string","format":"uri"})", {"\"https://a.example/b?c=d#e\""}, {"\"a b\""}},
      {R"({"type":"string","format":"date","pattern":"^2024"})",
       {"\"2024-01-01\""},
       {"\"2023-01-01\""}},
  });
}

TEST(ConstrainJsonSchema, KeepsArrays) {
  check({
      {R"({"type":"array"})", {"[]", "[1, [], {}]", "[\n  1,\n  2\n]"}, {"[1,]", "[,1]", "[1"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":3})",
       {"[1,2]", "[1, 2,3]"},
       {"[]", "[1]", "[1,2,3,4]", "[1,\"a\"]"}},
      {R"({"type":"array","prefixItems":[{"const":1},{"const":2}],"items":{"type":"null"}})",
       {"[]", "[1]", "[1,2]", "[1,2,null]"},
       {"[2]", "[1,1]", "[1,2,3]"}},
      {R"({"type":"array","prefixItems":[{"const":1},{"const":2}],"items":false,"minItems":1})",
       {"[1]", "[1,2]"},
       {"[]", "[1,2,3]"}},
      {R"({"type":"array","items":[{"const":1}],"additionalItems":false})",
       {"[]", "[1]"},
       {"[1,1]"}},
      {R"({"type":"array","maxItems":0})", {"[]"}, {"[1]"}},
      {R"({"type":"array","items":false})", {"[]"}, {"[1]"}},
      {R"({"type":"array","maxItems":1,"uniqueItems":true})", {"[]", "[1]"}, {"[1,2]"}},
      {R"({"items":{"type":"boolean"}})", {"[true]"}, {"[1]", "1"}},
  });
}

TEST(ConstrainJsonSchema, KeepsObjects) {
  check({
      {R"({"type":"object"})", {"{}", "{ }", "{\"a\": 1}"}, {"{\"a\"}", "{a:1}"}},
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"null"},"c":{"const":1}},
          "required":["b"]})",
       {R"({"b": null})", R"({"a":1,"b":null,"c":1})", R"({"b":null, "c":1})",
        "{\n  \"b\": null\n}"},
       {"{}", R"({"a":1})", R"({"b":null,"a":1})", R"({"b":null,"d":1})", R"({"b":null,})"}},
      {R"({"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":false})",
       {"{}", R"({"a":1})"},
       {R"({"b":1})"}},
      {R"({"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":{"type":"string"}})",
       {"{}", R"({"a":1})", R"({"a":1,"ab":"x"})", R"({"":"y","b":"x"})"},
       {R"({"a":"x"})", R"({"b":1})", R"({"\u0061":"x"})"}},
      {R"({"type":"object","additionalProperties":{"type":"integer"},"minProperties":1,"maxProperties":2})",
       {R"({"a":1})", R"({"a":1,"b":2})"},
       {"{}", R"({"a":1,"b":2,"c":3})"}},
      {R"({"type":"object","required":["x"],"properties":{"a":{"const":1}}})",
       {R"({"x":[]})", R"({"a":1,"x":2})"},
       {"{}", R"({"a":1})"}},
      {R"({"type":"object","patternProperties":{"^n_":{"type":"integer"},"_s$":{"type":"integer","minimum":5}},
          "additionalProperties":false})",
       {R"({"n_a":1})", R"({"a_s":7})", R"({"n_s":5})", "{}"},
       {R"({"n_s":1})", R"({"a":1})", R"({"a_s":4})"}},
      {R"({"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},
                    {"properties":{"a":{"minimum":5},"b":{"const":1}}}]})",
       {R"({"a":5})", R"({"a":7,"b":1})"},
       {R"({"a":4})", "{}"}},
      {R"({"type":"object","properties":{"a":false,"b":{"const":1}}})",
       {"{}", R"({"b":1})"},
       {R"({"a":1})"}},
      {R"({"oneOf":[{"properties":{"kind":{"const":"a"},"x":{"type":"integer"}},"required":["kind","x"]},
                    {"properties":{"kind":{"const":"b"}},"required":["kind"]}]})",
       {R"({"kind":"a","x":1})", R"({"kind":"b"})"},
       {R"({"kind":"a"})", R"({"kind":"c"})"}},
      {R"({"type":"object","properties":{"v":{"type":"integer","minimum":0,"maximum":9},
          "next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["v","next"],"additionalProperties":false})",
       {R"({"v":1,"next":{"v":2,"next":null}})"},
       {R"({"v":1,"next":{}})", R"({"v":1,"next":{"v":10,"next":null}})"}},
  });
}

TEST(ConstrainJsonSchema, WhiteSpaceIsBounded) {
  const Grammar grammar = compile_json_schema(R"({"type":"array","items":{"const":1}})", "schema");
  EXPECT_TRUE(grammar.accepts("[\n" + std::string(20, ' ') + "1]"));
  EXPECT_FALSE(grammar.accepts("[\n" + std::string(21, ' ') + "1]"));
  for (const char* text : {" []", "[] ", "[  ]", "[\n\n]", "[1 ,1]"})
    EXPECT_FALSE(grammar.accepts(text)) << text;
}

TEST(ConstrainJsonSchema, RefusesWhatItCannotKeep) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"5", "expected a schema"},
      {"[]", "expected a schema"},
      {"false", "no text fits"},
      {R"({"type":"colour"})", "schema: type: expected null"},
      {R"({"type":5})", "type"},
      {R"({"type":"integer","minimum":"a"})", "schema: minimum: expected a number"},
      {R"({"type":"string","pattern":"^(a"})",
       "schema: pattern: the regular expression ^(a cannot be used"},
      {R"({"properties":{"a":{"pattern":"(?=a) "}},"required":["a"]})",
       "schema: properties.a: pattern: the regular expression"},
      {R"({"$ref":"#/$defs/none"})", "there is no \"#/$defs/none\""},
      {R"({"$ref":"http://example.com/x.json"})", "expected a place in this schema"},
      {R"({"$ref":"#"})", "refers to itself"},
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", "refers to itself"},
      {R"({"type":"array","uniqueItems":true})", "uniqueItems"},
      {R"({"not":{"type":"null"}})", "the keyword not cannot be kept"},
      {R"({"if":{},"then":{}})", "the keyword if cannot be kept"},
      {R"({"minimun":3})", "did you mean minimum?"},
      {R"({"contains":{}})", "contains"},
      {R"({"type":"string","format":"colour"})", "the format \"colour\" cannot be kept"},
      {R"({"type":"number","multipleOf":0.01})", "multipleOf"},
      {R"({"type":"integer","multipleOf":0})", "multipleOf"},
      {R"({"oneOf":[{"type":"integer"},{"minimum":5,"type":"number"}]})", "oneOf can be kept only"},
      {R"({"type":"string","maxLength":-1})", "expected a count"},
      {R"({"type":"string","minLength":5,"maxLength":2})", "no text fits"},
      {R"({"type":"string","pattern":"^[a-z]*$","maxLength":50000})", "states"},
      {R"({"type":"object","minProperties":3})", "minProperties"},
      {R"({"allOf":[{"type":"string"},{"type":"integer"}]})", "no text fits"},
      {R"({"type":"object","properties":{"a":{"$id":"x"}},"required":["a"]})", "$id"},
      {R"({"enum":[[1]],"minItems":2})", "minItems"},
      {R"({"type":"array","items":{"type":"array","items":{"type":"string","maxLength":3000},"maxItems":1},"prefixItems":5})",
       "prefixItems"},
      {"{\"type\":\"string\",\"type\":\"integer\"}", "twice"},
      {"{", "schema"},
  };
  for (const auto& [schema, reason] : cases)
    EXPECT_THAT(message_of([&] { compile_json_schema(schema, "schema"); }), HasSubstr(reason))
        << schema;
}

TEST(ConstrainJsonSchema, LargeSchemasAreRefusedQuickly) {
  // Ten anyOf beside one another, of ten branches each, and a string of 100,000 escapes.
  std::string all = R"({"allOf":[)";
  for (int i = 0; i < 10; ++i) {
    all += i ? ",{\"anyOf\":[" : "{\"anyOf\":[";
    for (int j = 0; j < 10; ++j)
      all += (j ? ",{\"title\":\"" : "{\"title\":\"") + std::to_string(j) + "\"}";
    all += "]}";
  }
  EXPECT_THAT(message_of([&] { compile_json_schema(all + "]}", "schema"); }),
              HasSubstr("5000 ways"));
  EXPECT_THAT(message_of([&] {
                compile_json_schema(
                    R"({"type":"array","maxItems":1000,"items":{"type":"array","maxItems":1000,
                        "items":{"type":"string","maxLength":90000}}})",
                    "schema");
              }),
              HasSubstr("instructions"));
}

}  // namespace
}  // namespace mixtral::constrain
