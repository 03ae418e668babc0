#include "report/html.h"

#include <doctest/doctest.h>

namespace aqhost {
namespace {

TEST_CASE("the characters that have a meaning in HTML are escaped") {
  CHECK(escape_html("<script>alert(\"a\" & 'b')</script>") ==
        "&lt;script&gt;alert(&quot;a&quot; &amp; &#39;b&#39;)&lt;/script&gt;");
  CHECK(escape_html("ä 漢\ttab\n") == "ä 漢\ttab\n");
}

TEST_CASE("what no document may contain is replaced") {
  CHECK(escape_html(std::string_view("a\0b\x1b[31m\x7f", 9)) == "a\uFFFDb\uFFFD[31m\uFFFD");
  CHECK(escape_html("\xff<\xc3") == "\uFFFD&lt;\uFFFD");
}

TEST_CASE("texts and attributes are escaped, and elements end in the order of their beginning") {
  Html html;
  html.open("p", {{"title", "\"><b>"}}).text("1 < 2 ").element("b", "&").close();
  CHECK(html.str() == "<p title=\"&quot;&gt;&lt;b&gt;\">1 &lt; 2 <b>&amp;</b></p>");
}

TEST_CASE("a table names the number of its columns of text, and escapes its cells") {
  Html html;
  write(html, HtmlTable{{"module", "format", "loss"}, {{"a<b", "int4", "3"}}, 2});
  CHECK(html.str() ==
        "<div class=\"scroll\">\n<table class=\"t2\"><thead>\n<tr><th>module</th><th>format</th>"
        "<th>loss</th></tr></thead><tbody>\n<tr><td>a&lt;b</td><td>int4</td><td>3</td></tr>"
        "</tbody></table></div>");
}

}  // namespace
}  // namespace aqhost
