// What aqhost makes of matrices in number formats, for an independent oracle to compare with.
//   dump_formats PLUGIN_DIR JOBS OUT_DIR
// JOBS: a JSON list of {name, format, options, rows, cols, weight[, importance]}, the last two raw
// float32 files. Writes OUT_DIR/model.safetensors: NAME.codes, NAME.params, NAME.tensor_params,
// NAME.values, and NAME.packed.SUFFIX as bytes.

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "plugin/registry.h"
#include "quant/batch.h"
#include "quant/groups.h"
#include "whole_writer.h"

namespace aqhost {
namespace {

at::Tensor read_floats(const Json& path, at::IntArrayRef shape) {
  const std::string bytes = read_file(path.get<std::string>());
  at::Tensor tensor = at::empty(shape, at::kFloat);
  if (bytes.size() != tensor.nbytes())
    fail("{}: {} bytes, expected {}", path.dump(), bytes.size(), tensor.nbytes());
  std::memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

struct Output {
  std::vector<TensorInfo> infos;
  std::vector<std::vector<std::byte>> data;

  void add(const std::string& name, DType type, const at::Tensor& tensor) {
    const at::Tensor whole = tensor.contiguous();
    const auto* bytes = static_cast<const std::byte*>(whole.data_ptr());
    infos.push_back({name, type, whole.sizes().vec()});
    data.emplace_back(bytes, bytes + whole.nbytes());
  }
};

void dump(const Json& job, const Registry& registry, Output& out) {
  const auto name = job["name"].get<std::string>();
  const auto format = registry.create_format(job["format"].get<std::string>(), job["options"]);
  const auto rows = job["rows"].get<int64_t>(), cols = job["cols"].get<int64_t>();
  const at::Tensor weight = read_floats(job["weight"], {1, rows, cols});
  at::Tensor importance;
  if (job.contains("importance")) importance = read_floats(job["importance"], {1, cols});
  QuantizedBatch batch;
  batch.cols = cols;
  batch.codes = at::empty({1, rows, cols}, at::kByte);
  batch.values = at::empty({1, rows, cols}, at::kFloat);
  batch.tensor_params = fit_tensors(*format, weight, importance);
  batch.params = fit_groups(*format, weight, importance, batch.tensor_params);
  round_groups(*format, weight, batch);
  out.add(name + ".codes", DType::kU8, batch.codes[0]);
  out.add(name + ".params", DType::kF32, batch.params[0]);
  out.add(name + ".tensor_params", DType::kF32, batch.tensor_params[0]);
  out.add(name + ".values", DType::kF32, batch.values[0]);
  for (PackedTensor& t : format->pack(batch.matrix(0, 0, rows))) {
    out.infos.push_back(
        {name + ".packed." + t.info.name, DType::kU8, {static_cast<int64_t>(t.bytes.size())}});
    out.data.push_back(std::move(t.bytes));
  }
}

void run(char** arguments) {
  const Registry registry({arguments[1]});
  Output out;
  for (const Json& job : parse_json(read_file(arguments[2]), arguments[2]))
    dump(job, registry, out);
  std::filesystem::create_directories(arguments[3]);
  WholeWriter writer(arguments[3], out.infos, int64_t{1} << 40);
  for (std::size_t i = 0; i < out.infos.size(); i++) writer.write(out.infos[i].name, out.data[i]);
  writer.finish();
}

}  // namespace
}  // namespace aqhost

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: dump_formats PLUGIN_DIR JOBS OUT_DIR\n");
    return 2;
  }
  try {
    aqhost::run(argv);
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "dump_formats: {}\n", e.what());
    return 1;
  }
}
