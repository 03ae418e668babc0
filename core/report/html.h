#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace aqhost {

/// `text` as the content of an element or of a quoted attribute: the five special characters of
/// HTML are escaped. What is not UTF-8, and control characters, which no document may contain, are
/// replaced by U+FFFD. Tabs and line feeds stay.
std::string escape_html(std::string_view text);

/// Writes a document of HTML, with pictures in SVG. Every text and every value of an attribute is
/// escaped here, so no text of a model or of a user becomes markup. The names of elements and
/// attributes come from this program.
class Html {
 public:
  using Attributes = std::initializer_list<std::pair<std::string_view, std::string>>;

  Html& open(std::string_view name, Attributes attributes = {});
  /// Closes the element that was opened last and is still open.
  Html& close();
  Html& text(std::string_view text);
  /// An element that contains nothing but text.
  Html& element(std::string_view name, Attributes attributes, std::string_view text) {
    return open(name, attributes).text(text).close();
  }
  Html& element(std::string_view name, std::string_view text) { return element(name, {}, text); }
  /// A void element of HTML (meta), which has no end.
  Html& single(std::string_view name, Attributes attributes);
  /// Adds markup of this program as it is.
  Html& raw(std::string_view markup);

  /// The document; every element is closed.
  const std::string& str() const { return out_; }

 private:
  void begin(std::string_view name, Attributes attributes);

  std::string out_;
  std::vector<std::string> opened_;
};

/// A table in which all columns but the first `texts` contain numbers. A row may be shorter than
/// the header.
struct HtmlTable {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
  std::size_t texts = 1;
};
/// Writes the table into a box of its own, which scrolls if the table is too wide for the page.
void write(Html& html, const HtmlTable& table);

}  // namespace aqhost
