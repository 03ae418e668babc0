#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <string>

#include "checkpoint/writer.h"

namespace aqhost {

/// The hidden states [windows, tokens, hidden] f32 behind a layer: x of the quantized model, and
/// `original` of the original model, for the first windows. Either is undefined if a run has none.
struct BoundaryStates {
  at::Tensor x, original;
};

/// Where a run holds its hidden states: in the memory of its device; in that of the host, although
/// it computes on a GPU; or, with either device, in files of `folder` (see tensor_in_file) whose
/// names begin with states-.
struct StatesPlace {
  at::Device device = at::kCPU;  // of the tensors; the CPU if they are in files
  std::filesystem::path folder;  // "": in memory

  bool in_files() const { return !folder.empty(); }
  /// A float32 tensor there. Its content is undefined. Throws an Error if the file cannot be made.
  at::Tensor empty(at::IntArrayRef shape) const;
  /// A copy there of states that are there.
  at::Tensor copy_of(const at::Tensor& states) const;
};

/// Writes the file folder / name of a boundary's states, which may be on a GPU and then must have
/// their values. While it is written it lies in a folder of its own, because Writer chooses its
/// name. The constructor only copies the bytes; finish() flushes them and gives the file its name.
/// Both throw an Error if that fails.
class StatesFile {
 public:
  StatesFile(std::filesystem::path folder, std::string name, const BoundaryStates& states);
  void finish();

 private:
  std::filesystem::path folder_;
  std::string name_;
  std::filesystem::path part_;
  Writer writer_;
};

/// Loads what a StatesFile has written to `place`, or to the CPU if that is a GPU. Throws an Error
/// if the file cannot be read.
BoundaryStates load_states(const std::filesystem::path& path, const StatesPlace& place);

}  // namespace aqhost
