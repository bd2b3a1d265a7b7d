#include "text/jinja_template.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "base/error.h"
#include "io/json.h"

namespace mixtral {
namespace {

using jinja::Value;
using testing::HasSubstr;

constexpr const char* kVariables = R"({
  "messages": [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": " ok\n"}],
  "tools": null, "numbers": [3, 1, 2], "map": {"b": 1, "a": {"c": [true, null, 1.5]}},
  "text": "one two\tthree", "flag": false, "bos_token": "<s>", "eos_token": "</s>"})";

std::string render(std::string_view text) {
  const JinjaTemplate chat(text, "test");
  return chat.render(Value::from_json(Json::parse(kVariables, "variables"))).text;
}

std::string error_of(std::string_view text) {
  try {
    return "rendered: " + render(text).substr(0, 100);
  } catch (const Error& error) {
    return error.what();
  }
}

struct Case {
  const char* text;
  const char* expected;
};

void expect_all(std::initializer_list<Case> cases) {
  for (const Case& c : cases) {
    try {
      EXPECT_EQ(render(c.text), c.expected) << c.text;
    } catch (const std::exception& error) {
      ADD_FAILURE() << c.text << ": " << error.what();
    }
  }
}

TEST(JinjaTemplate, SpacesAroundTagsAreThoseOfTrimAndLstripBlocks) {
  expect_all({
      {"a\n  {% if 1 %}\nb\n  {% endif %}\nc\n", "a\nb\nc"},
      {"a  {%- if 1 -%}  b  {%- endif -%}  c", "abc"},
      {"  {%+ if 1 %}b{% endif %}", "  b"},
      {"a {{- 1 -}} b", "a1b"},
      {"{# gone #}\nx {#- gone -#} y", "xy"},
      {"{% raw %}{{ x }}{% endraw %}", "{{ x }}"},
      {"a\r\nb\r\n\n", "a\nb\n"},
      {"{{ {'a': {'b': 1}}['a']['b'] }}", "1"},
  });
}

TEST(JinjaTemplate, ExpressionsFollowPython) {
  expect_all({
      {"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }}", "3 -4 2 3.5 1024"},
      {"{{ 1e22 }} {{ 1e-7 }} {{ 0.1 + 0.2 }} {{ 10.0 }}", "1e+22 1e-07 0.30000000000000004 10.0"},
      {"{{ 123456789012345678901 }}", "123456789012345678901"},
      {"{{ 'a' ~ 1 ~ none ~ true }}", "a1NoneTrue"},
      {"{{ 'ab' * 3 }}{{ [1] * 2 }}", "ababab[1, 1]"},
      {"{{ 1 < 2 < 3 }} {{ 1 in numbers }} {{ 'x' not in 'abc' }}", "True True True"},
      {"{{ not flag and 1 or 2 }}", "1"},
      {"{{ 'yes' if flag else 'no' }}{{ 'gone' if flag }}", "no"},
      {"{{ -3 | abs }} {{ 2 + 3 | string | length }}", "3 3"},
      {"{{ 'abcdef'[1:4] }} {{ 'abc'[::-1] }} {{ numbers[-1] }} {{ numbers[5] }}|", "bcd cba 2 |"},
      {"{{ (1,) }} {{ () }} {{ [1, 'a', none] }} {{ {'k': 'v'} }}",
       "(1,) () [1, 'a', None] {'k': 'v'}"},
      {"{{ \"it's\" | list | length }} {{ [\"it's\"] }}", "4 [\"it's\"]"},
      {"{{ 'a\\n\\x41\\u00e9' }}", "a\nA\u00e9"},
      {"{{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }} {{ [1] == [1] }}", "True True False True"},
      {"{{ undefined_name }}|{{ map.nope }}|{{ undefined_name is defined }}", "||False"},
  });
}

TEST(JinjaTemplate, VariablesLiveInTheirBlocks) {
  expect_all({
      {"{% set n = 0 %}{% for i in numbers %}{% set n = n + i %}{{ n }} {% endfor %}{{ n }}",
       "3 1 2 0"},
      {"{% set ns = namespace(n=0) %}{% for i in numbers %}{% set ns.n = ns.n + i %}{% endfor %}"
       "{{ ns.n }}",
       "6"},
      {"{% if 1 %}{% set x = 2 %}{% endif %}{{ x }}", "2"},
      {"{% with a = 1 %}{{ a }}{% endwith %}{{ a is defined }}", "1False"},
      {"{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}", "A1"},
      {"{% set a, b = 1, 2 %}{{ b }}{{ a }}", "21"},
      {"{% for a, b in map.items() %}{{ a }}{% endfor %}", "ba"},
      {"{% filter upper %}a{{ 'b' }}{% endfilter %}", "AB"},
  });
}

TEST(JinjaTemplate, LoopsKnowWhereTheyAre) {
  expect_all({
      {"{% for i in numbers %}{{ loop.index }}{{ loop.first }}{{ loop.last }} {% endfor %}",
       "1TrueFalse 2FalseFalse 3FalseTrue "},
      {"{% for i in [] %}x{% else %}none{% endfor %}", "none"},
      {"{% for i in range(6) if i % 2 %}{{ i }}/{{ loop.length }} {% endfor %}", "1/3 3/3 5/3 "},
      {"{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}"
       "{% endif %}{{ i }}{% endfor %}",
       "02"},
      {"{% for m in messages %}{{ loop.previtem.role if loop.previtem }}-{{ loop.cycle('x', 'y') "
       "}} "
       "{% endfor %}",
       "-x user-y "},
      {"{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
       "123"},
  });
}

TEST(JinjaTemplate, MacrosTakeArguments) {
  expect_all({
      {"{% macro m(a, b='B') %}{{ a }}{{ b }}{{ varargs | length }}{{ kwargs.x }}{% endmacro %}"
       "{{ m(1) }} {{ m(1, 2, 3, x=4) }} {{ m(b=1, a=2) }}",
       "1B0 1214 210"},
      {"{% macro box() %}<{{ caller('in') }}>{% endmacro %}"
       "{% call(x) box() %}{{ x }}{{ text }}{% endcall %}",
       "<inone two\tthree>"},
      {"{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
       "3210"},
  });
}

TEST(JinjaTemplate, FiltersDoWhatJinjasDo) {
  expect_all({
      {"{{ numbers | sort | join(',') }} {{ numbers | max }} {{ numbers | sum }}", "1,2,3 3 6"},
      {"{{ messages | map(attribute='role') | list }}", "['user', 'assistant']"},
      {"{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first }}",
       "Hi <b>"},
      {"{{ map | tojson }}", R"({"b": 1, "a": {"c": [true, null, 1.5]}})"},
      {"{{ map | tojson(indent=2) }}",
       "{\n  \"b\": 1,\n  \"a\": {\n    \"c\": [\n      true,\n      null,\n      1.5\n    ]\n  "
       "}\n}"},
      {"{{ '\u00e9\\x7f<' | tojson }} {{ '\u00e9' | tojson(ensure_ascii=true) }}",
       "\"\u00e9\x7f<\" \"\\u00e9\""},
      {"{{ map | dictsort }} {{ map | items | list | length }}",
       "[('a', {'c': [True, None, 1.5]}), ('b', 1)] 2"},
      {"{{ '  x ' | trim }}|{{ nothing | default('d') }}|{{ '' | default('d', true) }}", "x|d|d"},
      {"{{ 'a-b c' | title }} {{ 'aBC' | capitalize }} {{ '3' | int + 1 }} {{ 2.5 | round }}",
       "A-B C Abc 4 2.0"},
      {"{{ 'a\nb' | indent(2) }} {{ [1, 2, 3] | batch(2) | list }}", "a\n  b [[1, 2], [3]]"},
      {"{{ [1, 'a', 1] | unique | list }} {{ [0, 1] | reject('odd') | list }}", "[1, 'a'] [0]"},
      {"{% for g in messages | groupby('role') %}{{ g.grouper }}{{ g.list | length }} {% endfor %}",
       "assistant1 user1 "},
  });
}

TEST(JinjaTemplate, MethodsOfTextDoWhatPythonsDo) {
  expect_all({
      {"{{ text.split() }} {{ text.split(' ', 1)[1] }}", "['one', 'two', 'three'] two\tthree"},
      {"{{ 'a,b,c'.rsplit(',', 1) }} {{ ' x '.strip() }} {{ 'xax'.lstrip('x') }}",
       "['a,b', 'c'] x ax"},
      {"{{ 'abc'.startswith(('x', 'a')) }} {{ 'aXa'.find('a', 1) }} {{ 'aaa'.count('a') }}",
       "True 2 3"},
      {"{{ 'stra\u00dfe'.upper() }} {{ 'A\u03a3'.lower() }} {{ '\u0130'.lower() | length }}",
       "STRASSE a\u03c2 2"},
      {"{{ 'Stra\u00dfe \ufb03'.casefold() }}", "strasse ffi"},
      {"{{ '%s|%03d|%.1f|%5s' % ('a', 7, 2.25, 'r') }}", "a|007|2.2|    r"},
      {"{{ '{} {n:>3}'.format('a', n=5) }} {{ 'x'.center(5, '*') }}", "a   5 **x**"},
      {"{{ map.get('zz', 'd') }} {{ map.keys() | list }} {{ map.items() }}",
       "d ['b', 'a'] dict_items([('b', 1), ('a', {'c': [True, None, 1.5]})])"},
      {"{{ 'a\\u2028b'.splitlines() }} {{ '\uff11'.isdigit() }}", "['a', 'b'] True"},
  });
}

TEST(JinjaTemplate, WhatPythonRefusesIsAnErrorWithItsLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"\n{{ nothing.x }}", "test:2: 'nothing' is undefined"},
      {"{{ 'a' + 1 }}", "unsupported operand"},
      {"{{ 1 / 0 }}", "division by zero"},
      {"{{ 1 | no_such }}", "no_such"},
      {"{{ 1 is no_such }}", "no_such"},
      {"{% if true %}x", "endif"},
      {"{% unknown %}", "unknown"},
      {"{% include 'x' %}", "include"},
      {"{{ messages.append(1) }}", "append"},
      {"{{ raise_exception('not so') }}", "not so"},
      {"{{ ''.__class__.__mro__ }}", "__class__"},
      {"{{ 1 < 'a' }}", "order"},
      {"{{ (", "test:1"},
      {"{{ 'a", "test:1"},
      {"{% break %}", "outside of a loop"},
      {"{% set map.x = 1 %}", "namespace"},
  };
  for (const auto& [text, said] : cases) EXPECT_THAT(error_of(text), HasSubstr(said)) << text;
}

TEST(JinjaTemplate, AFilterThatDoesNotExistFailsInABranchOnlyWhenReached) {
  EXPECT_EQ(render("{% if flag %}{{ 1 | no_such }}{% endif %}ok"), "ok");
}

TEST(JinjaTemplate, HostileTemplatesEndInAnErrorSoon) {
  const auto begin = std::chrono::steady_clock::now();
  std::string nested = "{{ " + std::string(100000, '(') + "1" + std::string(100000, ')') + " }}";
  std::string blocks, sum = "{{ 1";
  for (int i = 0; i < 10000; ++i) blocks += "{% if 1 %}";
  for (int i = 0; i < 10000; ++i) sum += "+1";
  for (const std::string& text :
       {nested, blocks, sum + " }}",
        std::string(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        std::string("{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}"
                    "{% set n.s = n.s ~ n.s %}{% endfor %}"),
        std::string("{{ 'a' * 10**10 }}"), std::string("{{ range(10**9) }}"),
        std::string("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"),
        std::string("{{ [1] * 10**9 }}"), std::string("{{ 10**40 }}"),
        std::string("{{ '%999999999d' % 1 }}"), std::string("{{ 'a'.center(10**12) }}"),
        std::string("{% for i in range(9999) %}{{ 'a' * 999999 }}{% endfor %}")})
    EXPECT_THAT(error_of(text), testing::Not(testing::StartsWith("rendered")))
        << text.substr(0, 99);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

TEST(JinjaTemplate, LookingThroughLargeValuesAgainAndAgainEndsSoon) {
  const std::string again = "{% for i in range(90000) %}{% for j in range(9) %}",
                    end = "{% endfor %}{% endfor %}";
  const std::string text = "{% set s = 'a' * 900000 %}" + again;
  for (const char* test : {"s.isdigit()", "s|length", "s[1]", "s|int", "'b' in s", "{'a': 1}[s]",
                           "s.endswith(s)", "s == s + 'b'"})
    EXPECT_THAT(error_of(fmt::format("{}{{% if {} %}}{{% endif %}}{}", text, test, end)),
                HasSubstr("too m"))
        << test;
  const std::string list = "{% set l = range(90000)|list %}" + again;
  for (const char* test : {"-1 in l", "l|sum", "l == l", "l[5:6]"})
    EXPECT_THAT(error_of(fmt::format("{}{{% if {} %}}{{% endif %}}{}", list, test, end)),
                HasSubstr("too m"))
        << test;
  // Nearly the right place each time.
  EXPECT_THAT(error_of("{% set s = 'a' * 900000 %}{{ ('a' * 400000 + 'b') in s }}"),
              HasSubstr("too many steps"));
  // Two lists of 2^60 numbers.
  const std::string nested =
      "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}"
      "{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}";
  for (const char* value : {"ns.l == ns.m", "ns.l < ns.m", "ns.l|tojson", "ns.l", "ns.l|join('')"})
    EXPECT_THAT(error_of(nested + "{{ " + value + " }}"), HasSubstr("too m")) << value;
}

TEST(JinjaTemplate, GenerationBlocksMarkTheAnswers) {
  const JinjaTemplate chat(
      "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
      "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
      "test");
  EXPECT_TRUE(chat.marks_answers());
  const auto rendered = chat.render(Value::from_json(Json::parse(kVariables, "variables")));
  ASSERT_EQ(rendered.generated.size(), 1u);
  const auto [begin, end] = rendered.generated[0];
  EXPECT_EQ(rendered.text.substr(begin, end - begin), " ok\n");
}

TEST(JinjaTemplate, MessagesAreHandedOverAsTransformersDoes) {
  const auto messages = [](const char* json) {
    return representation(template_messages(Value::from_json(Json::parse(json, "m")), "m"));
  };
  EXPECT_EQ(messages(R"([{"role": "user", "content": null}])"), "[{'role': 'user'}]");
  EXPECT_EQ(messages(R"([{"role": "a", "reasoning": "r"}])"),
            "[{'thinking': 'r', 'role': 'a', 'reasoning': 'r', 'reasoning_content': 'r'}]");
  EXPECT_THROW(messages("[]"), Error);
  EXPECT_THROW(messages("[1]"), Error);
}

}  // namespace
}  // namespace mixtral
