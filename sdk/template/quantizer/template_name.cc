// template_name: numbers from a table, here eight of them, with a float16 scale for each group. The
// description says how weights become codes; all that is left to write is how codes are stored.
#include <aq/sdk/format.hpp>
#include <aq/sdk/pack.hpp>
#include <cstring>

namespace {

class TemplateName : public aq::DescribedFormat {
 public:
  static constexpr aq::Descriptor kDescriptor{"template_name", "TemplateName", "0.1.0", "you",
                                              "3-bit numbers from a table, in groups"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<TemplateName>(options);
  }

  explicit TemplateName(aq::Options& options) {
    values_ = {-1.0f, -0.6f, -0.35f, -0.12f, 0.0f, 0.2f, 0.5f, 1.0f};  // by code
    search_ = aq::shrink_factors();                                    // scales to try
    group_sizes_ = {32, 64, 128};
    desc_.element_kind = AQ_ELEM_TABLE;
    desc_.element_bits = kBits;
    desc_.fit_rule = AQ_FIT_ABSMAX;
    desc_.scale_divisor = 1.0f;  // what absmax becomes on the grid
    desc_.scale_kind = AQ_SCALE_F16;
    desc_.group_size = options.group_size(64, group_sizes_);
    desc_.group_params = 1;  // the scale
    desc_.n_packed = 3;
    seal();
    config_ = nlohmann::json{{"quant_method", "template_name"},
                             {"format", "template_name-packed"},
                             {"weights",
                              {{"num_bits", kBits},
                               {"type", "float"},
                               {"symmetric", true},
                               {"strategy", "group"},
                               {"group_size", desc_.group_size}}}}
                  .dump();
  }

  std::vector<aq::Packed> packed(int64_t rows, int64_t cols) const override {
    return {{"weight_packed", "I32", aq::kI32, {rows, aq::packed_words(cols, kBits)}},
            {"weight_scale", "F16", aq::kHalf, {rows, groups(cols)}},
            {"weight_shape", "I64", aq::kI64, {2}}};
  }

  void pack(const aq_pack_args& args) const override {
    const int64_t words = aq::packed_words(args.cols, kBits), n = args.rows * groups(args.cols);
    const auto* codes = aq::view<const uint8_t>(args.codes, "codes", {args.rows, args.cols});
    const auto* scales = static_cast<const float*>(aq::data_of(args.group_params));
    auto* packed = static_cast<uint32_t*>(aq::data_of(args.packed[0]));
    auto* halves = static_cast<uint16_t*>(aq::data_of(args.packed[1]));
    for (int64_t r = 0; r < args.rows; r++)
      aq::pack_words(codes + r * args.cols, args.cols, 1, kBits, packed + r * words, 1);
    for (int64_t i = 0; i < n; i++) halves[i] = aq::f16_bits(scales[i]);
    const int64_t shape[2] = {args.rows, args.cols};
    std::memcpy(aq::data_of(args.packed[2]), shape, sizeof shape);
  }

  void unpack(const aq_pack_args& args) const override {
    const int64_t words = aq::packed_words(args.cols, kBits), n = args.rows * groups(args.cols);
    auto* codes = aq::view<uint8_t>(args.codes, "codes", {args.rows, args.cols});
    auto* scales = static_cast<float*>(aq::data_of(args.group_params));
    const auto* packed = static_cast<const uint32_t*>(aq::data_of(args.packed[0]));
    const auto* halves = static_cast<const uint16_t*>(aq::data_of(args.packed[1]));
    for (int64_t r = 0; r < args.rows; r++)
      aq::unpack_words(packed + r * words, 1, kBits, codes + r * args.cols, args.cols, 1);
    for (int64_t i = 0; i < n; i++) scales[i] = aq::from_f16(halves[i]);
  }

 private:
  static constexpr int kBits = 3;
};

}  // namespace

AQ_EXPORT_QUANTIZER(TemplateName);
