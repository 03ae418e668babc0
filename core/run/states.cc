#include "run/states.h"

#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "tensor/device.h"
#include "tensor/tensor_in_file.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr const char* kX = "hidden_states";
constexpr const char* kOriginal = "original_hidden_states";

TensorInfo info_of(const char* name, const at::Tensor& t) {
  return {name, DType::kF32, {t.sizes().begin(), t.sizes().end()}};
}

std::span<const std::byte> bytes_of(const at::Tensor& t) {
  return {static_cast<const std::byte*>(t.const_data_ptr()), t.nbytes()};
}

/// Writes a tensor of the states.
void write_states(Writer& writer, const char* name, const at::Tensor& t) {
  if (!t.defined()) return;
  if (t.is_cpu()) return writer.write(name, bytes_of(t));
  writer.copy(name, [&](int64_t begin, std::span<std::byte> out) { copy_to_host(t, begin, out); });
}

Writer make_writer(const fs::path& part, const BoundaryStates& states) {
  std::error_code error;
  fs::create_directory(part, error);
  if (error) fail("{}: {}", part.string(), error.message());
  std::vector<TensorInfo> tensors;
  if (states.x.defined()) tensors.push_back(info_of(kX, states.x));
  if (states.original.defined()) tensors.push_back(info_of(kOriginal, states.original));
  return {part, {tensors}, std::numeric_limits<int64_t>::max()};
}

at::Tensor load(const SafetensorsFile& file, const std::string& name, const StatesPlace& place) {
  for (const StoredTensor& info : file.tensors()) {
    if (info.name != name) continue;
    at::Tensor t =
        place.device.is_cpu() ? place.empty(info.shape) : at::empty(info.shape, at::kFloat);
    file.read(info, 0, {static_cast<std::byte*>(t.data_ptr()), t.nbytes()});
    return t;
  }
  return {};
}

}  // namespace

at::Tensor StatesPlace::empty(at::IntArrayRef shape) const {
  if (in_files()) return tensor_in_file(folder / "states-in-use", shape);
  // Memory of the host is not page-locked: LibTorch would take up to twice as much of it, because
  // it rounds the size to a power of two.
  return at::empty(shape, at::TensorOptions(device).dtype(at::kFloat));
}

at::Tensor StatesPlace::copy_of(const at::Tensor& states) const {
  return empty(states.sizes()).copy_(states);
}

StatesFile::StatesFile(fs::path folder, std::string name, const BoundaryStates& states)
    : folder_(std::move(folder)),
      name_(std::move(name)),
      part_(folder_ / (name_ + ".part")),
      writer_(make_writer(part_, states)) {
  writer_.begin(0);
  write_states(writer_, kX, states.x);
  write_states(writer_, kOriginal, states.original);
}

void StatesFile::finish() {
  writer_.finish(0);
  const fs::path path = folder_ / name_;
  std::error_code error;
  fs::rename(part_ / "model.safetensors", path, error);
  if (!error) fs::remove(part_, error);
  if (error) fail("{}: {}", path.string(), error.message());
}

BoundaryStates load_states(const fs::path& path, const StatesPlace& place) {
  const SafetensorsFile file(path);
  return {load(file, kX, place), load(file, kOriginal, place)};
}

}  // namespace aqhost
