// codebook: one code stands for four weights. Each matrix has 256 vectors of its own, found by
// k-means. A group of weights has a scale; four weights divided by that scale are stored as the
// number of the nearest vector, so a weight takes 2 bits. A description cannot express this, so the
// host calls the functions of this class.
//
// On disk, per module of [rows, cols]:
//   weight_packed    u8  [rows, cols / 4]
//   weight_scale     f16 [rows, groups]   root mean square of the group
//   weight_codebook  f32 [256, 4]
//   weight_shape     i64 [2]
#include <aq/sdk/format.hpp>
#include <cmath>

namespace {

constexpr int64_t kDim = 4, kCodes = 256, kMaximumSamples = 2048;
constexpr int kRounds = 6;

/// The nearest of kCodes vectors, the first of equal ones.
uint8_t nearest(const float* vector, const float* codebook) {
  int64_t best = 0;
  float least = INFINITY;
  for (int64_t c = 0; c < kCodes; c++) {
    float distance = 0;
    for (int64_t i = 0; i < kDim; i++) {
      const float d = vector[i] - codebook[c * kDim + i];
      distance += d * d;
    }
    if (distance < least) {
      least = distance;
      best = c;
    }
  }
  return static_cast<uint8_t>(best);
}

/// Scale of n weights: their root mean square as binary16 holds it, 1 of zeros.
float scale_of(const float* weights, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += double{weights[i]} * weights[i];
  const auto root = static_cast<float>(std::sqrt(sum / static_cast<double>(n)));
  return root > 0 ? std::max(aq::kF16.round(root), aq::kF16.smallest()) : 1.0f;
}

class Codebook : public aq::Quantizer {
 public:
  static constexpr aq::Descriptor kDescriptor{"codebook", "Codebook", "1.0.0", "an example",
                                              "256 vectors of four weights for each matrix"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<Codebook>(options);
  }

  explicit Codebook(aq::Options& options)
      : Quantizer({.scale = {.kind = AQ_SCALE_F16},
                   .group_size = options.group_size(64, {32, 64, 128, -1}),
                   .packed = {aq::packed_codes("weight_packed", "U8"), aq::packed_scales(),
                              aq::packed_tensor_params("weight_codebook", {kCodes, kDim}),
                              aq::packed_shape()},
                   .config = {{"quant_method", "codebook"},
                              {"format", "codebook-4x256"},
                              {"weights", {{"num_bits", 2}}}},
                   .custom = {.fit = true,
                              .codes = true,
                              .bits = 8,
                              .vector_dim = kDim,
                              .tensor_params = kCodes * kDim}}) {}

  /// k-means over vectors spread evenly through the matrix, each divided by its group's scale.
  void fit_tensor(const aq_fit_args& args) const override {
    const auto* weights = aq::view<const float>(args.weight, "weight", {-1, -1});
    auto* codebook = aq::view<float>(args.params, "params", {kCodes * kDim});
    const std::vector<float> samples =
        sample(weights, args.weight->shape[0], args.weight->shape[1]);
    const int64_t n = static_cast<int64_t>(samples.size()) / kDim;
    for (int64_t c = 0; c < kCodes; c++)
      std::copy_n(&samples[static_cast<std::size_t>(c * n / kCodes * kDim)], kDim,
                  codebook + c * kDim);
    for (int round = 0; round < kRounds; round++) move_to_means(samples, codebook);
  }

  void fit(const aq_fit_args& args) const override {
    const auto* weights = aq::view<const float>(args.weight, "weight", {-1, -1});
    const int64_t rows = args.weight->shape[0], n = args.weight->shape[1];
    auto* params = aq::view<float>(args.params, "params", {rows, 1});
    for (int64_t r = 0; r < rows; r++) params[r] = scale_of(weights + r * n, n);
  }

  void quantize(const aq_code_args& args) const override {
    const auto* weights = aq::view<const float>(args.weight, "weight", {-1, -1});
    const int64_t rows = args.weight->shape[0], n = args.weight->shape[1];
    const auto* scales = aq::view<const float>(args.group_params, "group_params", {rows, 1});
    const auto* codebook =
        aq::view<const float>(args.tensor_params, "tensor_params", {kCodes * kDim});
    auto* codes = aq::optional_view<uint8_t>(args.codes, "codes", {rows, n / kDim});
    auto* values = aq::optional_view<float>(args.values, "values", {rows, n});
    float vector[kDim];
    for (int64_t i = 0; i < rows * (n / kDim); i++) {
      const float scale = scales[i / (n / kDim)];
      for (int64_t j = 0; j < kDim; j++) vector[j] = weights[i * kDim + j] / scale;
      const uint8_t code = nearest(vector, codebook);
      if (codes != nullptr) codes[i] = code;
      if (values != nullptr)
        for (int64_t j = 0; j < kDim; j++) values[i * kDim + j] = codebook[code * kDim + j] * scale;
    }
  }

  void dequantize(const aq_code_args& args) const override {
    const auto* codes = aq::view<const uint8_t>(args.codes, "codes", {-1, -1});
    const int64_t rows = args.codes->shape[0], n = args.codes->shape[1];
    const auto* scales = aq::view<const float>(args.group_params, "group_params", {rows, 1});
    const auto* codebook =
        aq::view<const float>(args.tensor_params, "tensor_params", {kCodes * kDim});
    auto* values = aq::view<float>(args.values, "values", {rows, n * kDim});
    for (int64_t i = 0; i < rows * n; i++)
      for (int64_t j = 0; j < kDim; j++)
        values[i * kDim + j] = codebook[codes[i] * kDim + j] * scales[i / n];
  }

 private:
  std::vector<float> sample(const float* weights, int64_t rows, int64_t cols) const {
    const int64_t all = rows * (cols / kDim), n = std::min(all, kMaximumSamples);
    const int32_t group_size = describe().group_size;
    const int64_t width = group_size < 0 ? cols : group_size;
    std::vector<float> samples;
    for (int64_t i = 0; i < n; i++) {
      const int64_t vector = i * all / n, row = vector / (cols / kDim);
      const int64_t begin = vector % (cols / kDim) * kDim, group = begin / width * width;
      const float* line = weights + row * cols;
      const float scale = scale_of(line + group, std::min(width, cols - group));
      for (int64_t j = 0; j < kDim; j++) samples.push_back(line[begin + j] / scale);
    }
    return samples;
  }

  /// One round of Lloyd's algorithm; a vector that is nobody's nearest stays.
  static void move_to_means(const std::vector<float>& samples, float* codebook) {
    std::vector<double> sums(kCodes * kDim);
    std::vector<int64_t> counts(kCodes);
    for (std::size_t i = 0; i < samples.size(); i += kDim) {
      const std::size_t c = nearest(&samples[i], codebook);
      counts[c]++;
      for (std::size_t j = 0; j < kDim; j++) sums[c * kDim + j] += samples[i + j];
    }
    for (std::size_t c = 0; c < kCodes; c++)
      for (std::size_t j = 0; counts[c] > 0 && j < kDim; j++)
        codebook[c * kDim + j] =
            static_cast<float>(sums[c * kDim + j] / static_cast<double>(counts[c]));
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Codebook);
