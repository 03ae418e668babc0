#include "report/html.h"

#include "base/utf8.h"

namespace aqhost {
namespace {

/// The line feeds keep the lines of the document short enough for editors and diffs.
bool begins_line(std::string_view name) {
  return name == "section" || name == "table" || name == "tr" || name == "svg" ||
         name == "figure" || name == "p" || name == "rect" || name == "path" || name == "div" ||
         name == "h2";
}

void append_escaped(std::string& out, char c) {
  switch (c) {
    case '&':
      out += "&amp;";
      return;
    case '<':
      out += "&lt;";
      return;
    case '>':
      out += "&gt;";
      return;
    case '"':
      out += "&quot;";
      return;
    case '\'':
      out += "&#39;";
      return;
    default:
      break;
  }
  const auto byte = static_cast<unsigned char>(c);
  const bool control = (byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f;
  if (control)
    out += "\uFFFD";
  else
    out += c;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  for (const char c : as_utf8(text)) append_escaped(out, c);
  return out;
}

void Html::begin(std::string_view name, Attributes attributes) {
  if (begins_line(name) && !out_.empty() && out_.back() != '\n') out_ += '\n';
  out_ += '<';
  out_ += name;
  for (const auto& [key, value] : attributes) {
    out_ += ' ';
    out_ += key;
    out_ += "=\"";
    out_ += escape_html(value);
    out_ += '"';
  }
  out_ += '>';
}

Html& Html::open(std::string_view name, Attributes attributes) {
  begin(name, attributes);
  opened_.emplace_back(name);
  return *this;
}

Html& Html::close() {
  out_ += "</" + opened_.back() + ">";
  opened_.pop_back();
  return *this;
}

Html& Html::text(std::string_view text) {
  out_ += escape_html(text);
  return *this;
}

Html& Html::single(std::string_view name, Attributes attributes) {
  begin(name, attributes);
  return *this;
}

Html& Html::raw(std::string_view markup) {
  out_ += markup;
  return *this;
}

void write(Html& html, const HtmlTable& table) {
  const auto cells = [&](std::string_view element, const std::vector<std::string>& row) {
    html.open("tr");
    for (const std::string& cell : row) html.element(element, cell);
    html.close();
  };
  html.open("div", {{"class", "scroll"}});
  html.open("table", {{"class", "t" + std::to_string(table.texts)}});  // see style.cc
  if (!table.header.empty()) {
    html.open("thead");
    cells("th", table.header);
    html.close();
  }
  html.open("tbody");
  for (const auto& row : table.rows) cells("td", row);
  html.close().close().close();
}

}  // namespace aqhost
