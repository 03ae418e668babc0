#include "quant/batch.h"

#include <cstring>

namespace aqhost {
namespace {

template <typename T>
void append(std::vector<T>& to, const at::Tensor& from) {
  const at::Tensor whole = from.contiguous();
  const auto* data = static_cast<const std::byte*>(whole.data_ptr());
  to.resize(static_cast<std::size_t>(whole.nbytes()) / sizeof(T));
  if (!to.empty()) std::memcpy(to.data(), data, whole.nbytes());
}

}  // namespace

QuantizedMatrix QuantizedBatch::matrix(int64_t e, int64_t begin, int64_t rows) const {
  QuantizedMatrix m;
  m.rows = rows;
  m.cols = cols;
  append(m.codes, codes[e].narrow(0, begin, rows));
  append(m.group_params, params[e].narrow(0, begin, rows));
  append(m.tensor_params, tensor_params[e]);
  return m;
}

void QuantizedBatch::move_codes(at::Device device) {
  for (at::Tensor* t : {&codes, &params, &tensor_params, &loss, &rtn_loss}) {
    if (t->is_cuda() && device.is_cpu())  // to pinned memory, which the GPU writes directly
      *t = at::empty_like(*t, t->options().device(device).pinned_memory(true)).copy_(*t);
    else
      *t = t->to(device);
  }
}

QuantizedBatch QuantizedBatch::to(at::Device device) const {
  QuantizedBatch moved = *this;
  moved.move_codes(device);
  moved.values = values.to(device);
  return moved;
}

}  // namespace aqhost
