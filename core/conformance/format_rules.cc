#include <algorithm>
#include <aq/sdk/grid.hpp>
#include <aq/sdk/two_level.hpp>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>

#include "conformance/subjects.h"
#include "plugin/dl_tensor.h"

namespace aqhost {
namespace {

constexpr int64_t kRows = 5;

/// Weights [rows, cols] that a checkpoint may contain, of kinds that formats often handle wrongly.
struct Weights {
  const char* kind;
  float (*at)(int64_t row, int64_t col);
};

float noise(int64_t row, int64_t col) {  // in (-1, 1), without a pattern
  auto x = static_cast<uint64_t>(row * 7919 + col + 1) * 0x9e3779b97f4a7c15u;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  return static_cast<float>(static_cast<int64_t>(x >> 40) - (1 << 23)) / (1 << 23);
}

constexpr Weights kWeights[] = {
    {"small random numbers", [](int64_t r, int64_t c) { return noise(r, c) * noise(c, r) * 0.1f; }},
    {"zeros", [](int64_t, int64_t) { return 0.0f; }},
    {"one large number among small ones",
     [](int64_t r, int64_t c) { return c == 3 ? 100.0f : noise(r, c) * 1e-3f; }},
    {"numbers of one sign", [](int64_t r, int64_t c) { return -1.0f - std::fabs(noise(r, c)); }},
    {"tiny numbers", [](int64_t r, int64_t c) { return noise(r, c) * 1e-30f; }},
    {"huge numbers", [](int64_t r, int64_t c) { return noise(r, c) * 1e30f; }},
};

std::vector<float> filled(const Weights& weights, int64_t rows, int64_t cols) {
  std::vector<float> values;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) values.push_back(weights.at(r, c));
  return values;
}

struct Encoded {
  QuantizedMatrix matrix;
  std::vector<float> values;
};

/// The columns [begin, begin + n) of a [rows, cols] matrix.
template <typename T>
std::vector<T> cut(const std::vector<T>& from, int64_t rows, int64_t cols, int64_t begin,
                   int64_t n) {
  std::vector<T> part;
  for (int64_t r = 0; r < rows; r++) {
    const auto first = from.begin() + r * cols + begin;
    part.insert(part.end(), first, first + n);
  }
  return part;
}

/// The parameters of a matrix [rows, cols] as fit() gives them, group by group, or super-group by
/// super-group.
std::vector<float> fitted(const Format& format, const std::vector<float>& weights, int64_t rows,
                          int64_t cols, const std::vector<float>& tensor_params) {
  const FormatDesc& desc = format.desc();
  const int64_t groups = desc.groups(cols), n_params = desc.group_params;
  std::vector<float> all(static_cast<std::size_t>(rows * groups * n_params));
  if (desc.group_size == 0) {  // one group of all rows, whose parameters are repeated in each row
    format.fit(weights, 1, rows * cols, {}, tensor_params,
               std::span(all).first(static_cast<std::size_t>(n_params)));
    for (auto i = static_cast<std::size_t>(n_params); i < all.size(); i++)
      all[i] = all[i - static_cast<std::size_t>(n_params)];
    return all;
  }
  const int64_t width = desc.fit_width(cols);
  for (int64_t begin = 0; begin < cols; begin += width) {
    const int64_t n = std::min(width, cols - begin);
    const int64_t count = n_params * (desc.two_level() ? desc.groups(n) : 1);
    std::vector<float> params(static_cast<std::size_t>(rows * count));
    format.fit(cut(weights, rows, cols, begin, n), rows, n, {}, tensor_params, params);
    for (int64_t r = 0; r < rows; r++)
      std::copy_n(params.begin() + r * count, count,
                  all.begin() + (r * groups + begin / desc.width(cols)) * n_params);
  }
  return all;
}

/// Takes a matrix through fit and quantize, group by group.
Encoded encode(const Format& format, const std::vector<float>& weights, int64_t rows,
               int64_t cols) {
  const FormatDesc& desc = format.desc();
  const int64_t groups = desc.groups(cols), width = desc.width(cols);
  const int64_t bytes = desc.code_bytes(), dim = desc.vector_dim, row_bytes = cols / dim * bytes;
  Encoded out{{rows,
               cols,
               std::vector<std::byte>(static_cast<std::size_t>(rows * row_bytes)),
               {},
               format.fit_tensor(weights, rows, cols, {})},
              std::vector<float>(weights.size())};
  const std::size_t n_params = desc.group_params;
  out.matrix.group_params = fitted(format, weights, rows, cols, out.matrix.tensor_params);
  for (int64_t g = 0; g < groups; g++) {
    const int64_t begin = g * width, n = std::min(width, cols - begin);
    const std::vector<float> part = cut(weights, rows, cols, begin, n);
    const std::vector<float> params =
        cut(out.matrix.group_params, rows, groups * static_cast<int64_t>(n_params),
            g * static_cast<int64_t>(n_params), static_cast<int64_t>(n_params));
    std::vector<float> values(part.size());
    std::vector<std::byte> codes(static_cast<std::size_t>(rows * (n / dim) * bytes));
    format.quantize(part, rows, n, params, out.matrix.tensor_params, codes, values);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t count = n / dim * bytes;
      std::copy_n(codes.begin() + r * count, count,
                  out.matrix.codes.begin() + r * row_bytes + begin / dim * bytes);
      std::copy_n(values.begin() + r * n, n, out.values.begin() + r * cols + begin);
    }
  }
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

/// Widths of matrices that the format must support.
std::vector<int64_t> widths(const FormatDesc& desc) {
  if (desc.two_level()) return {desc.super_size, 2 * int64_t{desc.super_size}};
  if (desc.group_size > 0) return {desc.group_size, 3 * int64_t{desc.group_size}};
  const int64_t dim = desc.vector_dim;
  return {32 * dim, 45 * dim};
}

/// Tests a format with its default options. Each rule uses a new instance.
class FormatRules {
 public:
  FormatRules(const Registry& registry, std::string id)
      : registry_(registry), id_(std::move(id)), rules_("format " + id_) {}

  std::vector<Verdict> run() {
    if (!rules_.rule("it can be made without options, and its description holds", [&] { make(); }))
      return rules_.take();
    rules_.rule("unknown options are refused with a message that names them", [&] { options(); });
    rules_.rule("it accepts the group sizes that it lists, and no others", [&] { group_sizes(); });
    rules_.rule("instances of the same options give the same config_json",
                [&] { expect(make()->config() == make()->config(), "they differ"); });
    rules_.rule("its structs fit older and newer hosts", [&] { growth(); });
    rules_.rule("for any weights, parameters are finite and codes are within their bits",
                [&] { all_weights(); });
    rules_.rule("fit and quantize follow the description bit for bit", [&] { described(); });
    rules_.rule("codes or values may be left out of quantize", [&] { optional_outputs(); });
    rules_.rule("dequantize gives the values that quantize gave", [&] { dequantized(); });
    rules_.rule("pack and unpack are inverse", [&] { packed(); });
    rules_.rule("a packed tensor that it does not have is refused", [&] { no_such_packed(); });
    rules_.rule("tensors of wrong shapes and types are refused", [&] { wrong_shapes(); });
    rules_.rule("calls from many threads at the same time give what a single call gives",
                [&] { threads(); });
    rules_.rule("an extension that it does not know is NULL",
                [&] { expect_no_unknown_extension(make()->raw()); });
    return rules_.take();
  }

 private:
  std::shared_ptr<const Format> make(const Json& options = Json::object()) const {
    return registry_.create_format(id_, options);
  }

  void options() const {
    try {
      make({{"no_such_option", 1}});
    } catch (const Error& e) {
      expect(std::strstr(e.what(), "no_such_option") != nullptr ||
                 std::strstr(e.what(), "only option") != nullptr,
             "the message does not name it: {}", e.what());
      return;
    }
    fail("it took \"no_such_option\"");
  }

  void group_sizes() const {
    const auto defaults = make();
    const auto sizes = defaults->desc().allowed_group_sizes();
    for (const int32_t size : sizes) {
      const auto format = make({{"group_size", size}});
      expect(format->desc().group_size == size, "asked for {}, it says {}", size,
             format->desc().group_size);
    }
    for (const Json& other : {Json(0), Json(-2), Json(7), Json("many")}) {
      if (std::find(sizes.begin(), sizes.end(), other) != sizes.end()) continue;
      bool taken = true;
      try {
        make({{"group_size", other}});
      } catch (const Error&) {
        taken = false;
      }
      expect(!taken, "it took the group size {}, which it does not list", other.dump());
    }
  }

  void growth() const {
    const auto format = make();
    const aq_quantizer* raw = format->raw();
    aq_error error{};
    check_growth<aq_format_desc>(
        [&](aq_format_desc* out) { return raw->describe(raw, out, &error); });
    const int64_t cols = widths(format->desc()).back();
    for (uint32_t i = 0; i < format->desc().n_packed; i++)
      check_growth<aq_packed_tensor>(
          [&](aq_packed_tensor* out) { return raw->get_packed(raw, kRows, cols, i, out, &error); });
  }

  void all_weights() const {
    const auto format = make();
    for (const Weights& weights : kWeights)
      for (const int64_t cols : widths(format->desc())) {
        try {
          encode(*format, filled(weights, kRows, cols), kRows, cols);
        } catch (const Error& e) {
          fail("of {}: {}", weights.kind, e.what());
        }
      }
  }

  void described() const {
    const auto format = make();
    if (!format->desc().described()) throw Skip("its element or its fit rule is custom");
    const aq::Grid grid(format->desc());
    for (const Weights& weights : kWeights)
      for (const int64_t cols : widths(format->desc()))
        compare(weights.kind, *format, grid, filled(weights, kRows, cols), cols);
  }

  static void compare(const char* kind, const Format& format, const aq::Grid& grid,
                      const std::vector<float>& weights, int64_t cols) {
    const FormatDesc& desc = format.desc();
    const Encoded got = encode(format, weights, kRows, cols);
    const auto size = static_cast<int64_t>(weights.size());
    const float global = desc.tensor_params > 0 ? aq::fit_global(desc, weights.data(), size) : 1;
    if (desc.tensor_params > 0)
      expect(got.matrix.tensor_params[0] == global, "of {}: the global scale is {}, not {}", kind,
             got.matrix.tensor_params[0], global);
    const int64_t groups = desc.groups(cols), width = desc.width(cols);
    const bool whole = desc.group_size == 0;  // then each row has the fit of the whole matrix
    for (int64_t i = 0; i < kRows * groups; i++) {
      const int64_t begin = i / groups * cols + i % groups * width;
      const float* own = &got.matrix.group_params[static_cast<std::size_t>(i) * desc.group_params];
      aq::GroupParams p;
      if (desc.two_level()) {
        const int64_t first =
            i / groups * groups + i % groups * width / desc.super_size * (desc.super_size / width);
        expect_on_lattice(kind, desc, own,
                          &got.matrix.group_params[static_cast<std::size_t>(first) * 4]);
        p = {own[0], own[1]};
      } else {
        p = aq::fit_group(desc, grid, weights.data() + (whole ? 0 : begin), whole ? size : width,
                          nullptr, global);
        expect(own[0] == p.scale && (desc.group_params < 2 || own[1] == p.zero),
               "of {}: a group's scale is {}, the description makes it {}", kind, own[0], p.scale);
      }
      const float step = p.scale / global;
      for (int64_t j = begin; j < begin + width; j++) {
        const auto at = static_cast<std::size_t>(j);
        const uint32_t code = grid.code_of(weights[at], step, p.zero);
        const float value = grid.weight_of(code, step, p.zero);
        expect(code_at(format, got.matrix, at) == code &&
                   std::memcmp(&got.values[at], &value, sizeof value) == 0,
               "of {}: {} becomes the code {} and {}, the description makes it {} and {}", kind,
               weights[at], code_at(format, got.matrix, at), got.values[at], code, value);
      }
    }
  }

  /// Checks the parameters of a group; those of the first one in its super-group are `first`. How
  /// they are found is the plugin's business.
  static void expect_on_lattice(const char* kind, const FormatDesc& desc, const float* own,
                                const float* first) {
    const aq::TwoLevelFit lattice(desc);
    const aq::TwoLevelParams p{own[0], own[1], own[2], own[3]};
    expect(
        p.d != 0 && aq::round_scale(desc, std::fabs(p.d)) == std::fabs(p.d) && p.dmin >= 0 &&
            (p.dmin == 0 || aq::round_scale(desc, p.dmin) == p.dmin) && p.d == first[2] &&
            p.dmin == first[3],
        "of {}: d is {} and dmin {}, expected numbers of scale_kind, the same in all groups of a "
        "super-group",
        kind, p.d, p.dmin);
    expect(p.scale == static_cast<float>(lattice.k_of(p)) * p.d,
           "of {}: a scale is {}, no allowed multiple of d {}", kind, p.scale, p.d);
    expect(p.minimum == static_cast<float>(lattice.m_of(p)) * p.dmin,
           "of {}: a minimum is {}, no allowed multiple of dmin {}", kind, p.minimum, p.dmin);
  }

  static uint32_t code_at(const Format& format, const QuantizedMatrix& matrix, std::size_t i) {
    const auto bytes = static_cast<std::size_t>(format.desc().code_bytes());
    uint32_t code = 0;
    std::memcpy(&code, matrix.codes.data() + i * bytes, bytes);  // little-endian
    return code;
  }

  /// One group of small random numbers and its encoding.
  struct Group {
    int64_t n;
    std::vector<float> weights;
    Encoded encoded;
  };
  static Group one_group(const Format& format) {
    const FormatDesc& desc = format.desc();
    const int64_t n = desc.two_level() ? desc.group_size : widths(desc).front();
    std::vector<float> weights = filled(kWeights[0], kRows, n);
    Encoded encoded = encode(format, weights, kRows, n);
    return {n, std::move(weights), std::move(encoded)};
  }

  void optional_outputs() const {
    const auto format = make();
    const Group g = one_group(*format);
    std::vector<float> values(g.weights.size());
    format->quantize(g.weights, kRows, g.n, g.encoded.matrix.group_params,
                     g.encoded.matrix.tensor_params, {}, values);
    expect(same_bits(values, g.encoded.values), "without codes the values are others");
    std::vector<std::byte> codes(g.encoded.matrix.codes.size());
    format->quantize(g.weights, kRows, g.n, g.encoded.matrix.group_params,
                     g.encoded.matrix.tensor_params, codes, {});
    expect(codes == g.encoded.matrix.codes, "without values the codes are others");
  }

  void dequantized() const {
    const auto format = make();
    for (const int64_t cols : widths(format->desc())) {
      const Encoded e = encode(*format, filled(kWeights[0], kRows, cols), kRows, cols);
      expect(same_bits(format->dequantize(e.matrix), e.values), "of {} columns it does not", cols);
    }
  }

  void packed() const {
    int stored = 0;
    const auto defaults = make();
    for (const int32_t size : defaults->desc().allowed_group_sizes()) {
      const auto format = make({{"group_size", size}});
      for (const int64_t cols : widths(format->desc()))
        for (const int64_t rows : {int64_t{1}, int64_t{3}, int64_t{8}}) {
          const Encoded e = encode(*format, filled(kWeights[0], rows, cols), rows, cols);
          aq_error error{};
          aq_packed_tensor tensor{};
          tensor.struct_size = sizeof tensor;
          if (format->raw()->get_packed(format->raw(), rows, cols, 0, &tensor, &error) ==
              AQ_UNSUPPORTED)
            continue;
          const auto tensors = format->pack(e.matrix);
          std::vector<std::span<const std::byte>> bytes;
          for (const PackedTensor& t : tensors) bytes.emplace_back(t.bytes);
          const QuantizedMatrix back = format->unpack(rows, cols, bytes);
          expect(back.codes == e.matrix.codes, "{} x {}: codes come back changed", rows, cols);
          expect(same_bits(back.group_params, e.matrix.group_params),
                 "{} x {}: group parameters come back changed", rows, cols);
          expect(same_bits(back.tensor_params, e.matrix.tensor_params),
                 "{} x {}: tensor parameters come back changed", rows, cols);
          stored++;
        }
    }
    expect(stored > 0, "it stores none of the shapes that were tried");
  }

  void no_such_packed() const {
    const auto format = make();
    expect_refused("a packed tensor behind the last", [&](aq_error* error) {
      aq_packed_tensor tensor{};
      tensor.struct_size = sizeof tensor;
      return format->raw()->get_packed(format->raw(), kRows, widths(format->desc()).front(),
                                       format->desc().n_packed, &tensor, error);
    });
  }

  void wrong_shapes() const {
    const auto format = make();
    const aq_quantizer* raw = format->raw();
    Group g = one_group(*format);
    QuantizedMatrix& m = g.encoded.matrix;
    const int64_t n = g.n, n_params = format->desc().group_params;
    const DLDataType code_type = dl_code(format->desc().code_bytes());
    const DLDataType wide{kDLFloat, 64, 1};
    DlTensor weight(g.weights.data(), kDlF32, {kRows, n}), flat(g.weights.data(), kDlF32, {n});
    DlTensor params(m.group_params.data(), kDlF32, {kRows, n_params});
    DlTensor few(m.group_params.data(), kDlF32, {kRows - 1, n_params});
    DlTensor whole(m.tensor_params.data(), kDlF32, {static_cast<int64_t>(m.tensor_params.size())});
    DlTensor codes(m.codes.data(), code_type, {kRows, n / format->desc().vector_dim});
    DlTensor doubles(g.weights.data(), wide, {kRows, n / 2});
    DlTensor values(g.encoded.values.data(), kDlF32, {kRows, n});
    const auto fit = [&](DlTensor& w, DlTensor& p) {
      const aq_fit_args args{sizeof args, 0, w.get(), nullptr, whole.get_or_null(), p.get()};
      return [raw, args](aq_error* error) { return raw->fit(raw, &args, error); };
    };
    const auto quantize = [&](DlTensor& w, DlTensor& p) {
      const aq_code_args args{sizeof args,         0,           w.get(),     p.get(),
                              whole.get_or_null(), codes.get(), values.get()};
      return [raw, args](aq_error* error) { return raw->quantize(raw, &args, error); };
    };
    expect_refused("fit: a weight of one dimension", fit(flat, params));
    expect_refused("fit: parameters of fewer rows", fit(weight, few));
    expect_refused("fit: a weight of doubles", fit(doubles, params));
    expect_refused("quantize: a weight of one dimension", quantize(flat, params));
    expect_refused("quantize: parameters of fewer rows", quantize(weight, few));
    expect_refused("quantize: a weight of doubles", quantize(doubles, params));
    const aq_code_args args{sizeof args,         0,           nullptr,     few.get(),
                            whole.get_or_null(), codes.get(), values.get()};
    expect_refused("dequantize: parameters of fewer rows",
                   [&](aq_error* error) { return raw->dequantize(raw, &args, error); });
  }

  void threads() const {
    const auto format = make();
    const int64_t cols = widths(format->desc()).back();
    const std::vector<float> weights = filled(kWeights[0], kRows, cols);
    const Encoded alone = encode(*format, weights, kRows, cols);
    using Clock = std::chrono::steady_clock;
    expect_on_many_threads([&] {
      const auto end = Clock::now() + std::chrono::milliseconds(100);
      for (int i = 0; i < 10 || Clock::now() < end; i++) {
        const Encoded e = encode(*format, weights, kRows, cols);
        expect(e.matrix.codes == alone.matrix.codes && same_bits(e.values, alone.values) &&
                   same_bits(format->dequantize(e.matrix), alone.values),
               "a thread among others got something else");
        format->pack(e.matrix);
      }
    });
  }

  const Registry& registry_;
  std::string id_;
  Rules rules_;
};

}  // namespace

void check_format(const Registry& registry, const std::string& id, std::vector<Verdict>& verdicts) {
  for (Verdict& verdict : FormatRules(registry, id).run()) verdicts.push_back(std::move(verdict));
}

}  // namespace aqhost
