#include "report/comparison.h"

#include "base/error.h"

namespace aqhost {
namespace {

Measurement parse_row(const Field& json) {
  Measurement m;
  m.folder = json["folder"].text();
  if (json["perplexity"].is_null())
    fail("{}: has no perplexity; aqhost compare measures it with --text FILE", json.where());
  m.perplexity = json["perplexity"].number();
  m.text = json["text"].text();
  m.window = json["window"].integer();
  if (json["kl_divergence"].is_null()) return m;
  m.kl = json["kl_divergence"].number();
  m.top1 = json["top1_agreement"].number();
  for (const Field& layer : json["layers"].items())
    m.layers.push_back({layer["error"].number(), layer["own_error"].number()});
  return m;
}

}  // namespace

std::vector<Measurement> parse_comparison(const Field& json) {
  std::vector<Measurement> rows;
  for (const Field& row : json.items()) rows.push_back(parse_row(row));
  // the first row is the original model if the others were compared with it
  if (rows.size() < 2 || rows[0].kl || !rows[1].kl) return rows;
  for (Measurement& row : rows) row.original_perplexity = rows[0].perplexity;
  rows.erase(rows.begin());
  return rows;
}

}  // namespace aqhost
