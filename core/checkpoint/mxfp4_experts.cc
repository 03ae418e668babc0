#include "checkpoint/mxfp4_experts.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <array>
#include <set>

#include "base/error.h"

namespace aqhost {
namespace {

constexpr std::string_view kBlocks = "_blocks", kScales = "_scales";
constexpr int64_t kBlock = 32;  // elements that share a scale
constexpr int64_t kBlockBytes = 16;
constexpr int64_t kRowsAtOnce = 64;  // so that the transposed values are written in whole lines

/// OCP MX v1.0, table 5; the top bit is the sign.
constexpr std::array<float, 16> kE2M1{0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                      -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

/// Where a stack of experts lies. A stored row becomes a column of an expert's dense matrix.
struct Mxfp4Experts {
  std::string blocks, scales;
  int64_t rows = 0, groups = 0;  // of a stored matrix

  /// Decodes the groups `first` to `last` of the stored rows from `row` on, whose codes and scales
  /// are given. to[0] is element `offset` of the dense matrix; what lies outside `to` is left out.
  void decode_rows(std::span<const std::byte> codes, std::span<const std::byte> exponents,
                   int64_t row, int64_t first, int64_t last, int64_t offset,
                   std::span<float> to) const {
    const int64_t count = static_cast<int64_t>(exponents.size()) / groups;
    const auto end = static_cast<int64_t>(to.size());
    for (int64_t g = first; g <= last; g++)
      for (int64_t r = 0; r < count; r++) {
        const auto at = static_cast<std::size_t>(r * groups + g);
        const float scale = aq::from_e8m0(std::to_integer<uint8_t>(exponents[at]));
        const std::byte* block = codes.data() + at * kBlockBytes;
        for (int64_t i = 0; i < kBlock; i++) {
          const auto byte = std::to_integer<unsigned>(block[i / 2]);
          const int64_t place = (g * kBlock + i) * rows + row + r - offset;
          if (place >= 0 && place < end)
            to[static_cast<std::size_t>(place)] = kE2M1[i % 2 == 0 ? byte & 15 : byte >> 4] * scale;
        }
      }
  }

  /// Decodes a part of the dense matrix of one expert, from element `offset` on.
  void decode_expert(const Source& stored, int64_t expert, int64_t offset,
                     std::span<float> to) const {
    const int64_t first = offset / rows / kBlock;
    const int64_t last = (offset + static_cast<int64_t>(to.size()) - 1) / rows / kBlock;
    std::vector<std::byte> codes, exponents;
    for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, rows - row) * groups;
      const int64_t begin = (expert * rows + row) * groups;
      codes.resize(static_cast<std::size_t>(count * kBlockBytes));
      exponents.resize(static_cast<std::size_t>(count));
      stored.read_bytes(blocks, begin * kBlockBytes, codes);
      stored.read_bytes(scales, begin, exponents);
      decode_rows(codes, exponents, row, first, last, offset, to);
    }
  }

  void decode(const Source& stored, int64_t begin, std::span<float> out) const {
    const int64_t size = rows * groups * kBlock;  // of an expert
    for (std::size_t done = 0; done < out.size();) {
      const int64_t at = begin + static_cast<int64_t>(done), offset = at % size;
      const std::size_t n = std::min(out.size() - done, static_cast<std::size_t>(size - offset));
      decode_expert(stored, at / size, offset, out.subspan(done, n));
      done += n;
    }
  }
};

/// The stored part NAME_blocks or NAME_scales. Throws an Error unless it is there and U8.
const TensorInfo& find_part(const Source& stored, const std::string& name,
                            const std::string& other) {
  const TensorInfo* part = stored.find(name);
  if (part == nullptr)
    fail("{}: tensor {} is there, but {} is missing", stored.file_of(other), other, name);
  if (part->dtype != DType::kU8)
    fail("{}: tensor {} is {}, expected U8", stored.file_of(name), name, dtype_name(part->dtype));
  return *part;
}

/// Throws an Error if a part is missing or wrong.
EncodedTensor find_experts(const Source& stored, const std::string& name) {
  const std::string blocks = name + std::string(kBlocks), scales = name + std::string(kScales);
  std::vector<int64_t> shape = find_part(stored, blocks, scales).shape;
  if (shape.size() != 4 || shape[3] != kBlockBytes ||
      find_part(stored, blocks, scales).numel() == 0)
    fail("{}: tensor {} is [{}], expected [experts, rows, columns / {}, {}]",
         stored.file_of(blocks), blocks, fmt::join(shape, ", "), kBlock, kBlockBytes);
  shape.pop_back();
  const std::vector<int64_t>& found = find_part(stored, scales, blocks).shape;
  if (found != shape)
    fail("{}: tensor {} is [{}], expected [{}]: a scale for each block of {}",
         stored.file_of(scales), scales, fmt::join(found, ", "), fmt::join(shape, ", "), blocks);
  const Mxfp4Experts experts{blocks, scales, shape[1], shape[2]};
  return {{name, DType::kBF16, {shape[0], shape[2] * kBlock, shape[1]}},
          {blocks, scales},
          [experts](const Source& source, int64_t begin, std::span<float> out) {
            experts.decode(source, begin, out);
          }};
}

}  // namespace

std::vector<EncodedTensor> find_mxfp4_experts(const Source& stored) {
  std::set<std::string> names;
  for (const TensorInfo& info : stored.tensors())
    for (const std::string_view part : {kBlocks, kScales})
      if (info.name.ends_with(part))
        names.insert(info.name.substr(0, info.name.size() - part.size()));
  std::vector<EncodedTensor> encoded;
  for (const std::string& name : names) encoded.push_back(find_experts(stored, name));
  return encoded;
}

}  // namespace aqhost
