#include "base/field.h"

#include <doctest/doctest.h>

#include "base/error.h"

namespace aqhost {
namespace {

/// The message of the Error when `read` reads `json` under the key "k"; "" if there is none.
template <typename Read>
std::string said(const Json& json, Read read) {
  const Json file{{"k", json}};
  try {
    read(Field(file, "x.json")["k"]);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a field of another type is refused, and the message names its file, path and value") {
  const auto integer = [](const Field& f) { f.integer(); };
  CHECK(said(3, integer).empty());
  CHECK(said(INT64_MIN, integer).empty());
  CHECK(said(3.0, integer) == "x.json: k: expected an integer, found 3.0");
  CHECK(said(true, integer) == "x.json: k: expected an integer, found true");
  CHECK(said("3", integer) == "x.json: k: expected an integer, found \"3\"");
  CHECK(said({}, integer) == "x.json: k: expected an integer, found nothing");
  CHECK(said(std::string(100, 'a'), integer) == "x.json: k: expected an integer, found string");
  CHECK(said(Json::array({1}), integer) == "x.json: k: expected an integer, found array");
  CHECK(said(3, [](const Field& f) { f.text(); }) == "x.json: k: expected a string, found 3");
  CHECK(said(3, [](const Field& f) { f.flag(); }) == "x.json: k: expected true or false, found 3");
  CHECK(said("x", [](const Field& f) { f.number(); }) ==
        "x.json: k: expected a number, found \"x\"");
  CHECK(said(3, [](const Field& f) { f.items(); }) == "x.json: k: expected an array, found 3");
  CHECK(said(3, [](const Field& f) { f.members(); }) == "x.json: k: expected an object, found 3");
  CHECK(said(3, [](const Field& f) { f["a"]; }) == "x.json: k: expected an object, found 3");
  CHECK(said(Json::array({1, "x"}), [](const Field& f) { f.items().at(1).integer(); }) ==
        "x.json: k[1]: expected an integer, found \"x\"");
  CHECK(said({{"a", "x"}}, [](const Field& f) { f.members().at(0).second.integer(); }) ==
        "x.json: k.a: expected an integer, found \"x\"");
}

TEST_CASE("an integer beyond its bounds, or beyond 63 bits, is refused") {
  const auto within = [](const Field& f) { f.integer(-1, 8); };
  for (const int64_t fits : {-1, 0, 8}) CHECK(said(fits, within).empty());
  CHECK(said(9, within) == "x.json: k: expected an integer from -1 to 8, found 9");
  CHECK(said(-2, within) == "x.json: k: expected an integer from -1 to 8, found -2");
  CHECK(said(UINT64_MAX, within) ==
        "x.json: k: expected an integer from -1 to 8, found 18446744073709551615");
  CHECK(!said(uint64_t{1} << 63, [](const Field& f) { f.integer(); }).empty());
}

TEST_CASE("null and missing members differ from those that are there") {
  const Json file{{"null", nullptr}, {"text", "x"}, {"flag", true}};
  const Field f(file, "x.json");
  for (const char* key : {"null", "missing"}) {
    CHECK(f[key].is_null());
    CHECK(f[key].text_or("other") == "other");
    CHECK(f[key].flag_or(true));
  }
  CHECK(f["text"].text_or("other") == "x");
  CHECK_THROWS_AS(f["flag"].text_or("other"), Error);
}

}  // namespace aqhost
