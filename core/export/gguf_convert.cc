#include "export/gguf_convert.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/interrupt.h"
#include "checkpoint/convert.h"
#include "export/decoded_checkpoint.h"
#include "export/gguf_tokenizer.h"

namespace aqhost {
namespace {

constexpr int64_t kPartBytes = int64_t{1} << 18;

GgufSummary summary_of(const GgufModel& gguf) {
  GgufSummary summary;
  summary.architecture = gguf.architecture;
  summary.tensors = static_cast<int64_t>(gguf.tensors.size());
  summary.left_out = gguf.left_out;
  summary.rounded_rope = gguf.rounded_rope;
  summary.notes = gguf.notes;
  for (const GgufTensor& tensor : gguf.tensors) {
    summary.types[info_of(tensor.type).name]++;
    summary.bytes += tensor.bytes();
  }
  return summary;
}

/// Elements of a dense tensor in the checkpoint, from element `begin` on: as they are stored, or as
/// float32. Throws an Error if one is not finite.
std::vector<std::byte> read_elements(const Source& source, const std::string& name, GgufType type,
                                     int64_t begin, int64_t count) {
  const int64_t width = info_of(type).bytes;
  std::vector<std::byte> bytes(static_cast<std::size_t>(count * width));
  std::vector<float> values(static_cast<std::size_t>(count));
  if (const TensorInfo& info = *source.find(name); gguf_type(info.dtype) == type) {
    source.read_bytes(name, begin * width, bytes);
    convert_f32(info, bytes, begin, values, source.file_of(name));
    return bytes;
  }
  source.read_f32(name, begin, values);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// The shape in which a tensor stores the matrix at `ref`, and the element at which it begins.
std::pair<std::vector<int64_t>, int64_t> stored_matrix(const Source& source, const TensorRef& ref) {
  std::vector<int64_t> shape = source.find(ref.name)->shape;
  if (ref.index < 0) return {shape, 0};
  shape.erase(shape.begin());
  int64_t start = ref.index;
  for (const int64_t d : shape) start *= d;
  return {shape, start};
}

/// The rows [first, first + count) of the matrix [rows, cols] at `ref`, which is not transposed. A
/// vector has one column.
std::vector<std::byte> read_rows(const Source& source, const TensorRef& ref, GgufType type,
                                 int64_t cols, int64_t first, int64_t count) {
  const int64_t start = stored_matrix(source, ref).second;
  const int64_t begin = start + (ref.row_begin + first * ref.row_step) * cols;
  const int64_t spanned = (count - 1) * ref.row_step + 1;
  std::vector<std::byte> bytes = read_elements(source, ref.name, type, begin, spanned * cols);
  const auto width = static_cast<std::size_t>(cols * info_of(type).bytes);
  for (int64_t r = 1; r < count && ref.row_step > 1; r++)
    std::memcpy(bytes.data() + static_cast<std::size_t>(r) * width,
                bytes.data() + static_cast<std::size_t>(r * ref.row_step) * width, width);
  bytes.resize(static_cast<std::size_t>(count) * width);
  return bytes;
}

/// The matrix [rows, cols] at `ref`, which is stored transposed.
std::vector<std::byte> read_transposed(const Source& source, const TensorRef& ref, GgufType type,
                                       int64_t rows, int64_t cols) {
  const auto [shape, start] = stored_matrix(source, ref);
  const int64_t all_rows = shape.back();
  const std::vector<std::byte> all = read_elements(source, ref.name, type, start, all_rows * cols);
  const int64_t width = info_of(type).bytes;
  std::vector<std::byte> matrix(static_cast<std::size_t>(rows * cols * width));
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++)
      std::memcpy(matrix.data() + (r * cols + c) * width,
                  all.data() + (c * all_rows + ref.row_begin + r * ref.row_step) * width,
                  static_cast<std::size_t>(width));
  return matrix;
}

/// The part of the heads of a matrix [rows, ...] that a tensor holds, with elements of `width`
/// bytes if it is transposed.
std::vector<std::byte> part_of_heads(const GgufTensor& tensor, const std::vector<std::byte>& matrix,
                                     int64_t rows, int64_t width) {
  const HeadPart& part = *tensor.head_part;
  const int64_t heads = tensor.shape.front(), in_head = rows / heads;
  const int64_t row_bytes = static_cast<int64_t>(matrix.size()) / rows;
  const int64_t piece = part.transposed ? width : row_bytes;
  std::vector<std::byte> taken;
  taken.reserve(static_cast<std::size_t>(heads * part.rows * row_bytes));
  for (int64_t h = 0; h < heads; h++)
    for (int64_t at = 0; at < row_bytes; at += piece)
      for (int64_t r = 0; r < part.rows; r++) {
        const auto from = matrix.begin() + (h * in_head + part.first + r) * row_bytes + at;
        taken.insert(taken.end(), from, from + piece);
      }
  return taken;
}

/// Brings the rows of a matrix into the order of the tensor.
std::vector<std::byte> in_order(const GgufTensor& tensor, std::vector<std::byte> matrix,
                                int64_t rows) {
  if (tensor.head_part) return part_of_heads(tensor, matrix, rows, info_of(tensor.type).bytes);
  if (tensor.swapped_heads == 0) return matrix;
  std::vector<std::byte> ordered(matrix.size());
  const std::size_t width = matrix.size() / static_cast<std::size_t>(rows);
  for (int64_t r = 0; r < rows; r++)
    std::copy_n(matrix.begin() + stored_row(tensor, rows, r) * static_cast<int64_t>(width), width,
                ordered.begin() + r * static_cast<int64_t>(width));
  return ordered;
}

/// Writes the content of tensors.
class TensorWriter {
 public:
  TensorWriter(const Source& source, const DecodedCheckpoint* quantized, GgufFiles& writer)
      : source_(source), quantized_(quantized), writer_(writer) {}

  void write(std::size_t index, const GgufTensor& tensor) {
    const int64_t cols = tensor.shape.size() > 1 ? tensor.shape.back() : 1;
    if (tensor.modules.empty()) write_dense(index, tensor, tensor.ref, tensor.shape.front(), cols);
    for (const Module* module : tensor.modules) {
      check_interrupt();
      if (tensor.part == GgufPart::kBiases) {
        write_dense(index, tensor, *module->bias, module->out_features, 1);
        continue;
      }
      const StoredModule* stored =
          quantized_ == nullptr ? nullptr : quantized_->find_module(module->name);
      if (stored == nullptr)
        write_dense(index, tensor, module->weight, module->out_features, module->in_features);
      else
        write_quantized(index, tensor, *stored);
    }
  }

  const GgufRounding& rounding() const { return rounding_; }

 private:
  /// The embedding and the head are large, so rows that stay in their order are read in parts.
  void write_dense(std::size_t index, const GgufTensor& tensor, const TensorRef& ref, int64_t rows,
                   int64_t cols) {
    if (ref.transposed) {
      const std::vector<std::byte> matrix = read_transposed(source_, ref, tensor.type, rows, cols);
      return writer_.write(index, in_order(tensor, matrix, rows));
    }
    const int64_t width = cols * info_of(tensor.type).bytes;
    const bool in_parts = tensor.swapped_heads == 0 && !tensor.head_part;
    const int64_t part = in_parts ? std::max(kPartBytes / width, int64_t{1}) : rows;
    for (int64_t first = 0; first < rows; first += part) {
      const int64_t count = std::min(part, rows - first);
      writer_.write(
          index, in_order(tensor, read_rows(source_, ref, tensor.type, cols, first, count), count));
    }
  }

  void write_quantized(std::size_t index, const GgufTensor& tensor, const StoredModule& module) {
    const QuantizedMatrix matrix = quantized_->read(module);
    if (tensor.part == GgufPart::kMatrixScales) {
      const float scale = matrix_scale(matrix);
      return writer_.write(index, std::as_bytes(std::span(&scale, 1)));
    }
    try {
      writer_.write(index, in_order(tensor, packed(tensor, *module.format, matrix), module.rows));
    } catch (const Error& e) {
      fail("{}: {}: {}", source_.directory(), module.name, e.what());
    }
  }

  std::vector<std::byte> packed(const GgufTensor& tensor, const Format& format,
                                const QuantizedMatrix& matrix) {
    if (tensor.type != GgufType::kF32) return pack_blocks(tensor.type, format, matrix, rounding_);
    const std::vector<float> values = format.dequantize(matrix);
    const auto bytes = std::as_bytes(std::span(values));
    return {bytes.begin(), bytes.end()};
  }

  const Source& source_;
  const DecodedCheckpoint* quantized_;
  GgufFiles& writer_;
  GgufRounding rounding_;
};

}  // namespace

GgufSummary describe_gguf(const Source& source, const Model& model, const GgufFormatOf& format_of,
                          bool has_tokenizer) {
  const GgufModel gguf = gguf_model(source, model, format_of);
  GgufSummary summary = summary_of(gguf);
  if (has_tokenizer) {
    const GgufMetadata tokenizer =
        gguf_tokenizer(source.directory(), source.config(), model.desc().vocab_size);
    summary.bytes += static_cast<int64_t>(tokenizer.bytes().size());
  }
  return summary;
}

GgufSummary write_gguf(const Source& source, const Model& model, const std::filesystem::path& file,
                       bool overwrite, RunObserver& observer, int64_t max_file_bytes) {
  const auto* quantized = dynamic_cast<const DecodedCheckpoint*>(&source);
  const auto format_of = [quantized](const Module& m) -> std::shared_ptr<const Format> {
    const StoredModule* stored = quantized == nullptr ? nullptr : quantized->find_module(m.name);
    return stored == nullptr ? nullptr : stored->format;
  };
  GgufModel gguf = gguf_model(source, model, format_of);
  gguf.metadata.append(
      gguf_tokenizer(source.directory(), source.config(), model.desc().vocab_size));
  GgufSummary summary = summary_of(gguf);
  GgufFiles writer(file, gguf.metadata, {gguf.tensors.begin(), gguf.tensors.end()}, max_file_bytes,
                   overwrite);
  TensorWriter tensors(source, quantized, writer);
  observer.begin("writing " + file.filename().string(), static_cast<double>(summary.bytes),
                 "bytes");
  double done = 0;
  for (std::size_t i = 0; i < gguf.tensors.size(); i++) {
    check_interrupt();
    observer.update(done, gguf.tensors[i].name);
    tensors.write(i, gguf.tensors[i]);
    done += static_cast<double>(gguf.tensors[i].bytes());
  }
  observer.end();
  source.check_unchanged();
  writer.finish();
  summary.bytes = writer.bytes();
  summary.files = writer.paths();
  summary.rounding = tensors.rounding();
  return summary;
}

std::string rounding_text(const GgufRounding& r) {
  std::string text;
  if (r.rounded_scales > 0)
    text = fmt::format("{} of {} scales were rounded to float16, by at most {:.2g} %",
                       r.rounded_scales, r.scales, 100 * r.worst_scale);
  if (r.rounded_minima > 0)
    text += fmt::format(
        "{}{} of {} minima (scale x zero point) were rounded to float16, by at most {:.2g} of a "
        "step "
        "between two codes",
        text.empty() ? "" : "; ", r.rounded_minima, r.minima, r.worst_minimum);
  return text;
}

}  // namespace aqhost
