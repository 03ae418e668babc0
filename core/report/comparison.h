#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/field.h"

namespace aqhost {

/// What `aqhost compare --json` has measured of one export.
struct Measurement {
  /// The errors of the hidden states behind a layer: with those of all earlier layers, and alone.
  struct LayerError {
    double total = 0, own = 0;
  };
  std::string folder;
  std::string text;    // the file that it was measured on
  int64_t window = 0;  // tokens
  double perplexity = 0;
  // what is known if it was compared with the original model
  std::optional<double> original_perplexity, kl, top1;
  std::vector<LayerError> layers;
};

/// Reads the output of `aqhost compare ... --text FILE --json`. The original model, if there is
/// one, is none of the results. Throws an Error that names file and field, also if nothing was
/// measured.
std::vector<Measurement> parse_comparison(const Field& json);

}  // namespace aqhost
