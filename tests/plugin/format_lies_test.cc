#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <map>

#include "plugin/registry.h"
#include "plugin/said.h"

namespace aqhost {
namespace {

constexpr int64_t kRows = 3, kCols = 20;  // a whole group of 16 and one of 4

/// A matrix goes the whole way: fit, quantize, pack, unpack, dequantize.
void use_format(const Registry& registry, const std::string& id) {
  const auto format = registry.create_format(id, Json::object());
  QuantizedMatrix m{kRows, kCols, std::vector<std::byte>(kRows * kCols), {}, {}};
  std::vector<float> weights(kRows * kCols), values(kRows * kCols);
  for (std::size_t i = 0; i < weights.size(); i++)
    weights[i] = std::sin(static_cast<float>(i) * 1.7f);
  m.tensor_params = format->fit_tensor(weights, kRows, kCols, {});
  m.group_params.resize(kRows * 2 * format->desc().group_params);
  for (const int64_t begin : {0, 16}) {
    const int64_t n = std::min<int64_t>(16, kCols - begin);
    for (int64_t r = 0; r < kRows; r++) {
      const auto at = static_cast<std::size_t>(r * kCols + begin);
      const auto count = static_cast<std::size_t>(n);
      const std::span w(weights.data() + at, count), v(values.data() + at, count);
      const std::span params(&m.group_params[static_cast<std::size_t>(r * 2 + begin / 16)], 1);
      format->fit(w, 1, n, {}, m.tensor_params, params);
      format->quantize(w, 1, n, params, m.tensor_params, {m.codes.data() + at, count}, v);
    }
  }
  const auto packed = format->pack(m);
  std::vector<std::span<const std::byte>> bytes;
  for (const PackedTensor& t : packed) bytes.emplace_back(t.bytes);
  const QuantizedMatrix read = format->unpack(kRows, kCols, bytes);
  CHECK(read.codes == m.codes);
  CHECK(read.group_params == m.group_params);
  CHECK(format->dequantize(read) == values);
  bytes.pop_back();
  CHECK(contains(said([&] { format->unpack(kRows, kCols, bytes); }), "2 packed tensors"));
  bytes.emplace_back(packed[0].bytes);
  CHECK(contains(said([&] { format->unpack(kRows, kCols, bytes); }), "bytes, expected 16"));
}

/// What is said of each lie.
const std::map<std::string, std::string> kSaidOfFormats{
    {"no-pack", "a function that every format has is missing"},
    {"short-table", "a function that every format has is missing"},
    {"destroy-throws", "a function that every format has is missing"},
    {"describe-throws", "describe: it let a C++ exception out, which the ABI forbids"},
    {"element-unknown", "element_kind 3 is not known"},
    {"bits-absurd", "element_bits is 40, expected 1 to 16"},
    {"ints-too-wide", "integers -8 to 8 do not fit 4 bits"},
    {"ints-overflow", "integers -2147483648 to 1 do not fit 4 bits"},
    {"table-null", "a table format without values"},
    {"table-nan", "a grid value is not finite"},
    {"vector-described", "vector_dim 4 of a format that is no custom one"},
    {"fit-unknown", "fit_rule 7 is not known"},
    {"two-level-zero", "two-level scales go with integers of at most 8 bits, without zero points"},
    {"two-level-kind", "two-level scales of scale_kind 1, expected F16, BF16 or E4M3"},
    {"two-level-size", "super-groups of 250, expected whole groups of each of its group sizes"},
    {"two-level-range", "scales of 1 to 1048576 and minima of up to 63 steps"},
    {"two-level-params", "1 group_params and 0 tensor_params, expected scale, minimum, d and dmin"},
    {"one-level", "super-groups of 256 go with two-level scales alone"},
    {"divisor-zero", "scale_divisor is 0, expected a positive number"},
    {"flags-unknown", "the flags 0x200 are not known"},
    {"sign-of-e4m3", "scales with a sign go with the absmax rule"},
    {"scale-unknown", "scale_kind 0 is not known"},
    {"round-mismatch", "scale_round 2 does not go with scale_kind 3"},
    {"group-not-own", "group_size 48 is not among its own group sizes"},
    {"groups-null", "6 group sizes, expected 1 to 64 and where they are"},
    {"groups-odd", "group size -2, expected -1, 0 or a positive multiple"},
    {"params-absurd", "4294967295 group_params"},
    {"params-two", "2 group_params, a scale was expected"},
    {"tensor-params", "3 tensor_params and global_max 0 do not go with its global scale"},
    {"no-fit-tensor", "tensor_params, but no fit_tensor"},
    {"fit-tensor-empty", "fit_tensor gave a parameter that is not finite"},
    {"packed-none", "n_packed is 0, expected 1 to 16"},
    {"search-null", "2 search factors, expected 0 to 4096 and where they are"},
    {"search-negative", "a search factor is not a positive number"},
    {"config-null", "config_json is NULL"},
    {"config-no-json", "config_json: not valid JSON"},
    {"config-no-object", "config_json is no object with"},
    {"config-format", "config_json is no object with"},
    {"config-weights", "config_json is no object with"},
    {"config-twice", "config_json: key \"format\" appears twice"},
    {"config-throws", "config_json let an exception out: no"},
    {"fit-infinite", "fit gave a parameter that is not finite"},
    {"fit-throws", "fit: it let a C++ exception out, which the ABI forbids"},
    {"fit-nothing", "fit gave a parameter that is not finite"},
    {"quantize-nan", "quantize gave a value that is not finite"},
    {"quantize-code", "quantize gave the code 16, which 4 bits cannot hold"},
    {"packed-suffix-null", "packed tensor 0 has no name of its own"},
    {"packed-suffix-twice", "packed tensor 1 has no name of its own"},
    {"packed-type-null", "packed tensor weight_packed has the type  of 32 bits"},
    {"packed-type-other", "packed tensor weight_packed has the type U8 of 32 bits"},
    {"packed-ndim", "packed tensor weight_packed has 99 dimensions"},
    {"packed-negative", "packed tensor weight_packed of a 3 x 20 matrix has a dimension of -1"},
    {"packed-absurd", "of a 3 x 20 matrix has a dimension of 4611686018427387903"},
    {"packed-large", "of a 3 x 20 matrix has a dimension of 1048576"},
    {"pack-throws", "pack: it let an exception out, which the ABI forbids"},
    {"unpack-code", "unpack gave the code 200, which 4 bits cannot hold"},
    {"unpack-nan", "a scale is not finite: the file is damaged"},
};

}  // namespace

TEST_CASE("every lie of a format is found, and the sentence names the file") {
  const std::filesystem::path file =
      std::filesystem::path(AQ_BUILD_DIR) / "tests/plugins-lying/lying-format.so";
  const Registry registry({file.parent_path()});
  CHECK(said([&] { use_format(registry, "honest"); }).empty());
  CHECK(registry.format_ids().size() == kSaidOfFormats.size() + 1);
  for (const auto& [id, expected] : kSaidOfFormats) {
    CAPTURE(id);
    [[maybe_unused]] const LeaksAllowed of_broken_tables;
    const std::string text = said([&, &id = id] { use_format(registry, id); });
    CHECK_MESSAGE(contains(text, expected), text);
    const bool of_checkpoint = id == "unpack-nan";  // its caller names the tensor
    CHECK_MESSAGE((of_checkpoint || contains(text, file.string())), text);
  }
}

}  // namespace aqhost
