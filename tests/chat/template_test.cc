#include "chat/template.h"

#include <doctest/doctest.h>

#include "base/error.h"

namespace aqhost::jinja {
namespace {

const nlohmann::ordered_json kMessages = nlohmann::ordered_json::parse(
    R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "<think>hm</think>Yes", "n": [3, 1, 2]}])");

std::string rendered(const std::string& source) {
  return Template::parse(source, "T")
      .render({{"messages", from_json(kMessages)},
               {"bos_token", Value("<s>")},
               {"none_given", Value()}});
}

struct Case {
  const char *source, *text;
};

void check(std::initializer_list<Case> cases) {
  for (const Case& c : cases) {
    CAPTURE(c.source);
    CHECK(rendered(c.source) == c.text);
  }
}

TEST_CASE("white space around tags is what Jinja leaves with trim_blocks and lstrip_blocks") {
  check({{"a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"},
         {"a {%- if true -%} \n b {%- endif %} c", "ab c"},
         {"a\n  {{ 1 }}\n", "a\n  1"},
         {"x\n {%+ if true +%}\ny{% endif %}", "x\n \ny"},
         {"a\n {# comment #}\nb{#- c -#} \n d", "a\nbd"},
         {"{% raw %}{{ x }}{% endraw %}!", "{{ x }}!"},
         {"a\r\nb\r\n", "a\nb"}});
}

TEST_CASE("expressions have Jinja's precedence and Python's meaning") {
  check(
      {{"{{ 1 + 2 * 3 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }}",
        "7 3 -4 2 3.5 1024"},
       {"{{ 'a' ~ 1 * 2 }}{{ 'ab'[::-1] }}{{ 'h\xc3\xa9llo'[1:3] }}{{ [1,2,3][-1] }}",
        "a2ba\xc3\xa9l3"},
       {"{{ 1 if false else 2 }}{{ 3 if false }}{{ not 1 == 2 }}{{ 1 < 2 < 3 }}", "2TrueTrue"},
       {"{{ none }} {{ [1, 'a', none, 1.5, (2,)] }} {{ {'k': \"it's\"} }}",
        "None [1, 'a', None, 1.5, (2,)] {'k': \"it's\"}"},
       {"{{ 'x' in 'xyz' }}{{ 4 not in [1,2] }}{{ 'role' in messages[0] }}", "TrueTrueTrue"},
       {"{{ missing }}{{ missing is defined }}{{ messages[0].missing is undefined }}", "FalseTrue"},
       {"{{ none_given is none and messages is not string }}", "True"}});
}

TEST_CASE("statements: loops, scopes, macros, namespaces and blocks") {
  check(
      {{"{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}:"
        "{{ m['content']|trim }}{% if not loop.last %},{% endif %}{% endfor %}",
        "1/2:Hi,2/2:<think>hm</think>Yes"},
       {"{% set x = 1 %}{% for i in range(3) %}{% set x = i %}{% endfor %}{{ x }}", "1"},
       {"{% set ns = namespace(n=0) %}{% for i in range(4) %}{% if i == 3 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
        "3"},
       {"{% macro f(a, b='!') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(b=2, a=3) }}",
        "[1!][32]"},
       {"{% set t %} a {{ 1 }} {% endset %}{{ t|trim }}{% filter upper %}b{% endfilter %}", "a 1B"},
       {"{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% else %}no{% endfor %}", "a1b2"},
       {"{% for x in [] %}{% else %}none{% endfor %}{% generation %}g{% endgeneration %}",
        "noneg"}});
}

TEST_CASE("filters, tests and methods") {
  check(
      {{"{{ messages[2].content.split('</think>')[-1] }}{{ ' a '.strip() }}{{ 'xxa'.lstrip('x') }}",
        "Yesaa"},
       {"{{ {'b': [1, {'\xc3\xa9': none}], 'a': true}|tojson }}",
        "{\"b\": [1, {\"\xc3\xa9\": null}], \"a\": true}"},
       {"{{ [1, {}]|tojson(indent=2) }}", "[\n  1,\n  {}\n]"},
       {"{{ messages|map(attribute='role')|join(', ') }} {{ messages|selectattr('n', "
        "'defined')|list|length }}",
        "system, user, assistant 1"},
       {"{{ x|default('d') }}{{ ''|default('e', true) }}{{ messages[2].n|sort|first }}", "de1"},
       {"{{ 'a b'.title() }}{{ 'A'|lower }}{{ 'abc'.startswith('ab') }}{{ 'a-b'|replace('-', '+') "
        "}}",
        "A BaTruea+b"},
       {"{{ messages[0].get('x', 'y') }}{{ '5'|int + 1 }}{{ 'h\xc3\xa9'|length }}", "y62"},
       {"{{ strftime_now('%d %B %Y') }}", "01 January 2025"}});
}

TEST_CASE("what is not supported, and what is wrong, is an error with its line") {
  for (const auto& [source, message] : std::initializer_list<Case>{
           {"\n{% include 'x' %}", "T, line 2: the statement \"include\" is not supported"},
           {"{{ 1|frobnicate }}", "T, line 1: the filter frobnicate is not supported"},
           {"{{ 'a'.format(1) }}", "the method format of strings is not supported"},
           {"{{ [].append(1) }}", "the method append of a list is not supported"},
           {"a\n\n{{ raise_exception('no ' ~ 'system') }}",
            "T, line 3: the template refuses the chat: no system"},
           {"{{ missing.x }}", "\"missing\" is undefined"},
           {"{{ 'a' + missing }}", "\"missing\" is undefined"},
           {"{{ 1", "line 1: a tag does not end"},
           {"{% if 1 %}", "found the end of the template, expected {% endif %}"},
           {"{{ 1 2 }}", "found \"2\", expected \"}}\""},
           {"{% set x = 1 %}{% set x.y = 2 %}", "x is no namespace"},
           {"{{ 1 // 0 }}", "a division by zero"},
           {"{{ 9223372036854775 * 99999 }}", "larger than 64 bits"}}) {
    CAPTURE(source);
    CHECK_THROWS_WITH_AS(rendered(source), doctest::Contains(message), Error);
  }
}

TEST_CASE("no template takes unlimited time, memory or depth") {
  const std::string deep(200'000, '(');
  for (const std::string& source :
       {std::string(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        std::string("{{ 'x' * 999999999 }}"),
        std::string("{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ "
                    "ns.x %}{% endfor %}"),
        std::string("{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] "
                    "%}{% endfor %}"),
        std::string("{% set ns = namespace() %}{% set ns.x = ns %}"),
        std::string("{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, "
                    "ns.x] %}{% endfor %}{% if ns.x == ns.x %}y{% endif %}"),
        std::string("{% set ns = namespace(x=[1]) %}{% for i in range(20) %}{% set ns.x = [ns.x, "
                    "ns.x] %}{% endfor %}{% for i in range(999) %}{{ ns.x == ns.x }}{% endfor %}"),
        std::string("{% set ns = namespace(x=[1]) %}{% for i in range(22) %}{% set ns.x = [ns.x, "
                    "ns.x] %}{% endfor %}{% for i in range(9) %}{{ ns.x }}{% endfor %}"),
        std::string("{% set x = 'ab' * 30000000 %}{% for i in range(200000) %}{{ 'bb' in x }}{% "
                    "endfor %}"),
        std::string("{% for c in 'a' * 30000000 %}{% endfor %}"),
        std::string("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "{{ " + deep,
        "{{ 1" + std::string(100'000, '+') + "1 }}", "{{ x" + [] {
          std::string s;
          for (int i = 0; i < 5000; i++) s += ".x";
          return s;
        }() + " }}"}) {
    CAPTURE(source.substr(0, 80));
    CHECK_THROWS_AS(rendered(source), Error);
  }
}

}  // namespace
}  // namespace aqhost::jinja
