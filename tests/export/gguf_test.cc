#include "export/gguf.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "export/all_plugins.h"
#include "export/decoded_checkpoint.h"
#include "export/gguf_convert.h"
#include "export/gguf_tokenizer.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

namespace fs = std::filesystem;

std::shared_ptr<const Format> format_of(const std::string& id,
                                        const Json& options = Json::object()) {
  return all_plugins().create_format(id, options);
}

QuantizedMatrix empty_matrix(int64_t rows, int64_t cols) {
  QuantizedMatrix matrix;
  matrix.rows = rows;
  matrix.cols = cols;
  return matrix;
}

/// A matrix with every code, and another scale for each group. Scales are exact in float16.
QuantizedMatrix varied_matrix(const Format& format, int64_t rows, int64_t cols) {
  const FormatDesc& desc = format.desc();
  QuantizedMatrix m = empty_matrix(rows, cols);
  const int count = 1 << desc.element_bits;
  for (int64_t i = 0; i < rows * cols; i++)
    m.codes.push_back(static_cast<std::byte>((i * 11 + i / cols * 3 + i / count) % count));
  for (int64_t i = 0; desc.two_level() && i < rows * desc.groups(cols); i++) {
    const bool even = i / desc.groups(desc.super_size) % 2 == 0;
    const float d = desc.sub_min < 0 && even ? -0x1p-9F : 0x1.24p-7F;
    const float dmin = desc.minima() ? 0x1.fp-8F : 0.0F;
    auto k = desc.sub_min + static_cast<int>(i * 7 % (desc.sub_max - desc.sub_min + 1));
    if (k == 0) k = desc.sub_max;
    const auto minimum = static_cast<float>(i * 5 % (desc.sub_minimum_max + 1)) * dmin;
    for (const float p : {static_cast<float>(k) * d, minimum, d, dmin}) m.group_params.push_back(p);
  }
  if (desc.two_level()) return m;
  for (int64_t i = 0; i < rows * desc.groups(cols); i++) {
    const bool power = desc.scale_kind == AQ_SCALE_E8M0;
    m.group_params.push_back(power ? std::ldexp(1.0F, static_cast<int>(i % 40) - 20)
                                   : static_cast<float>(8 + i % 8) * 0x1p-6F);
    if (desc.zero_point())
      m.group_params.push_back(static_cast<float>(desc.int_min + static_cast<int>(i % count)));
  }
  if (desc.global_scale()) m.tensor_params = {4};
  return m;
}

uint32_t byte_at(const std::byte* block, int i) { return std::to_integer<uint32_t>(block[i]); }

float half_at(const std::byte* block, int i) {
  const uint32_t bits = byte_at(block, i) | byte_at(block, i + 1) << 8;
  const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -24)
                              : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

/// k and m of group g in the 12 bytes at `start`: get_scale_min_k4() of ggml-quants.c.
std::pair<float, float> scale_and_minimum(const std::byte* block, int start, int g) {
  const auto q = [=](int i) { return byte_at(block, start + i); };
  if (g < 4) return {static_cast<float>(q(g) & 63), static_cast<float>(q(g + 4) & 63)};
  return {static_cast<float>((q(g + 4) & 15) | q(g - 4) >> 6 << 4),
          static_cast<float>(q(g + 4) >> 4 | q(g) >> 6 << 4)};
}

/// Weight j of a block of 256, as dequantize_row_q2_K() and so on have it.
float decoded_k(uint32_t type, const std::byte* block, int j) {
  const auto at = [block](int i) { return byte_at(block, i); };
  const int half = j / 128, chunk = j / 64, in = j % 32, quarter = j % 128 / 32, group = j / 16;
  const auto number = [](uint32_t code) { return static_cast<float>(code); };
  if (type == 10) {
    const float q = number(at(16 + 32 * half + in) >> 2 * quarter & 3);
    return half_at(block, 80) * number(at(group) & 15) * q -
           half_at(block, 82) * number(at(group) >> 4);
  }
  if (type == 11) {
    const uint32_t low = at(32 + 32 * half + in) >> 2 * quarter & 3;
    const bool high = (at(in) >> (4 * half + quarter) & 1) != 0;
    const uint32_t nibble = at(96 + group % 8) >> (group < 8 ? 0 : 4) & 15;
    const uint32_t top = at(96 + 8 + group % 4) >> 2 * (group / 4) & 3;
    return half_at(block, 108) * (number(nibble | top << 4) - 32) *
           (number(low) - (high ? 0.0F : 4.0F));
  }
  if (type == 12 || type == 13) {
    const auto [k, m] = scale_and_minimum(block, 4, j / 32);
    const int codes = type == 12 ? 16 : 48;
    uint32_t q = at(codes + 32 * chunk + in) >> (j % 64 < 32 ? 0 : 4) & 15;
    if (type == 13) q |= (at(16 + in) >> j / 32 & 1) << 4;
    return half_at(block, 0) * k * number(q) - half_at(block, 2) * m;
  }
  const uint32_t low = at(64 * half + in + 32 * (quarter % 2)) >> (quarter < 2 ? 0 : 4) & 15;
  const uint32_t high = at(128 + 32 * half + in) >> 2 * quarter & 3;
  return half_at(block, 208) * static_cast<float>(static_cast<int8_t>(at(192 + group))) *
         (number(low | high << 4) - 32);
}

/// Weight j of a block, written from the structures in ggml-common.h and the loops of
/// dequantize_row_*() in ggml-quants.c.
float decoded(GgufType type, const std::byte* block, int j) {
  constexpr float kE2M1[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6, 0, -0.5F, -1, -1.5F, -2, -3, -4, -6};
  constexpr float kIq4Nl[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
  const auto nibble = [block, j](int start) {
    return byte_at(block, start + j % 16) >> (j < 16 ? 0 : 4) & 15;
  };
  const auto fifth = [block, j](int start) { return byte_at(block, start + j / 8) >> j % 8 & 1; };
  const auto number = [](uint32_t code) { return static_cast<float>(code); };
  switch (type) {
    case GgufType::kQ4_0:
      return half_at(block, 0) * (number(nibble(2)) - 8);
    case GgufType::kQ4_1:
      return half_at(block, 0) * number(nibble(4)) + half_at(block, 2);
    case GgufType::kQ5_0:
      return half_at(block, 0) * (number(nibble(6) | fifth(2) << 4) - 16);
    case GgufType::kQ5_1:
      return half_at(block, 0) * number(nibble(8) | fifth(4) << 4) + half_at(block, 2);
    case GgufType::kQ8_0:
      return half_at(block, 0) * static_cast<float>(static_cast<int8_t>(byte_at(block, 2 + j)));
    case GgufType::kIq4Nl:
      return half_at(block, 0) * kIq4Nl[nibble(2)];
    case GgufType::kMxfp4:
      return std::ldexp(kE2M1[nibble(1)], static_cast<int>(byte_at(block, 0)) - 127);
    case GgufType::kNvfp4: {
      const int group = j / 16, in_group = j % 16;
      const uint32_t scale = byte_at(block, group);
      const uint32_t pair = byte_at(block, 4 + 8 * group + in_group % 8);
      const int exponent = static_cast<int>(scale >> 3), fraction = static_cast<int>(scale & 7);
      return std::ldexp(static_cast<float>(8 + fraction), exponent - 10) *
             kE2M1[pair >> (in_group < 8 ? 0 : 4) & 15];
    }
    default:
      return decoded_k(static_cast<uint32_t>(type), block, j);
  }
}

/// The message of the Error that `body` throws; "" if it throws none.
std::string message_of(const std::function<void()>& body) {
  try {
    body();
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A GGUF file in memory, read by a reader of its own.
class ReadGguf {
 public:
  explicit ReadGguf(std::string content) : content_(std::move(content)) {
    REQUIRE(content_.substr(0, 4) == "GGUF");
    at_ = 4;
    REQUIRE(take<uint32_t>() == 3);
    const auto tensors = take<uint64_t>(), values = take<uint64_t>();
    for (uint64_t i = 0; i < values; i++) {
      const std::string key = take_text();
      const auto type = take<uint32_t>();
      keys.push_back(key);
      value[key] = take_value(type);
    }
    for (uint64_t i = 0; i < tensors; i++) {
      Entry entry;
      const std::string name = take_text();
      const auto dims = take<uint32_t>();
      for (uint32_t d = 0; d < dims; d++) entry.dims.push_back(take<int64_t>());
      entry.type = take<uint32_t>();
      entry.offset = take<uint64_t>();
      tensor[name] = entry;
    }
    data = (at_ + 31) / 32 * 32;
  }

  struct Entry {
    std::vector<int64_t> dims;
    uint32_t type = 0;
    uint64_t offset = 0;
  };

  std::string bytes(const Entry& entry, std::size_t size) const {
    return content_.substr(data + entry.offset, size);
  }
  std::size_t size() const { return content_.size(); }

  std::vector<std::string> keys;
  std::map<std::string, Json> value;
  std::map<std::string, Entry> tensor;
  std::size_t data = 0;

 private:
  template <typename T>
  T take() {
    T result;
    REQUIRE(at_ + sizeof result <= content_.size());
    std::memcpy(&result, content_.data() + at_, sizeof result);
    at_ += sizeof result;
    return result;
  }
  std::string take_text() {
    const auto size = take<uint64_t>();
    std::string text = content_.substr(at_, size);
    at_ += size;
    return text;
  }
  Json take_value(uint32_t type) {
    if (type == 2) return take<uint16_t>();
    if (type == 4) return take<uint32_t>();
    if (type == 5) return take<int32_t>();
    if (type == 6) return take<float>();
    if (type == 7) return take<uint8_t>() != 0;
    if (type == 8) return take_text();
    REQUIRE(type == 9);
    const auto element = take<uint32_t>();
    const auto count = take<uint64_t>();
    Json list = Json::array();
    for (uint64_t i = 0; i < count; i++) list.push_back(take_value(element));
    return list;
  }

  std::string content_;
  std::size_t at_ = 0;
};

/// A copy of a small model, with changes of its config.json; null removes a key.
class ChangedModel {
 public:
  ChangedModel(const std::string& name, const Json& changes) {
    const fs::path from = fs::path(AQ_TESTS_DIR) / "models" / name;
    for (const auto& entry : fs::directory_iterator(from))
      fs::create_symlink(entry.path(), folder_ / entry.path().filename().string());
    Json config = read_json(from / "config.json");
    config.merge_patch(changes);
    fs::remove(folder_ / "config.json");
    write_file(folder_ / "config.json", config.dump());
  }
  const fs::path& path() const { return folder_.path(); }

  std::string refusal() const {
    return message_of([this] {
      const auto source = open_source(path(), all_plugins());
      const auto model = all_plugins().create_model(*source, "auto");
      describe_gguf(*source, *model, [](const Module&) { return nullptr; });
    });
  }

 private:
  TempFolder folder_;
};

/// The file that is made of a checkpoint.
ReadGguf written(const fs::path& checkpoint) {
  const TempFolder folder;
  const auto source = open_source(checkpoint, all_plugins());
  const auto model = all_plugins().create_model(*source, "auto");
  RunObserver silent;
  write_gguf(*source, *model, folder / "m.gguf", false, silent);
  CHECK(!fs::exists(folder / "m.gguf.part"));
  return ReadGguf(read_file(folder / "m.gguf"));
}

}  // namespace

TEST_CASE("blocks hold the codes and scales of every format that GGUF has") {
  const Json half{{"scale_dtype", "float16"}};
  const auto with = [&half](int group, bool symmetric = true) {
    Json options = half;
    options["group_size"] = group;
    options["symmetric"] = symmetric;
    return options;
  };
  struct Case {
    std::shared_ptr<const Format> format;
    GgufType type;
  };
  const std::vector<Case> cases{{format_of("int4", with(32)), GgufType::kQ4_0},
                                {format_of("int4", with(64)), GgufType::kQ4_0},
                                {format_of("int4", with(-1)), GgufType::kQ4_0},
                                {format_of("int4", with(32, false)), GgufType::kQ4_1},
                                {format_of("int5", with(32)), GgufType::kQ5_0},
                                {format_of("int5", with(64, false)), GgufType::kQ5_1},
                                {format_of("int8", with(32)), GgufType::kQ8_0},
                                {format_of("int8", with(-1)), GgufType::kQ8_0},
                                {format_of("iq4_nl", half), GgufType::kIq4Nl},
                                {format_of("mxfp4"), GgufType::kMxfp4},
                                {format_of("nvfp4"), GgufType::kNvfp4},
                                {format_of("q2_k"), GgufType{10}},
                                {format_of("q3_k"), GgufType{11}},
                                {format_of("q4_k"), GgufType{12}},
                                {format_of("q5_k"), GgufType{13}},
                                {format_of("q6_k"), GgufType{14}}};
  for (const auto& [format, type] : cases) {
    const std::string label = gguf_label(*format);
    CAPTURE(label);
    constexpr int64_t kRows = 3, kCols = 768;
    REQUIRE(gguf_type(*format, kCols) == type);
    const QuantizedMatrix matrix = varied_matrix(*format, kRows, kCols);
    GgufRounding rounding;
    const std::vector<std::byte> blocks = pack_blocks(type, *format, matrix, rounding);
    const GgufTypeInfo& info = info_of(type);
    REQUIRE(static_cast<int64_t>(blocks.size()) == kRows * kCols / info.weights * info.bytes);
    CHECK(rounding.rounded_scales == 0);
    CHECK(rounding.rounded_minima == 0);
    const std::vector<float> expected = format->dequantize(matrix);
    const float whole = has_matrix_scale(type) ? matrix_scale(matrix) : 1;
    int64_t wrong = 0;
    for (std::size_t i = 0; i < expected.size(); i++) {
      const auto block = static_cast<int64_t>(i) / info.weights * info.bytes;
      const int j = static_cast<int>(static_cast<int64_t>(i) % info.weights);
      wrong += decoded(type, blocks.data() + block, j) * whole == expected[i] ? 0 : 1;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE(
    "blocks that the plugin of a third party packs are taken as they are, if it has the sizes") {
  const auto format = format_of("tq2_0");
  CHECK(info_of(gguf_type(*format, 512)).name == std::string("TQ2_0"));
  QuantizedMatrix matrix = empty_matrix(2, 512);
  for (int i = 0; i < 1024; i++) matrix.codes.push_back(static_cast<std::byte>(i * 7 % 3));
  matrix.group_params = {1.5F, 0.25F, 3, 0x1p-12F};
  const auto packed = gguf().pack({"m", format, nullptr, 2, 512}, matrix, 1);
  REQUIRE(packed.size() == 1);
  CHECK(packed[0].info.shape == std::vector<int64_t>{2, 132});
  const std::vector<float> expected = format->dequantize(matrix);
  for (int i = 0; i < 1024; i++) {
    const std::byte* block = packed[0].bytes.data() + i / 256 * 66;
    const int j = i % 256;
    const uint32_t code = byte_at(block, j / 128 * 32 + j % 32) >> (j % 128 / 32 * 2) & 3;
    REQUIRE(half_at(block, 64) * (static_cast<float>(code) - 1) ==
            expected[static_cast<std::size_t>(i)]);
  }
  const auto refusal = [](const char* claim) {
    return message_of([&] { gguf_type(*format_of("tq2_0", {{"claim", claim}}), 512); });
  };
  CHECK(contains(refusal("Q4_K"), "packs rows as blocks of Q4_K, but its first packed tensor"));
  CHECK(contains(refusal("none of ggml's"), "ggml has no type 99 of quantized weights"));
}

TEST_CASE("the bytes of a Q4_0 block, written out") {
  const auto format = format_of("int4", {{"group_size", 32}, {"scale_dtype", "float16"}});
  QuantizedMatrix matrix = empty_matrix(1, 32);
  for (int i = 0; i < 32; i++) matrix.codes.push_back(static_cast<std::byte>(i % 16));
  matrix.codes[16] = std::byte{9};
  matrix.group_params = {1.5F};
  const std::vector<PackedTensor> packed = gguf().pack({"m", format, nullptr, 1, 32}, matrix, 1);
  REQUIRE(packed.size() == 1);
  CHECK(packed[0].info.shape == std::vector<int64_t>{1, 18});
  const std::vector<int> expected{0x00, 0x3e, 0x90, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66,
                                  0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
  for (std::size_t i = 0; i < expected.size(); i++)
    CHECK(std::to_integer<int>(packed[0].bytes[i]) == expected[i]);
}

TEST_CASE("a format without a type is refused with what fits") {
  const auto refusal = [](const std::string& id, const Json& options, int64_t cols = 128) {
    return message_of([&] { gguf().tensors_of({"m", format_of(id, options), nullptr, 8, cols}); });
  };
  CHECK(
      refusal("int3", {{"group_size", 32}}) ==
      "GGUF has no type for the numbers of int3 g32; it has one for int4 (Q4_0, or Q4_1 with zero "
      "points) or mxfp4 (MXFP4)");
  CHECK(contains(refusal("int3", {{"group_size", 32}}, 256), "it has one for q3_k (Q3_K), int4"));
  CHECK(contains(refusal("int2", {{"group_size", 32}}, 512), "it has one for q2_k (Q2_K), int4"));
  CHECK(contains(refusal("int6", {{"group_size", 32}}, 256), "q6_k (Q6_K) or int8 without zero"));
  CHECK(contains(refusal("int6", {{"group_size", 32}}), "it has one for int8 without zero points"));
  CHECK(contains(refusal("q4_k", Json::object()),
                 "blocks of 256 weights do not divide a row of 128; int4 (Q4_0) in groups of 32"));
  CHECK(contains(refusal("int8", {{"group_size", 32}, {"symmetric", false}}),
                 "int8 g32 with zero points; it has one for int8 without"));
  CHECK(contains(refusal("fp8", Json::object()), "int8 without zero points"));
  CHECK(contains(refusal("nf4", {{"group_size", 32}}), "no type for the numbers of nf4 g32"));
  CHECK(contains(refusal("mxfp6", Json::object()), "int8 without zero points"));
  CHECK(contains(refusal("int4", {{"group_size", 16}}), "group_size: 32 fits"));
  CHECK(contains(refusal("int4", {{"group_size", -1}}, 80),
                 "blocks of 32 weights, which do not divide the 80 input features"));
  CHECK(contains(refusal("nvfp4", Json::object(), 96), "the blocks of 32 of mxfp4 do"));
  CHECK(refusal("int4", {{"group_size", 128}}).empty());
}

TEST_CASE("scales that float16 does not have are rounded and counted, or refused") {
  const auto format = format_of("int8", {{"group_size", 32}});
  QuantizedMatrix matrix = empty_matrix(1, 64);
  matrix.codes.resize(64);
  GgufRounding rounding;
  matrix.group_params = {0x1p-10F, 0x1.02p-22F};  // the second is 1.0078 x 4 steps of 2^-24
  pack_blocks(GgufType::kQ8_0, *format, matrix, rounding);
  CHECK(rounding.scales == 2);
  CHECK(rounding.rounded_scales == 1);
  CHECK(rounding.worst_scale == doctest::Approx(0.0078 / 1.0078).epsilon(0.01));
  CHECK(contains(rounding_text(rounding),
                 "1 of 2 scales were rounded to float16, by at most 0.78 %"));
  matrix.group_params = {0x1p-10F, 0x1p16F};
  CHECK(contains(message_of([&] { pack_blocks(GgufType::kQ8_0, *format, matrix, rounding); }),
                 "a scale is 65536, and float16"));

  const auto zeros = format_of("int4", {{"group_size", 32}, {"symmetric", false}});
  GgufRounding of_minima;
  matrix.group_params = {0x1.ffp-3F, -8 + 15, 1, -8 + 15};  // 15 x 511 has 13 bits, 15 has 4
  pack_blocks(GgufType::kQ4_1, *zeros, matrix, of_minima);
  CHECK(of_minima.minima == 2);
  CHECK(of_minima.rounded_minima == 1);
  CHECK(of_minima.worst_minimum < 0.004);
  CHECK(rounding_text({}).empty());
}

TEST_CASE("a file has its key-values and tensors in order, aligned, and appears when it is whole") {
  const TempFolder folder;
  const fs::path path = folder / "a.gguf";
  GgufMetadata metadata;
  metadata.text("t", "\u00fc");
  metadata.u32("u", 4000000000);
  metadata.f32("f", 0.5F);
  metadata.flag("b", true);
  metadata.texts("list", {"a", ""});
  metadata.integers("i", {-1, 2});
  const std::vector<GgufTensorInfo> tensors{{"x", GgufType::kF32, {3}},
                                            {"y", GgufType::kQ4_0, {2, 5, 64}}};
  const std::vector<float> x{1, 2, 3};
  const std::vector<std::byte> y(2 * 5 * 36, std::byte{7});
  {
    const GgufWriter abandoned(path, metadata, tensors, false);
    CHECK(fs::exists(folder / "a.gguf.part"));
  }
  CHECK(fs::is_empty(folder.path()));
  {
    GgufWriter writer(path, metadata, tensors, false);
    writer.write(1, std::span(y).first(100));
    CHECK(contains(message_of([&] { writer.finish(); }), "x lacks 12 bytes"));
    writer.write(0, std::as_bytes(std::span(x)));
    writer.write(1, std::span(y).subspan(100));
    CHECK(contains(message_of([&] { writer.write(0, std::span(y).first(1)); }), "1 bytes more"));
    CHECK(!fs::exists(path));
    writer.finish();
    CHECK(static_cast<int64_t>(fs::file_size(path)) == writer.file_bytes());
  }
  const ReadGguf file(read_file(path));
  CHECK(file.keys == std::vector<std::string>{"t", "u", "f", "b", "list", "i"});
  CHECK(file.value.at("t") == "\u00fc");
  CHECK(file.value.at("u") == 4000000000U);
  CHECK(file.value.at("f") == 0.5);
  CHECK(file.value.at("b") == true);
  CHECK(file.value.at("list") == Json{"a", ""});
  CHECK(file.value.at("i") == Json{-1, 2});
  CHECK(file.tensor.at("y").dims == std::vector<int64_t>{64, 5, 2});
  CHECK(file.tensor.at("y").type == 2);
  CHECK(file.tensor.at("x").offset == 0);
  CHECK(file.tensor.at("y").offset == 32);
  CHECK(file.size() == file.data + 32 + 384);
  CHECK(std::memcmp(file.bytes(file.tensor.at("x"), 12).data(), x.data(), 12) == 0);
  CHECK(file.bytes(file.tensor.at("y"), y.size()) == std::string(y.size(), '\7'));

  CHECK(
      contains(message_of([&] { GgufWriter(path, metadata, tensors, false); }), "exists already"));
  CHECK(contains(message_of([&] { GgufWriter(folder / "no/a", metadata, tensors, true); }),
                 "No such file"));
  CHECK(contains(message_of([&] {
                   GgufWriter(path, metadata, {{std::string(64, 'n'), GgufType::kF32, {1}}}, true);
                 }),
                 "has 64 bytes"));
  CHECK(fs::exists(path));
  CHECK(!fs::exists(folder / "a.gguf.part"));
}

TEST_CASE("a model in several files, which appear together or not at all") {
  const TempFolder folder;
  GgufMetadata metadata;
  metadata.text("t", std::string(1000, 'x'));
  std::vector<GgufTensorInfo> tensors;
  for (const int64_t size : {300, 300, 5000, 10, 10})
    tensors.push_back({fmt::format("x{}", tensors.size()), GgufType::kF32, {size}});
  const auto write = [&](GgufFiles& files) {
    for (std::size_t i = 0; i < tensors.size(); i++) {
      const std::vector<float> values(static_cast<std::size_t>(tensors[i].shape[0]),
                                      static_cast<float>(i));
      files.write(i, std::as_bytes(std::span(values)));
    }
  };
  constexpr int64_t kLimit = 3000;
  {
    GgufFiles files(folder / "a.gguf", metadata, tensors, kLimit, false);
    write(files);
    fs::create_directories(folder / "a-00003-of-00004.gguf/in the way");
    CHECK(contains(message_of([&] { files.finish(); }), "a-00003-of-00004.gguf"));
    fs::remove_all(folder / "a-00003-of-00004.gguf");
  }
  CHECK(fs::is_empty(folder.path()));
  GgufFiles files(folder / "a.gguf", metadata, tensors, kLimit, false);
  write(files);
  files.finish();
  CHECK(files.paths().size() == 4);
  const std::vector<std::vector<std::string>> expected{{"x0"}, {"x1"}, {"x2"}, {"x3", "x4"}};
  int64_t bytes = 0;
  for (std::size_t i = 0; i < expected.size(); i++) {
    const fs::path path = folder / fmt::format("a-{:05}-of-00004.gguf", i + 1);
    CHECK(files.paths()[i] == path);
    const ReadGguf file(read_file(path));
    bytes += static_cast<int64_t>(file.size());
    CHECK((i == 2 || file.size() <= kLimit));
    CHECK(file.value.at("split.no") == i);
    CHECK(file.value.at("split.count") == 4);
    CHECK(file.value.at("split.tensors.count") == 5);
    CHECK(file.value.contains("t") == (i == 0));
    REQUIRE(file.tensor.size() == expected[i].size());
    for (const std::string& name : expected[i]) {
      float first = -1;
      std::memcpy(&first, file.bytes(file.tensor.at(name), 4).data(), 4);
      CHECK(first == static_cast<float>(name[1] - '0'));
    }
  }
  CHECK(files.bytes() == bytes);
  const GgufFiles one(folder / "b.gguf", metadata, tensors, 1 << 20, false);
  CHECK(one.paths() == std::vector<fs::path>{folder / "b.gguf"});
}

TEST_CASE("rows of a head whose halves rotate are stored as neighbours") {
  GgufTensor tensor;
  tensor.swapped_heads = 2;
  std::vector<int64_t> rows;
  for (int64_t r = 0; r < 12; r++) rows.push_back(stored_row(tensor, 12, r));
  CHECK(rows == std::vector<int64_t>{0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11});
  tensor.swapped_heads = 0;
  CHECK(stored_row(tensor, 12, 7) == 7);
}

TEST_CASE("OLMoE: names, shapes and key-values as llama.cpp reads them") {
  const ReadGguf file = written(fs::path(AQ_TESTS_DIR) / "models/olmoe-tiny");
  const auto& value = file.value;
  CHECK(file.keys.front() == "general.architecture");
  CHECK(value.at("general.architecture") == "olmoe");
  CHECK(value.at("general.name") == "olmoe-tiny");
  CHECK(value.at("general.file_type") == 32);  // mostly BF16
  CHECK(value.at("olmoe.block_count") == 3);
  CHECK(value.at("olmoe.context_length") == 1024);
  CHECK(value.at("olmoe.feed_forward_length") == 128);
  CHECK(value.at("olmoe.expert_count") == 16);
  CHECK(value.at("olmoe.expert_used_count") == 4);
  CHECK(value.at("olmoe.rope.freq_base") == 10000);
  CHECK(value.at("olmoe.attention.layer_norm_rms_epsilon").get<double>() == doctest::Approx(1e-5));
  CHECK(file.tensor.size() == 39);
  CHECK(file.tensor.at("blk.2.ffn_down_exps.weight").dims == std::vector<int64_t>{128, 128, 16});
  CHECK(file.tensor.at("blk.2.ffn_down_exps.weight").type == 30);
  CHECK(file.tensor.at("blk.0.ffn_gate_inp.weight").type == 0);
  CHECK(file.tensor.at("blk.0.attn_q_norm.weight").dims == std::vector<int64_t>{128});
  CHECK(file.tensor.at("output.weight").dims == std::vector<int64_t>{128, 2048});

  CHECK(value.at("tokenizer.ggml.model") == "gpt2");
  CHECK(value.at("tokenizer.ggml.pre") == "gpt-2");
  CHECK(value.at("tokenizer.ggml.tokens").size() == 2048);
  CHECK(value.at("tokenizer.ggml.tokens")[2047] == "[PAD2047]");  // the tokenizer has 2046
  const Json& types = value.at("tokenizer.ggml.token_type");
  CHECK(std::vector<int>{types[0], types[2], types[2047]} == std::vector<int>{3, 1, 5});
  CHECK(value.at("tokenizer.ggml.merges")[0] == "\u0120 \u0120");
  CHECK(value.at("tokenizer.ggml.eos_token_id") == 0);
  CHECK(value.at("tokenizer.ggml.padding_token_id") == 1);
  CHECK(!value.contains("tokenizer.ggml.bos_token_id"));
  CHECK(value.at("tokenizer.ggml.add_bos_token") == false);
}

TEST_CASE("Mixtral: a tokenizer of SentencePiece's kind, whose scores are the ranks of merges") {
  const ReadGguf file = written(fs::path(AQ_TESTS_DIR) / "models/mixtral-tiny");
  const auto& value = file.value;
  CHECK(value.at("general.architecture") == "llama");
  CHECK(value.at("llama.attention.head_count_kv") == 2);
  CHECK(value.at("llama.rope.freq_base") == 1000000);
  CHECK(value.at("llama.attention.key_length") == 32);
  CHECK(value.at("tokenizer.ggml.model") == "llama");
  CHECK(value.at("tokenizer.ggml.add_bos_token") == true);
  CHECK(value.at("tokenizer.ggml.add_eos_token") == false);
  CHECK(value.at("tokenizer.ggml.bos_token_id") == 1);
  CHECK(value.at("tokenizer.ggml.unknown_token_id") == 0);
  CHECK(value.at("tokenizer.ggml.add_space_prefix") == true);
  const Json& types = value.at("tokenizer.ggml.token_type");
  CHECK(std::vector<int>{types[0], types[1], types[3], types[2047]} ==
        std::vector<int>{2, 3, 6, 1});
  std::map<std::string, float> score;
  const Json& tokens = value.at("tokenizer.ggml.tokens");
  for (std::size_t i = 0; i < tokens.size(); i++)
    score[tokens[i]] = value.at("tokenizer.ggml.scores")[i];
  CHECK(score.at("\u2581t") == 0);
  CHECK(score.at("he") == -1);
  CHECK(score.at("\u2581s") == -2);
}

TEST_CASE("the other families: what llama.cpp reads of shared experts and dense layers") {
  const auto qwen = written(fs::path(AQ_TESTS_DIR) / "models/qwen2-moe-tiny");
  CHECK(qwen.value.at("general.architecture") == "qwen2moe");
  CHECK(qwen.value.at("qwen2moe.expert_feed_forward_length") == 128);
  CHECK(qwen.value.at("qwen2moe.expert_shared_feed_forward_length") == 256);
  CHECK(qwen.value.at("tokenizer.ggml.pre") == "qwen2");
  CHECK(qwen.tensor.at("blk.0.ffn_gate_inp_shexp.weight").dims == std::vector<int64_t>{128});
  CHECK(qwen.tensor.at("blk.0.attn_q.bias").type == 0);
  const auto deepseek = written(fs::path(AQ_TESTS_DIR) / "models/deepseek-moe-tiny");
  CHECK(deepseek.value.at("general.architecture") == "deepseek");
  CHECK(deepseek.value.at("deepseek.leading_dense_block_count") == 1);
  CHECK(deepseek.value.at("deepseek.feed_forward_length") == 512);
  CHECK(deepseek.value.at("deepseek.expert_shared_count") == 2);
  CHECK(deepseek.value.at("deepseek.expert_weights_scale") == 1);
  CHECK(deepseek.value.at("tokenizer.ggml.pre") == "deepseek-llm");
  CHECK(deepseek.tensor.contains("blk.0.ffn_up.weight"));
  CHECK(deepseek.tensor.at("blk.1.ffn_up_shexp.weight").dims == std::vector<int64_t>{128, 256});
}

TEST_CASE("an option that llama.cpp does not have is refused by its name") {
  const auto refusal = [](const std::string& name, const Json& changes) {
    return ChangedModel(name, changes).refusal();
  };
  CHECK(refusal("olmoe-tiny", Json::object()).empty());
  CHECK(contains(refusal("olmoe-tiny", {{"norm_topk_prob", true}}),
                 "config.json: llama.cpp's architecture olmoe has no norm_topk_prob: true"));
  CHECK(contains(refusal("olmoe-tiny", {{"clip_qkv", 8.0}}), "clip_qkv"));
  CHECK(contains(refusal("mixtral-tiny", {{"sliding_window", 64}}), "sliding_window (64)"));
  CHECK(contains(refusal("mixtral-tiny", {{"hidden_act", "gelu"}}), "hidden_act"));
  Json yarn{{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 256}};
  const ReadGguf stretched =
      written(ChangedModel("deepseek-moe-tiny", {{"rope_scaling", yarn}}).path());
  CHECK(stretched.value.at("deepseek.rope.scaling.type") == "yarn");
  CHECK(stretched.value.at("deepseek.rope.scaling.factor") == 4);
  CHECK(stretched.value.at("deepseek.rope.scaling.original_context_length") == 256);
  CHECK(stretched.value.at("deepseek.rope.scaling.attn_factor").get<double>() ==
        doctest::Approx(1));
  CHECK(stretched.value.at("deepseek.rope.freq_base") == 10000);
  yarn["beta_slow"] = 2.0;  // llama.cpp does not read it
  CHECK(contains(refusal("deepseek-moe-tiny", {{"rope_scaling", yarn}}), "beta_slow 1"));
  const Json linear{{"rope_type", "linear"}, {"factor", 4.0}};
  CHECK(refusal("deepseek-moe-tiny", {{"rope_scaling", linear}}).empty());
  const ReadGguf scaled =
      written(ChangedModel("deepseek-moe-tiny", {{"rope_scaling", linear}}).path());
  CHECK(scaled.value.at("deepseek.rope.scaling.type") == "linear");
  CHECK(scaled.value.at("deepseek.rope.scaling.factor") == 4);
  CHECK(scaled.value.at("deepseek.rope.freq_base") == 10000);
}

TEST_CASE("a tokenizer that llama.cpp cannot follow is refused") {
  const TempFolder folder;
  const Json olmoe = read_json(fs::path(AQ_TESTS_DIR) / "models/olmoe-tiny/tokenizer.json");
  const auto refusal = [&](const Json& changes, int64_t vocab_size = 2048) {
    Json changed = olmoe;
    changed.merge_patch(changes);
    write_file(folder / "tokenizer.json", changed.dump());
    return message_of([&] { gguf_tokenizer(folder.path(), Json::object(), vocab_size); });
  };
  CHECK(contains(message_of([&] { gguf_tokenizer(folder.path(), Json::object(), 9); }),
                 "tokenizer.json: is missing"));
  CHECK(refusal(Json::object()).empty());
  CHECK(contains(refusal(Json::object(), 2000), "the id is 2"));
  CHECK(contains(refusal({{"model", {{"type", "Unigram"}}}}), "\"Unigram\" is not supported"));
  const Json other{{"type", "Split"},
                   {"pattern", {{"Regex", "\\d"}}},
                   {"behavior", "Isolated"},
                   {"invert", false}};
  CHECK(contains(refusal({{"pre_tokenizer", other}}), "is none of the pre-tokenizers"));
  write_file(folder / "chat_template.jinja", "{{ x }}");
  write_file(folder / "tokenizer.json", olmoe.dump());
  const GgufMetadata with_chat = gguf_tokenizer(folder.path(), Json::object(), 2048);
  CHECK(contains(with_chat.bytes(), "tokenizer.chat_template"));
  CHECK(contains(with_chat.bytes(), "{{ x }}"));
}

TEST_CASE("a GGUF file is made of a checkpoint, and is not one") {
  CHECK(&gguf().of_checkpoint() != &gguf());
  CHECK(contains(message_of([] { gguf().config({}); }), "does not read"));
  CHECK(contains(message_of([] {
                   container_of({{"quantization_config", {{"quant_method", "gguf"}}}}, "m");
                 }),
                 "expected \"compressed-tensors\" or \"gptq\""));
}

}  // namespace aqhost
