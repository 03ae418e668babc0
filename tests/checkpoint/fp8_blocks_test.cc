#include <doctest/doctest.h>

#include <limits>

#include "base/error.h"
#include "stored_parts.h"

namespace aqhost {
namespace {
using doctest::Contains;

/// A matrix of 3 x 5 codes in blocks of 2 x 3, and a dense tensor.
class Fp8Checkpoint {
 public:
  Fp8Checkpoint() {
    parts.config = {
        {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {2, 3}}}}};
    // 0x38 is 1, 0x40 is 2, 0x01 is 2^-9, 0x7e is 448; the top bit is the sign
    parts.add("m.weight", DType::kF8E4M3, {3, 5},
              "\x38\x38\x38\x38\x40"
              "\x01\x7e\xb8\x00\x80"
              "\x38\x38\x38\xc0\x38"s);
    parts.add_f32("m.weight_scale_inv", {2, 2}, {1, 0.1f, 3, 1e-3f});
    parts.add_f32("norm.weight", {2}, {5, 7});
  }

  std::unique_ptr<Source> open() const { return open_parts(parts); }
  /// The message with which opening fails.
  doctest::String refused() const { return refusal(parts); }

  StoredParts parts;
};

}  // namespace

TEST_CASE("fp8 blocks: an element is its code times the scale of its block, in float32") {
  const Fp8Checkpoint checkpoint;
  const auto source = checkpoint.open();
  const std::vector<float> expected{1, 1,     1, 0.1f, 2 * 0.1f, 0x1p-9f, 448,  -1,
                                    0, -0.0f, 3, 3,    3,        -2e-3f,  1e-3f};
  for (int64_t begin = 0; begin <= 15; begin++)
    for (int64_t end = begin; end <= 15; end++) {
      std::vector<float> out(static_cast<std::size_t>(end - begin));
      source->read_f32("m.weight", begin, out);
      CHECK(out == std::vector<float>(expected.begin() + begin, expected.begin() + end));
    }
  std::vector<float> out(2);
  CHECK_THROWS_WITH_AS(source->read_f32("m.weight", 14, out),
                       Contains("tensor m.weight: elements 14 to 16 of 15 were asked for"), Error);
  CHECK_THROWS_WITH_AS(source->read_f32("m.weight_scale_inv", 0, out),
                       Contains("there is no tensor m.weight_scale_inv"), Error);
}

TEST_CASE("fp8 blocks: a tensor is seen as it was before, and its scales are not seen") {
  const Fp8Checkpoint checkpoint;
  const auto source = checkpoint.open();
  REQUIRE(source->tensors().size() == 2);
  REQUIRE(source->find("m.weight") != nullptr);
  CHECK(source->find("m.weight")->dtype == DType::kBF16);
  CHECK(source->find("m.weight")->shape == std::vector<int64_t>{3, 5});
  CHECK(source->find("m.weight_scale_inv") == nullptr);
  CHECK(source->stored_bytes("m.weight") == 15 + 16);
  CHECK(source->stored_size().bytes == 15 + 16 + 8);
  CHECK(source->stored_size().weights == 15);
  CHECK(source->stored_size().weight_bytes == 31);
  CHECK(source->file_of("m.weight") == source->file_of("norm.weight"));
  CHECK(source->files().size() == 1);
  // neither the codes nor the scales are the stored form of what is read
  CHECK(!source->read_stored("m.weight", 0, {}));
  CHECK(!source->read_stored("m.weight_scale_inv", 0, {}));
  CHECK(source->read_stored("norm.weight", 0, {}));
  std::vector<float> norm(1);
  source->read_f32("norm.weight", 1, norm);
  CHECK(norm[0] == 7);
}

TEST_CASE("fp8 blocks: stacked experts have scales of their own, of each type") {
  Fp8Checkpoint checkpoint;
  const auto stack = [&](DType type, const std::string& scales) {
    // the last block row and column are smaller than a block
    checkpoint.parts.add("experts.up", DType::kF8E4M3, {2, 3, 4}, std::string(24, '\x38'));
    checkpoint.parts.add("experts.up_scale_inv", type, {2, 2, 2}, scales);
    std::vector<float> out(24);
    checkpoint.open()->read_f32("experts.up", 0, out);
    return std::vector<float>{out[0], out[3], out[8], out[11], out[12], out[15], out[20], out[23]};
  };
  CHECK(stack(DType::kF8E8M0, "\x7f\x80\x81\x82\x7e\x7d\x00\xfe"s) ==
        std::vector<float>{1, 2, 4, 8, 0.5f, 0.25f, 0x1p-127f, 0x1p127f});
  CHECK(stack(DType::kBF16, "\x80\x3f\x00\x40\x40\x40\x80\x40\x80\xbf\x00\xc0\x40\xc0\x80\xc0"s) ==
        std::vector<float>{1, 2, 3, 4, -1, -2, -3, -4});
}

TEST_CASE("fp8 blocks: what is not finite is an error that names the tensor") {
  for (const auto& [code, scale, problem] : std::vector<std::tuple<char, std::string, std::string>>{
           {'\x7f', "\x7f", "tensor w: element 0, which is stored in w and w_scale_inv, is nan"},
           {'\x38', "\xff", "tensor w: element 0, which is stored in w and w_scale_inv, is nan"},
           {'\x7e', "\xfe", "is inf"}}) {
    Fp8Checkpoint checkpoint;
    checkpoint.parts.add("w", DType::kF8E4M3, {1, 1}, {code});
    checkpoint.parts.add("w_scale_inv", DType::kF8E8M0, {1, 1}, scale);
    float out = 0;
    CHECK_THROWS_WITH_AS(checkpoint.open()->read_f32("w", 0, {&out, 1}), Contains(problem.c_str()),
                         Error);
  }
  Fp8Checkpoint checkpoint;
  checkpoint.parts.add_f32("m.weight_scale_inv", {2, 2},
                           {1, std::numeric_limits<float>::infinity(), 1, 1});
  float out = 0;
  CHECK_THROWS_WITH_AS(checkpoint.open()->read_f32("m.weight", 0, {&out, 1}),
                       Contains("tensor m.weight_scale_inv: element 1 is inf"), Error);
}

TEST_CASE("fp8 blocks: tensors that are missing or do not fit together are refused") {
  const auto refused = [](const auto& change) {
    Fp8Checkpoint checkpoint;
    change(checkpoint.parts);
    return checkpoint.refused();
  };
  CHECK(refused([](StoredParts& p) { p.tensors.erase("m.weight_scale_inv"); }) ==
        Contains("model.safetensors: tensor m.weight is F8_E4M3, but its scales, "
                 "m.weight_scale_inv, are missing"));
  CHECK(refused([](StoredParts& p) { p.tensors.erase("m.weight"); }) ==
        Contains("model.safetensors: tensor m.weight_scale_inv has the scales of m.weight, which "
                 "is missing"));
  CHECK(refused([](StoredParts& p) {
          p.add("m.weight", DType::kI8, {3, 5}, std::string(15, 0));
        }) ==
        Contains("tensor m.weight_scale_inv has the scales of m.weight, which is I8, expected "
                 "F8_E4M3"));
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{4}, {1, 2}, {2, 3}, {1, 2, 2}, {2, 2, 1}})
    CHECK(refused([&](StoredParts& p) {
            int64_t n = 1;
            for (const int64_t d : shape) n *= d;
            p.add_f32("m.weight_scale_inv", shape, std::vector<float>(static_cast<std::size_t>(n)));
          }) == Contains("expected F32, BF16 or F8_E8M0 [2, 2]: a scale for each block of 2 x 3 of "
                         "m.weight, which is [3, 5]"));
  CHECK(refused([](StoredParts& p) {
          p.add("m.weight_scale_inv", DType::kF16, {2, 2}, std::string(8, 0));
        }) == Contains("tensor m.weight_scale_inv is F16 [2, 2], expected F32, BF16 or F8_E8M0"));
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{15}, {1, 1, 3, 5}})
    CHECK(refused([&](StoredParts& p) {
            p.add("m.weight", DType::kF8E4M3, shape, std::string(15, 0));
          }) == Contains("expected [rows, columns] or [experts, rows, columns]"));
  CHECK(refused([](StoredParts& p) {
          p.add("m.weight", DType::kF8E4M3, {0, std::numeric_limits<int64_t>::max()}, "");
        }) == Contains("expected [rows, columns] or [experts, rows, columns]"));
}

TEST_CASE("a checkpoint of another quant_method, or of none, is opened as it is stored") {
  for (const Json& settings : {Json(), Json(3), Json::object(), Json{{"quant_method", 3}},
                               Json{{"quant_method", "awq"}}}) {
    Fp8Checkpoint checkpoint;
    checkpoint.parts.config["quantization_config"] = settings;
    CHECK(checkpoint.open()->find("m.weight_scale_inv") != nullptr);
  }
}

TEST_CASE("fp8 blocks: settings that are not supported are refused") {
  const auto refused = [](const char* key, const Json& value) {
    Fp8Checkpoint checkpoint;
    checkpoint.parts.config["quantization_config"][key] = value;
    return checkpoint.refused();
  };
  const std::string at = "config.json: quantization_config.";
  for (const Json& size : {Json(), Json(128), Json{128}, Json{1, 2, 3}})
    CHECK(refused("weight_block_size", size) ==
          Contains((at + "weight_block_size: expected two integers").c_str()));
  for (const Json& size : {Json{0, 128}, Json{128, -1}, Json{"a", 1}, Json{1, int64_t{1} << 40}})
    CHECK(refused("weight_block_size", size) == Contains("weight_block_size["));
  CHECK(refused("activation_scheme", "static") ==
        Contains((at + "activation_scheme \"static\" is not supported").c_str()));
  CHECK(refused("activation_scheme", "dynamic") == "accepted");
}

}  // namespace aqhost
