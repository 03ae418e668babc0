// aq/sdk/block_forward.hpp - attention that the host does not know, written in C++ on top of
// aq/ext/block_forward.h.
#pragma once

#include <aq/ext/block_forward.h>

#include <algorithm>
#include <aq/sdk/model.hpp>
#include <aq/sdk/tensor.hpp>
#include <cmath>
#include <cstddef>

namespace aq {

/// A matrix in the host's memory: float32, row-major, valid until the forward call returns.
template <typename T>
struct RowsOf {
  T* data = nullptr;
  int64_t rows = 0, cols = 0;

  T* operator[](int64_t row) const { return data + row * cols; }
};
using Rows = RowsOf<float>;
using ConstRows = RowsOf<const float>;

/// One call of a block: its input and output, and the functions that the host offers to it. Every
/// function throws the host's error. An object lives as long as the call, and only the calling
/// thread may use it.
class ForwardCall {
 public:
  /// `hidden` is the hidden size of the model.
  ForwardCall(const aq_forward_args* args, int64_t hidden) : ctx_(args->ctx) {
    x_ = {view<const float>(args->x, "x", {-1, hidden}), args->x->shape[0], hidden};
    y_ = {view<float>(args->y, "y", {x_.rows, hidden}), x_.rows, hidden};
    positions_ = view<const int32_t>(args->positions, "positions", {x_.rows});
  }

  int32_t layer() const { return ctx_->layer; }
  /// The input [tokens, hidden], and the output [tokens, hidden], which the block must fill.
  ConstRows x() const { return x_; }
  Rows y() const { return y_; }
  const int32_t* positions() const { return positions_; }  // [tokens]

  /// A matrix with one row per token of x; its content is undefined.
  Rows rows(int64_t cols) const {
    const auto bytes = static_cast<uint64_t>(x_.rows * cols) * sizeof(float);
    void* memory = ctx_->scratch(ctx_, bytes);
    if (memory == nullptr) throw Error("the host has no memory left", AQ_OUT_OF_MEMORY);
    return {static_cast<float*>(memory), x_.rows, cols};
  }

  /// Computes y = x W^T + b, with W and b of a module.
  template <typename T>
  void linear(uint32_t module, const RowsOf<T>& x, const Rows& y) const {
    Lent in(x), out(y);
    aq_error error{};
    check(ctx_->linear(ctx_, module, &in.tensor, &out.tensor, &error), error);
  }
  template <typename T>
  Rows linear(uint32_t module, const RowsOf<T>& x, int64_t out_features) const {
    const Rows y = rows(out_features);
    linear(module, x, y);
    return y;
  }

  /// Computes softmax(scale q k^T) v, causal within each sequence, from q [tokens, heads x d], k
  /// [tokens, kv_heads x d] and v [tokens, kv_heads x dv]. The result is [tokens, heads x dv].
  Rows attend(const Rows& q, const Rows& k, const Rows& v, int64_t heads, int64_t kv_heads,
              float scale) const {
    const Rows y = rows(v.cols / kv_heads * heads);
    Lent in_q(q, heads), in_k(k, kv_heads), in_v(v, kv_heads), out(y, heads);
    aq_error error{};
    check(ctx_->attend(ctx_, &in_q.tensor, &in_k.tensor, &in_v.tensor, scale, &out.tensor, &error),
          error);
    return y;
  }

  /// A vector [size] that does not belong to a linear map, such as a norm's weight.
  const float* vector(const aq_tensor_key& key, int64_t size) const {
    DLTensor out{};
    aq_error error{};
    check(ctx_->tensor(ctx_, &key, &out, &error), error);
    return view<const float>(&out, "a vector of the checkpoint", {size});
  }

 private:
  /// A view of a matrix as a tensor [rows, cols], or [rows, heads, cols / heads]. A DLTensor cannot
  /// say that its data are not to be changed; the host does not change what it only reads.
  struct Lent {
    template <typename T>
    explicit Lent(const RowsOf<T>& m, int64_t heads = 0) : shape{m.rows, m.cols, 0} {
      if (heads > 0) {
        shape[1] = heads;
        shape[2] = m.cols / heads;
      }
      tensor.data = const_cast<float*>(m.data);
      tensor.device = {kDLCPU, 0};
      tensor.ndim = heads > 0 ? 3 : 2;
      tensor.dtype = {kDLFloat, 32, 1};
      tensor.shape = shape;
    }
    Lent(const Lent&) = delete;
    Lent& operator=(const Lent&) = delete;

    int64_t shape[3];
    DLTensor tensor{};
  };

  static void check(aq_status status, const aq_error& error) {
    if (status != AQ_OK) throw Error(error.message, status);
  }

  const aq_forward_ctx* ctx_;
  ConstRows x_;
  Rows y_;
  const int32_t* positions_;
};

/// Applies RMS norm to each row, in place. `weight` has `cols` values.
inline void rms_norm(const Rows& x, const float* weight, float eps) {
  for (int64_t r = 0; r < x.rows; r++) {
    float* row = x[r];
    double sum = 0;
    for (int64_t c = 0; c < x.cols; c++) sum += static_cast<double>(row[c]) * row[c];
    const auto factor = static_cast<float>(
        1 / std::sqrt(sum / static_cast<double>(x.cols) + static_cast<double>(eps)));
    for (int64_t c = 0; c < x.cols; c++) row[c] = row[c] * factor * weight[c];
  }
}

/// Applies the rotary embedding in place to the pairs (2 i, 2 i + 1) of `head` [dim]. `inv_freq`
/// has dim / 2 values; cos and sin are multiplied by `scale`.
inline void rotate_pairs(float* head, int32_t dim, int32_t position, const float* inv_freq,
                         float scale) {
  for (int32_t i = 0; i < dim; i += 2) {
    const float angle = static_cast<float>(position) * inv_freq[i / 2];
    const float cos = std::cos(angle) * scale, sin = std::sin(angle) * scale;
    const float a = head[i], b = head[i + 1];
    head[i] = a * cos - b * sin;
    head[i + 1] = b * cos + a * sin;
  }
}

/// The table that extension(AQ_EXT_BLOCK_FORWARD) must return for an adapter `Class` that has the
/// function
///   void attention(const aq::ForwardCall& call) const;
template <typename Class>
const aq_block_forward* block_forward_of() {
  static constexpr aq_block_forward kTable{
      sizeof(aq_block_forward), 0,
      [](const aq_model* self, const aq_forward_args* args, aq_error* err) noexcept {
        return guard(err, [&] {
          const auto& adapter = static_cast<const Class&>(detail::ModelObject::of(self));
          adapter.attention(ForwardCall(args, adapter.describe().hidden_size));
        });
      },
      nullptr};
  return &kTable;
}

}  // namespace aq
