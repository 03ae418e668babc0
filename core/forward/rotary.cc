#include "forward/rotary.h"

#include "base/error.h"
#include "forward/fused.h"

namespace aqhost {

Rotary::Rotary(const AttentionDesc& desc, int64_t seq_len, const at::TensorOptions& options)
    : seq_len_(seq_len), interleaved_(desc.rope_interleaved) {
  if (desc.rope_inv_freq.empty()) return;
  const at::Tensor positions = at::arange(seq_len, at::kFloat);
  const at::Tensor angles = at::outer(positions, at::tensor(desc.rope_inv_freq));
  cos_ = angles.cos().mul_(desc.rope_scale).to(options);
  sin_ = angles.sin().mul_(desc.rope_scale).to(options);
}

void Rotary::operator()(at::Tensor& x) const {
  const int64_t tokens = x.size(1);
  if (tokens > seq_len_)
    fail("a sequence of {} tokens, the layer was made for {}", tokens, seq_len_);
  if (!cos_.defined()) return;
  const int64_t half = cos_.size(1);
  if (can_fuse(x)) return fused_rotate(x, cos_, sin_, interleaved_);
  const at::Tensor cos = cos_.narrow(0, 0, tokens).unsqueeze(1);
  const at::Tensor sin = sin_.narrow(0, 0, tokens).unsqueeze(1);
  const at::Tensor part = x.narrow(3, 0, 2 * half);
  at::Tensor a = interleaved_ ? part.slice(3, 0, 2 * half, 2) : part.narrow(3, 0, half);
  at::Tensor b = interleaved_ ? part.slice(3, 1, 2 * half, 2) : part.narrow(3, half, half);
  const at::Tensor rotated = a * cos - b * sin;
  b.copy_(b * cos + a * sin);
  a.copy_(rotated);
}

}  // namespace aqhost
