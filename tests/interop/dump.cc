// What aqhost makes of a checkpoint, for other tools to compare with: every dense weight as
// decoded, and the logits of given ids.
//   dump PLUGIN_DIR MODEL_DIR IDS OUT_DIR DTYPE
// IDS: a file of ids in decimal, one sequence; DTYPE: the forward's, float32 or bfloat16. It
// writes OUT_DIR/model.safetensors, all float32; the logits [tokens, vocab] are named "logits".

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "export/decoded_checkpoint.h"
#include "forward/compute_type.h"
#include "forward/embedding_and_head.h"
#include "run/forward_pass.h"
#include "whole_writer.h"

namespace aqhost {
namespace {

void dump(char** arguments) {
  const Registry registry({arguments[1]});
  const auto source = open_source(arguments[2], registry);
  const auto model = registry.create_model(*source, "auto");
  std::ifstream file(arguments[3]);
  std::vector<int64_t> ids;
  for (int64_t id = 0; file >> id;) ids.push_back(id);
  const at::NoGradGuard no_grad;
  const at::Tensor windows = at::tensor(ids, at::kLong).unsqueeze(0);
  const at::ScalarType dtype = compute_type(arguments[5], *source);
  const at::Tensor x = run_layers(*source, *model, windows, {}, dtype);
  const at::Tensor logits =
      OutputHead(*source, *model, dtype).logits(x[0]).to(at::kFloat).contiguous();

  std::vector<TensorInfo> infos;
  for (const TensorInfo& info : source->tensors())
    infos.push_back({info.name, DType::kF32, info.shape});
  infos.push_back({"logits", DType::kF32, {logits.size(0), logits.size(1)}});
  std::filesystem::create_directories(arguments[4]);
  WholeWriter writer(arguments[4], infos, int64_t{1} << 40);
  std::vector<float> values;
  for (const TensorInfo& info : source->tensors()) {
    values.resize(static_cast<std::size_t>(info.numel()));
    source->read_f32(info.name, 0, values);
    writer.write(info.name, std::as_bytes(std::span(values)));
  }
  writer.write("logits", {static_cast<const std::byte*>(logits.data_ptr()), logits.nbytes()});
  writer.finish();
}

}  // namespace
}  // namespace aqhost

int main(int argc, char** argv) {
  if (argc != 6) {
    fmt::print(stderr, "usage: dump PLUGIN_DIR MODEL_DIR IDS OUT_DIR DTYPE\n");
    return 2;
  }
  try {
    aqhost::dump(argv);
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "dump: {}\n", e.what());
    return 1;
  }
}
