#include "plugin/format.h"

#include <aq/ext/gguf.h>

#include <algorithm>
#include <aq/sdk/grid_math.hpp>
#include <cmath>
#include <set>

#include "base/error.h"
#include "checkpoint/convert.h"
#include "plugin/call.h"
#include "plugin/dl_tensor.h"

namespace aqhost {
namespace {

constexpr uint32_t kMaximumGroupParams = 1u << 16, kMaximumTensorParams = 1u << 24;
constexpr uint32_t kMaximumPacked = 16;
constexpr uint32_t kKnownFlags =
    AQ_FORMAT_ZERO_POINT | AQ_FORMAT_GLOBAL_SCALE | AQ_FORMAT_SIGNED_SCALE;
constexpr uint32_t kMaximumSearch = 4096;
constexpr uint32_t kMaximumGroupSizes = 64;

bool known(int32_t value, std::initializer_list<int32_t> values) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

}  // namespace

FormatDesc::FormatDesc(const aq_format_desc& desc) : aq_format_desc(desc) {
  auto arrays = std::make_shared<Arrays>();
  if (element_kind == AQ_ELEM_TABLE)
    arrays->values.assign(desc.values, desc.values + (std::size_t{1} << element_bits));
  if (n_search > 0) arrays->search.assign(desc.search, desc.search + n_search);
  arrays->group_sizes.assign(desc.group_sizes, desc.group_sizes + n_group_sizes);
  struct_size = sizeof(aq_format_desc);
  vector_dim = std::max(1, vector_dim);
  values = arrays->values.data();
  search = arrays->search.data();
  group_sizes = arrays->group_sizes.data();
  arrays_ = std::move(arrays);
}

void Format::Destroy::operator()(const aq_quantizer* quantizer) const {
  if (AQ_HAS(quantizer, destroy)) call_quietly([&] { quantizer->destroy(quantizer); });
}

template <typename... Args>
void Format::lie(fmt::format_string<Args...> format, Args&&... args) const {
  fail("plugin {}: format \"{}\": {}", plugin_path_, id_,
       fmt::format(format, std::forward<Args>(args)...));
}

void Format::check(aq_status status, const aq_error& error, const char* function) const {
  if (status != AQ_OK)
    fail("format \"{}\" ({}): {}: {}", id_, plugin_path_, function, error_text(status, error));
}

Format::Format(const aq_quantizer* raw, std::string id, std::string plugin_path, Json options,
               std::shared_ptr<const Library> library)
    : library_(std::move(library)),
      raw_(raw),
      id_(std::move(id)),
      plugin_path_(std::move(plugin_path)),
      options_(std::move(options)) {
  if (!AQ_HAS(raw, config_json) || !AQ_HAS(raw, describe) || !AQ_HAS(raw, fit) ||
      !AQ_HAS(raw, quantize) || !AQ_HAS(raw, dequantize) || !AQ_HAS(raw, get_packed) ||
      !AQ_HAS(raw, pack) || !AQ_HAS(raw, unpack))
    lie("a function that every format has is missing");
  describe();
  check_description();
  try {
    const char* config = call_or_fail("config_json", [&] { return raw->config_json(raw); });
    if (config == nullptr) fail("config_json is NULL");
    config_ = parse_json(config, "config_json");
    const void* gguf = nullptr;
    if (AQ_HAS(raw, get_extension))
      gguf = call_or_fail("get_extension", [&] { return raw->get_extension(raw, AQ_EXT_GGUF); });
    if (gguf != nullptr) gguf_type_ = static_cast<const aq_gguf_type*>(gguf)->number;
  } catch (const Error& e) {
    lie("{}", e.what());
  }
  if (!config_.is_object() || !config_.contains("format") || !config_["format"].is_string() ||
      !config_.contains("weights") || !config_["weights"].is_object())
    lie("config_json is no object with \"format\" (a string) and \"weights\" (an object)");
}

Format::~Format() = default;

void Format::describe() {
  aq_format_desc d{};
  d.struct_size = sizeof d;
  aq_error error;
  check(call_plugin(error, [&](aq_error* e) { return raw_->describe(raw_.get(), &d, e); }), error,
        "describe");
  if (!known(d.element_kind, {AQ_ELEM_INT, AQ_ELEM_TABLE, AQ_ELEM_CUSTOM}))
    lie("element_kind {} is not known", d.element_kind);
  if (d.element_bits < 1 || d.element_bits > 16)
    lie("element_bits is {}, expected 1 to 16", d.element_bits);
  if (d.group_params < 1 || d.group_params > kMaximumGroupParams ||
      d.tensor_params > kMaximumTensorParams)
    lie("{} group_params and {} tensor_params, expected 1 to {} and 0 to {}", d.group_params,
        d.tensor_params, kMaximumGroupParams, kMaximumTensorParams);
  if (d.n_packed < 1 || d.n_packed > kMaximumPacked)
    lie("n_packed is {}, expected 1 to {}", d.n_packed, kMaximumPacked);
  if (d.n_search > kMaximumSearch || (d.n_search > 0 && d.search == nullptr))
    lie("{} search factors, expected 0 to {} and where they are", d.n_search, kMaximumSearch);
  if (d.n_group_sizes < 1 || d.n_group_sizes > kMaximumGroupSizes || d.group_sizes == nullptr)
    lie("{} group sizes, expected 1 to {} and where they are", d.n_group_sizes, kMaximumGroupSizes);
  if (d.element_kind == AQ_ELEM_TABLE && d.values == nullptr) lie("a table format without values");
  desc_ = FormatDesc(d);
}

void Format::check_description() const {
  const FormatDesc& d = desc_;
  if (!known(d.fit_rule, {AQ_FIT_ABSMAX, AQ_FIT_MINMAX, AQ_FIT_TWO_LEVEL, AQ_FIT_CUSTOM}))
    lie("fit_rule {} is not known", d.fit_rule);
  const auto sizes = d.allowed_group_sizes();
  if (std::find(sizes.begin(), sizes.end(), d.group_size) == sizes.end())
    lie("group_size {} is not among its own group sizes", d.group_size);
  for (const int32_t size : sizes)
    if (size < -1 || (size > 0 && size % d.vector_dim != 0))
      lie("group size {}, expected -1, 0 or a positive multiple of vector_dim {}", size,
          d.vector_dim);
  if (!all_finite(d.table())) lie("a grid value is not finite");
  const auto factors = d.search_factors();
  if (!all_finite(factors) ||
      std::any_of(factors.begin(), factors.end(), [](float f) { return f <= 0; }))
    lie("a search factor is not a positive number");
  if (d.element_kind == AQ_ELEM_INT &&
      (d.int_min >= d.int_max || int64_t{d.int_max} - d.int_min >= int64_t{1} << d.element_bits))
    lie("integers {} to {} do not fit {} bits", d.int_min, d.int_max, d.element_bits);
  if (!d.described()) return;
  if (d.vector_dim != 1) lie("vector_dim {} of a format that is no custom one", d.vector_dim);
  if (!known(d.scale_kind,
             {AQ_SCALE_F32, AQ_SCALE_F16, AQ_SCALE_BF16, AQ_SCALE_E4M3, AQ_SCALE_E8M0}))
    lie("scale_kind {} is not known", d.scale_kind);
  const auto rounds = {AQ_ROUND_NEAREST, AQ_ROUND_DOWN, AQ_ROUND_UP, AQ_ROUND_EVEN};
  if (std::find(rounds.begin(), rounds.end(), d.scale_round) == rounds.end() ||
      (d.scale_kind == AQ_SCALE_E8M0) == (d.scale_round == AQ_ROUND_NEAREST))
    lie("scale_round {} does not go with scale_kind {}", d.scale_round, d.scale_kind);
  if (d.fit_rule == AQ_FIT_ABSMAX && !(d.scale_divisor > 0 && std::isfinite(d.scale_divisor)))
    lie("scale_divisor is {}, expected a positive number", d.scale_divisor);
  if ((d.flags & ~kKnownFlags) != 0) lie("the flags {:#x} are not known", d.flags);
  if (d.signed_scale() && !(d.fit_rule == AQ_FIT_ABSMAX && aq::is_real_scale(d.scale_kind)))
    lie("scales with a sign go with the absmax rule and scales of float32, float16 or bfloat16");
  if (d.two_level()) return check_two_level();
  if (d.super_size != 0 || d.sub_min != 0 || d.sub_max != 0 || d.sub_minimum_max != 0)
    lie("super-groups of {} go with two-level scales alone", d.super_size);
  if (d.zero_point() != (d.fit_rule == AQ_FIT_MINMAX) ||
      (d.zero_point() && d.element_kind != AQ_ELEM_INT))
    lie("zero points go with integers and the min-max rule");
  if (d.group_params != (d.zero_point() ? 2u : 1u))
    lie("{} group_params, a scale{} was expected", d.group_params,
        d.zero_point() ? " and a zero" : "");
  if (d.group_size == 0 && (d.zero_point() || d.global_scale()))
    lie("one group of a whole matrix goes with neither zero points nor a global scale");
  if (d.tensor_params != (d.global_scale() ? 1u : 0u) || (d.global_scale() && !(d.global_max > 0)))
    lie("{} tensor_params and global_max {} do not go with its global scale", d.tensor_params,
        d.global_max);
}

void Format::check_two_level() const {
  constexpr int32_t kMaximum = 1 << 12;  // so that k * d is exact in float32
  const FormatDesc& d = desc_;
  if (d.element_kind != AQ_ELEM_INT || d.element_bits > 8 || d.flags != 0)
    lie("two-level scales go with integers of at most 8 bits, without zero points or a global "
        "scale");
  if (d.scale_kind == AQ_SCALE_E8M0 || d.scale_kind == AQ_SCALE_F32)
    lie("two-level scales of scale_kind {}, expected F16, BF16 or E4M3", d.scale_kind);
  const auto sizes = d.allowed_group_sizes();
  if (d.super_size <= 0 || std::any_of(sizes.begin(), sizes.end(), [&](int32_t size) {
        return size <= 0 || d.super_size % size != 0;
      }))
    lie("super-groups of {}, expected whole groups of each of its group sizes", d.super_size);
  if (d.sub_max < 1 || d.sub_max > kMaximum || d.sub_min > 1 || d.sub_min < -kMaximum ||
      d.sub_minimum_max < 0 || d.sub_minimum_max > kMaximum)
    lie("scales of {} to {} and minima of up to {} steps", d.sub_min, d.sub_max, d.sub_minimum_max);
  if (d.group_params != 4 || d.tensor_params != 0)
    lie("{} group_params and {} tensor_params, expected scale, minimum, d and dmin", d.group_params,
        d.tensor_params);
}

void Format::check_codes(std::span<const std::byte> codes, const char* function) const {
  const auto bytes = static_cast<std::size_t>(desc_.code_bytes());
  for (std::size_t i = 0; i < codes.size(); i += bytes) {
    uint32_t code = std::to_integer<uint32_t>(codes[i]);
    if (bytes == 2) code |= std::to_integer<uint32_t>(codes[i + 1]) << 8;
    if (code >> desc_.element_bits != 0)
      lie("{} gave the code {}, which {} bits cannot hold", function, code, desc_.element_bits);
  }
}

std::vector<float> Format::fit_tensor(std::span<const float> weight, int64_t rows, int64_t cols,
                                      std::span<const float> importance) const {
  std::vector<float> params(desc_.tensor_params, NAN);
  if (params.empty()) return params;
  if (!AQ_HAS(raw_.get(), fit_tensor)) lie("tensor_params, but no fit_tensor");
  DlTensor w(weight.data(), kDlF32, {rows, cols});
  DlTensor h(importance.data(), kDlF32, {cols});
  DlTensor out(params.data(), kDlF32, {static_cast<int64_t>(params.size())});
  const aq_fit_args args{sizeof args, 0, w.get(), h.get_or_null(), nullptr, out.get()};
  aq_error error;
  check(call_plugin(error, [&](aq_error* e) { return raw_->fit_tensor(raw_.get(), &args, e); }),
        error, "fit_tensor");
  if (!all_finite(params)) lie("fit_tensor gave a parameter that is not finite");
  return params;
}

void Format::fit(std::span<const float> weight, int64_t rows, int64_t n,
                 std::span<const float> importance, std::span<const float> tensor_params,
                 std::span<float> params) const {
  DlTensor w(weight.data(), kDlF32, {rows, n});
  DlTensor h(importance.data(), kDlF32, {n});
  DlTensor t(tensor_params.data(), kDlF32, {static_cast<int64_t>(tensor_params.size())});
  const int64_t groups = desc_.two_level() ? desc_.groups(n) : 1;
  DlTensor out(params.data(), kDlF32, {rows, groups * desc_.group_params});
  std::fill(params.begin(), params.end(), NAN);
  const aq_fit_args args{sizeof args, 0, w.get(), h.get_or_null(), t.get_or_null(), out.get()};
  aq_error error;
  check(call_plugin(error, [&](aq_error* e) { return raw_->fit(raw_.get(), &args, e); }), error,
        "fit");
  if (!all_finite(params)) lie("fit gave a parameter that is not finite");
}

void Format::quantize(std::span<const float> weight, int64_t rows, int64_t n,
                      std::span<const float> params, std::span<const float> tensor_params,
                      std::span<std::byte> codes, std::span<float> values) const {
  DlTensor w(weight.data(), kDlF32, {rows, n});
  DlTensor p(params.data(), kDlF32, {rows, int64_t{desc_.group_params}});
  DlTensor t(tensor_params.data(), kDlF32, {static_cast<int64_t>(tensor_params.size())});
  DlTensor c(codes.data(), dl_code(desc_.code_bytes()), {rows, n / desc_.vector_dim});
  DlTensor v(values.data(), kDlF32, {rows, n});
  const aq_code_args args{sizeof args,    0, w.get(), p.get(), t.get_or_null(), c.get_or_null(),
                          v.get_or_null()};
  aq_error error;
  check(call_plugin(error, [&](aq_error* e) { return raw_->quantize(raw_.get(), &args, e); }),
        error, "quantize");
  if (!all_finite(values)) lie("quantize gave a value that is not finite");
  check_codes(codes, "quantize");
}

void Format::dequantize(std::span<const std::byte> codes, int64_t rows, int64_t n,
                        std::span<const float> params, std::span<const float> tensor_params,
                        std::span<float> values) const {
  DlTensor p(params.data(), kDlF32, {rows, int64_t{desc_.group_params}});
  DlTensor t(tensor_params.data(), kDlF32, {static_cast<int64_t>(tensor_params.size())});
  DlTensor c(codes.data(), dl_code(desc_.code_bytes()), {rows, n / desc_.vector_dim});
  DlTensor v(values.data(), kDlF32, {rows, n});
  const aq_code_args args{sizeof args, 0, nullptr, p.get(), t.get_or_null(), c.get(), v.get()};
  aq_error error;
  check(call_plugin(error, [&](aq_error* e) { return raw_->dequantize(raw_.get(), &args, e); }),
        error, "dequantize");
}

std::vector<float> Format::dequantize(const QuantizedMatrix& m) const {
  std::vector<float> values(static_cast<std::size_t>(m.rows * m.cols));
  const int64_t groups = desc_.groups(m.cols);
  if (groups == 1) {
    dequantize(m.codes, m.rows, m.cols, m.group_params, m.tensor_params, values);
    return values;
  }
  // One call per row would be too many calls, and a group of all rows is not contiguous. So each
  // group is gathered before the call and scattered after it.
  const int64_t width = desc_.group_size, bytes = desc_.code_bytes(), dim = desc_.vector_dim;
  const std::size_t n_params = desc_.group_params;
  std::vector<std::byte> codes;
  std::vector<float> params, part;
  for (int64_t g = 0; g < groups; g++) {
    const int64_t begin = g * width, n = std::min(width, m.cols - begin);
    codes.clear();
    params.clear();
    part.resize(static_cast<std::size_t>(m.rows * n));
    for (int64_t r = 0; r < m.rows; r++) {
      const auto code = m.codes.begin() + (r * m.cols + begin) / dim * bytes;
      codes.insert(codes.end(), code, code + n / dim * bytes);
      const auto param = m.group_params.begin() + (r * groups + g) * static_cast<int64_t>(n_params);
      params.insert(params.end(), param, param + static_cast<int64_t>(n_params));
    }
    dequantize(codes, m.rows, n, params, m.tensor_params, part);
    for (int64_t r = 0; r < m.rows; r++)
      std::copy_n(part.begin() + r * n, n, values.begin() + r * m.cols + begin);
  }
  return values;
}

std::vector<TensorInfo> Format::packed(int64_t rows, int64_t cols) const {
  if (cols % desc_.vector_dim != 0)
    fail("format \"{}\" cannot store a {} x {} matrix: it codes {} weights of a row at once", id_,
         rows, cols, desc_.vector_dim);
  std::vector<TensorInfo> infos;
  std::set<std::string> suffixes;
  for (uint32_t i = 0; i < desc_.n_packed; i++) {
    aq_packed_tensor t{};
    t.struct_size = sizeof t;
    aq_error error;
    const aq_status status = call_plugin(
        error, [&](aq_error* e) { return raw_->get_packed(raw_.get(), rows, cols, i, &t, e); });
    if (status != AQ_OK)
      fail("format \"{}\" cannot store a {} x {} matrix: {}", id_, rows, cols,
           error_text(status, error));
    const std::string type_name = t.st_dtype == nullptr ? "" : t.st_dtype;
    const auto dtype = parse_dtype(type_name);
    if (!is_name(t.suffix) || !suffixes.insert(t.suffix).second)
      lie("packed tensor {} has no name of its own", i);
    if (!dtype || dtype_size(*dtype) * 8 != int64_t{t.dtype.bits} * t.dtype.lanes)
      lie("packed tensor {} has the type {} of {} bits", t.suffix, type_name, t.dtype.bits);
    if (t.ndim < 0 || t.ndim > 4) lie("packed tensor {} has {} dimensions", t.suffix, t.ndim);
    TensorInfo info{t.suffix, *dtype, {t.shape, t.shape + t.ndim}};
    // what a format stores is at most as large as float32 weights with all their parameters
    const double params =
        static_cast<double>(rows) * static_cast<double>(desc_.groups(cols)) * desc_.group_params +
        desc_.tensor_params;
    const double most = 4.0 * static_cast<double>(rows * cols) + 8.0 * params + 1024;
    int64_t bytes = dtype_size(*dtype);
    for (const int64_t d : info.shape)
      if (d < 0 || __builtin_mul_overflow(bytes, d, &bytes) || static_cast<double>(bytes) > most)
        lie("packed tensor {} of a {} x {} matrix has a dimension of {}", t.suffix, rows, cols, d);
    infos.push_back(std::move(info));
  }
  return infos;
}

std::vector<PackedTensor> Format::buffers(int64_t rows, int64_t cols) const {
  std::vector<PackedTensor> tensors;
  for (TensorInfo& info : packed(rows, cols)) {
    const auto bytes = static_cast<std::size_t>(info.nbytes());
    tensors.push_back({std::move(info), std::vector<std::byte>(bytes)});
  }
  return tensors;
}

namespace {

/// The DLTensors of packed tensors, as aq_pack_args needs them.
class PackedView {
 public:
  void add(const TensorInfo& info, const void* data) {
    tensors_.push_back(
        std::make_unique<DlTensor>(data, dl_type(info.dtype), std::vector(info.shape)));
    pointers_.push_back(tensors_.back()->get());
  }
  DLTensor* const* get() const { return pointers_.data(); }

 private:
  std::vector<std::unique_ptr<DlTensor>> tensors_;
  std::vector<DLTensor*> pointers_;
};

}  // namespace

std::vector<PackedTensor> Format::pack(const QuantizedMatrix& m) const {
  std::vector<PackedTensor> tensors = buffers(m.rows, m.cols);
  PackedView view;
  for (PackedTensor& t : tensors) view.add(t.info, t.bytes.data());
  DlTensor codes(m.codes.data(), dl_code(desc_.code_bytes()), {m.rows, m.cols / desc_.vector_dim});
  DlTensor params(m.group_params.data(), kDlF32,
                  {m.rows, desc_.groups(m.cols), int64_t{desc_.group_params}});
  DlTensor whole(m.tensor_params.data(), kDlF32, {int64_t{desc_.tensor_params}});
  const aq_pack_args args{sizeof args,         0,         m.rows, m.cols, codes.get(), params.get(),
                          whole.get_or_null(), view.get()};
  aq_error error;
  check(call_plugin(error, [&](aq_error* e) { return raw_->pack(raw_.get(), &args, e); }), error,
        "pack");
  return tensors;
}

QuantizedMatrix Format::unpack(int64_t rows, int64_t cols,
                               const std::vector<std::span<const std::byte>>& packed_bytes) const {
  const std::vector<TensorInfo> infos = packed(rows, cols);
  if (infos.size() != packed_bytes.size())
    fail("{} packed tensors, format \"{}\" has {}", packed_bytes.size(), id_, infos.size());
  PackedView view;
  std::vector<std::vector<std::byte>> aligned;  // data in files need not be aligned
  for (std::size_t i = 0; i < infos.size(); i++) {
    const int64_t bytes = infos[i].nbytes();
    if (static_cast<int64_t>(packed_bytes[i].size()) != bytes)
      fail("{} has {} bytes, expected {}", infos[i].name, packed_bytes[i].size(), bytes);
    aligned.emplace_back(packed_bytes[i].begin(), packed_bytes[i].end());
    view.add(infos[i], aligned.back().data());
  }
  QuantizedMatrix m;
  m.rows = rows;
  m.cols = cols;
  m.codes.resize(static_cast<std::size_t>(rows * cols / desc_.vector_dim * desc_.code_bytes()));
  m.group_params.resize(static_cast<std::size_t>(rows * desc_.groups(cols)) * desc_.group_params);
  m.tensor_params.resize(desc_.tensor_params);
  DlTensor codes(m.codes.data(), dl_code(desc_.code_bytes()), {rows, cols / desc_.vector_dim});
  DlTensor params(m.group_params.data(), kDlF32,
                  {rows, desc_.groups(cols), int64_t{desc_.group_params}});
  DlTensor whole(m.tensor_params.data(), kDlF32, {int64_t{desc_.tensor_params}});
  const aq_pack_args args{sizeof args,         0,         rows, cols, codes.get(), params.get(),
                          whole.get_or_null(), view.get()};
  aq_error error;
  check(call_plugin(error, [&](aq_error* e) { return raw_->unpack(raw_.get(), &args, e); }), error,
        "unpack");
  if (!all_finite(m.group_params) || !all_finite(m.tensor_params))
    fail("a scale is not finite: the file is damaged");
  check_codes(m.codes, "unpack");
  return m;
}

}  // namespace aqhost
