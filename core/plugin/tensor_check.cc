#include "plugin/tensor_check.h"

#include <algorithm>
#include <vector>

#include "base/interrupt.h"

namespace aqhost {
namespace {

constexpr int64_t kReadChunk = int64_t{1} << 24;

}  // namespace

void check_finite(const Source& source, const Model& model, const std::set<std::string>& except) {
  std::set<std::string> names;
  for (const NeededTensor& needed : model.needed_tensors(source))
    if (!except.contains(needed.ref.name)) names.insert(needed.ref.name);
  std::vector<float> values;
  for (const std::string& name : names) {
    check_interrupt();
    const int64_t elements = source.find(name)->numel();
    for (int64_t begin = 0; begin < elements; begin += kReadChunk) {
      values.resize(static_cast<std::size_t>(std::min(kReadChunk, elements - begin)));
      source.read_f32(name, begin, values);
    }
  }
}

}  // namespace aqhost
