#include "base/pattern.h"

#include <doctest/doctest.h>

#include "base/error.h"

namespace aqhost {
namespace {

TEST_CASE(
    "globs: * crosses dots and may be empty, ? is one character, and the whole name must match") {
  CHECK(glob_match("*.mlp.experts.*", "model.layers.0.mlp.experts.3.up_proj"));
  CHECK(glob_match("model.*.gate", "model.layers.10.mlp.gate"));
  CHECK(glob_match("*", ""));
  CHECK(glob_match("", ""));
  CHECK(glob_match("a*b*c", "abbbc"));
  CHECK(glob_match("*a*b", "xxabab"));
  CHECK(glob_match("lm_head", "lm_head"));
  CHECK(glob_match("layer?", "layer7"));
  CHECK(glob_match("**", "x"));
  CHECK(!glob_match("layer?", "layer"));
  CHECK(!glob_match("layer?", "layer12"));
  CHECK(!glob_match("gate", "mlp.gate"));
  CHECK(!glob_match("*.gate", "mlp.gate_proj"));
  CHECK(!glob_match("", "a"));
  CHECK(!glob_match("a*b*c", "abcb"));
  CHECK(!glob_match("[a]", "a"));
  // many stars take no more time than the product of both lengths
  CHECK(!glob_match("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", std::string(5000, 'a')));
}

TEST_CASE("an invalid or too long regular expression is refused") {
  CHECK(std::regex_match("layers.17", compile_regex(R"(layers\.\d+)", "f:3")));
  CHECK(std::regex_match("ab", compile_regex("(?!b)a(?=b).", "f:3")));
  CHECK_THROWS_WITH_AS(compile_regex("(a", "f:3"),
                       doctest::Contains("f:3: \"(a\" is no valid regular expression: "), Error);
  CHECK_THROWS_WITH_AS(compile_regex(std::string(100'000, '('), "f:3"),
                       "f:3: a regular expression of 100000 characters, expected at most 1000",
                       Error);
  CHECK_THROWS_AS(compile_regex("(a){1000}{1000}", "f:3"), Error);
  CHECK_THROWS_AS(compile_regex(R"((a)\1)", "f:3"), Error);
  CHECK_THROWS_WITH_AS(compile_regex("a{1234567890}", "f:3"),
                       "f:3: \"a{1234567890}\" has a number of more than 9 digits", Error);
}

TEST_CASE("nested repetitions, which take a backtracking matcher years, are matched quickly") {
  CHECK(!std::regex_match(std::string(60, 'a'), compile_regex("(a*)*b", "f")));
  CHECK(!std::regex_match(std::string(60, 'a'), compile_regex("(.*a)*(.*a)*(a|aa)*b", "f")));
}

}  // namespace
}  // namespace aqhost
