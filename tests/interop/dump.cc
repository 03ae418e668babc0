// What aqhost makes of a checkpoint, for other tools to compare with: every dense weight as
// decoded, the logits of given ids, and the experts that are chosen for them.
//   dump PLUGIN_DIR MODEL_DIR IDS OUT_DIR DTYPE
// IDS: a file of ids in decimal, one sequence; DTYPE: the forward's, float32 or bfloat16. It
// writes OUT_DIR/model.safetensors. The logits [tokens, vocab] are named "logits", and the experts
// of layer L [tokens, top_k] (-1: the slot is not used) "routes.L". All are float32, but the
// experts are int32.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

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
  std::map<std::string, at::Tensor> routes;
  const auto routed = [&](int32_t layer, int64_t, const Routing& routing) {
    routes[fmt::format("routes.{}", layer)] = routing.ids.to(at::kCPU, at::kInt).contiguous();
  };
  const at::Tensor x = run_layers(*source, *model, windows, {}, dtype, routed);
  const at::Tensor logits =
      OutputHead(*source, *model, dtype).logits(x[0]).to(at::kFloat).contiguous();

  std::vector<TensorInfo> infos;
  for (const TensorInfo& info : source->tensors())
    infos.push_back({info.name, DType::kF32, info.shape});
  infos.push_back({"logits", DType::kF32, {logits.size(0), logits.size(1)}});
  for (const auto& [name, experts] : routes)
    infos.push_back({name, DType::kI32, {experts.size(0), experts.size(1)}});
  std::filesystem::create_directories(arguments[4]);
  WholeWriter writer(arguments[4], infos, int64_t{1} << 40);
  std::vector<float> values;
  for (const TensorInfo& info : source->tensors()) {
    values.resize(static_cast<std::size_t>(info.numel()));
    source->read_f32(info.name, 0, values);
    writer.write(info.name, std::as_bytes(std::span(values)));
  }
  const auto write = [&](const std::string& name, const at::Tensor& tensor) {
    writer.write(name, {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()});
  };
  write("logits", logits);
  for (const auto& [name, experts] : routes) write(name, experts);
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
