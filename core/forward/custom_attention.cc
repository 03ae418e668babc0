#include "forward/custom_attention.h"

#include <ATen/core/grad_mode.h>
#include <fmt/ranges.h>

#include <cmath>
#include <list>
#include <new>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "plugin/call.h"
#include "plugin/dl_tensor.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// A view of a plugin's compact float32 CPU tensor, valid during the call. Throws an Error if it is
/// not such a tensor or does not have `dims` dimensions.
at::Tensor borrow(const DLTensor* t, const char* name, int32_t dims) {
  if (t == nullptr || t->ndim != dims || t->data == nullptr || t->device.device_type != kDLCPU ||
      t->dtype.code != kDLFloat || t->dtype.bits != 32 || t->dtype.lanes != 1)
    fail("{} is no float32 tensor of {} dimensions on the CPU", name, dims);
  const at::IntArrayRef shape(t->shape, static_cast<std::size_t>(dims));
  int64_t stride = 1;
  for (int32_t i = dims - 1; i >= 0; i--) {
    if (t->strides != nullptr && t->shape[i] != 1 && t->strides[i] != stride)
      fail("{} is not compact", name);
    stride *= t->shape[i];
  }
  return at::from_blob(static_cast<char*>(t->data) + t->byte_offset, shape, at::kFloat);
}

void check_shape(const at::Tensor& t, const char* name, at::IntArrayRef expected) {
  if (t.sizes() != expected)
    fail("{} is [{}], expected [{}]", name, fmt::join(t.sizes(), ", "), fmt::join(expected, ", "));
}

}  // namespace

/// One call of the adapter's attention, with the host's functions that it may use.
struct CustomAttentionCall {
  const CustomAttention& attention;
  const CustomAttention::FindLinear& find;
  const LinearTap& tap;
  int64_t batch, length;
  std::list<at::Tensor> memory;

  static CustomAttentionCall& of(const aq_forward_ctx* ctx) {
    return *static_cast<CustomAttentionCall*>(ctx->host_data);
  }

  /// Turns whatever is thrown into *err, so that no exception passes through the plugin. An Error
  /// means that the plugin's request was wrong; any other exception is not the plugin's fault.
  template <typename Body>
  static aq_status report_exceptions(aq_error* err, Body body) noexcept {
    const auto report = [err](aq_status code, std::string_view text) {
      err->message[text.copy(err->message, sizeof err->message - 1)] = '\0';
      return err->code = code;
    };
    try {
      body();
      return AQ_OK;
    } catch (const Error& e) {
      return report(AQ_INVALID_ARGUMENT, e.what());
    } catch (const std::bad_alloc&) {
      return report(AQ_OUT_OF_MEMORY, "out of memory");
    } catch (const c10::OutOfMemoryError& e) {
      return report(AQ_OUT_OF_MEMORY, e.what_without_backtrace());
    } catch (const std::exception& e) {
      return report(AQ_INTERNAL, e.what());
    } catch (...) {
      return report(AQ_INTERNAL, "an exception of unknown kind");
    }
  }

  void linear(uint32_t index, const DLTensor* x_in, DLTensor* y_out) const {
    const std::vector<Module>& modules = attention.model_.modules();
    if (index >= modules.size() || modules[index].key.layer != attention.layer_)
      fail("linear: module {} is not one of layer {}", index, attention.layer_);
    const Module& module = modules[index];
    const at::Tensor x = borrow(x_in, "linear: x", 2);
    at::Tensor y = borrow(y_out, "linear: y", 2);
    check_shape(x, "linear: x", {batch * length, module.in_features});
    check_shape(y, "linear: y", {batch * length, module.out_features});
    const Linear& map = find(module);
    const at::Tensor input = x.to(map.weight.options());
    if (tap) tap(module, input);
    y.copy_(map(input));
  }

  void attend(const DLTensor* q_in, const DLTensor* k_in, const DLTensor* v_in, float scale,
              DLTensor* y_out) const {
    const at::Tensor q = borrow(q_in, "attend: q", 3), k = borrow(k_in, "attend: k", 3),
                     v = borrow(v_in, "attend: v", 3);
    at::Tensor y = borrow(y_out, "attend: y", 3);
    const int64_t n = batch * length, heads = q.size(1), kv_heads = k.size(1);
    check_shape(q, "attend: q", {n, heads, q.size(2)});
    check_shape(k, "attend: k", {n, kv_heads, q.size(2)});
    check_shape(v, "attend: v", {n, kv_heads, v.size(2)});
    check_shape(y, "attend: y", {n, heads, v.size(2)});
    if (heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || !std::isfinite(scale))
      fail("attend: {} heads, {} for keys and values, scale {}", heads, kv_heads, scale);
    const auto split = [&](const at::Tensor& t) {
      const at::Tensor s = t.unflatten(0, {batch, length}).transpose(1, 2);
      return t.size(1) == heads ? s : s.repeat_interleave(heads / kv_heads, 1);
    };
    const at::Tensor context = at::scaled_dot_product_attention(
        split(q), split(k), split(v), std::nullopt, 0.0, true, static_cast<double>(scale));
    y.copy_(context.transpose(1, 2).flatten(0, 1));
  }

  void* scratch(uint64_t bytes) noexcept {
    try {
      memory.push_back(at::empty({static_cast<int64_t>(bytes)}, at::kByte));
      return memory.back().data_ptr();
    } catch (...) {
      return nullptr;
    }
  }

  aq_forward_ctx context();
};

aq_forward_ctx CustomAttentionCall::context() {
  aq_forward_ctx ctx{};
  ctx.struct_size = sizeof ctx;
  ctx.layer = attention.layer_;
  ctx.host_data = this;
  ctx.linear = [](const aq_forward_ctx* c, uint32_t module, const DLTensor* x, DLTensor* y,
                  aq_error* err) {
    return report_exceptions(err, [&] { of(c).linear(module, x, y); });
  };
  ctx.attend = [](const aq_forward_ctx* c, const DLTensor* q, const DLTensor* k, const DLTensor* v,
                  float scale, DLTensor* y, aq_error* err) {
    return report_exceptions(err, [&] { of(c).attend(q, k, v, scale, y); });
  };
  ctx.tensor = [](const aq_forward_ctx* c, const aq_tensor_key* key, DLTensor* out, aq_error* err) {
    return report_exceptions(err, [&] {
      const auto& tensors = of(c).attention.tensors_;
      const auto it = key->layer == c->layer ? tensors.find({key->role, key->expert, key->part})
                                             : tensors.end();
      if (it == tensors.end())
        fail("tensor: layer {} has none of role {}, expert {}, part {}", key->layer, key->role,
             key->expert, key->part);
      *out = {};
      out->data = it->second.data_ptr();
      out->device = {kDLCPU, 0};
      out->ndim = static_cast<int32_t>(it->second.dim());
      out->dtype = kDlF32;
      out->shape = const_cast<int64_t*>(it->second.sizes().data());  // DLTensor's is not const
    });
  };
  ctx.scratch = [](const aq_forward_ctx* c, uint64_t bytes) { return of(c).scratch(bytes); };
  return ctx;
}

CustomAttention::CustomAttention(const Source& source, const Model& model, int32_t layer)
    : model_(model), layer_(layer) {
  const aq_model* raw = model.raw();
  if (AQ_HAS(raw, get_extension))
    table_ = static_cast<const aq_block_forward*>(call_or_fail(
        "get_extension", [&] { return raw->get_extension(raw, AQ_EXT_BLOCK_FORWARD); }));
  if (table_ == nullptr || !AQ_HAS(table_, attention))
    fail(
        "model \"{}\", layer {}: attention that only the adapter knows, but it has no extension {} "
        "that runs it",
        model.id(), layer, AQ_EXT_BLOCK_FORWARD);
  for (const TensorInfo& info : source.tensors()) {
    const auto key = model.find_key(info.name);
    if (!key || key->layer != layer || model.find_module({layer, key->role, key->expert, 0}))
      continue;
    tensors_[{key->role, key->expert, key->part}] =
        read_tensor(source, {info.name, -1, 0, 1, 0, false}, info.shape);
  }
}

at::Tensor CustomAttention::operator()(const at::Tensor& a, const FindLinear& find,
                                       const LinearTap& tap) const {
  const at::NoGradGuard no_grad;  // the plugin's part has no gradient
  const int64_t batch = a.size(0), length = a.size(1), n = batch * length;
  CustomAttentionCall call{*this, find, tap, batch, length, {}};
  const aq_forward_ctx ctx = call.context();
  const at::Tensor x = a.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor y = at::full(a.sizes(), NAN, at::kFloat);
  const at::Tensor positions = at::arange(length, at::kInt).repeat({batch});
  const at::Tensor begins = at::arange(0, n + 1, length, at::kInt);
  DlTensor dl_x(x.data_ptr(), kDlF32, {n, a.size(2)}), dl_y(y.data_ptr(), kDlF32, {n, a.size(2)});
  DlTensor dl_positions(positions.data_ptr(), kDlI32, {n});
  DlTensor dl_begins(begins.data_ptr(), kDlI32, {batch + 1});
  const aq_forward_args args{sizeof args,     0,          dl_x.get(), dl_positions.get(),
                             dl_begins.get(), dl_y.get(), &ctx};
  aq_error error;
  const aq_status status = call_plugin(
      error, [&](aq_error* err) { return table_->attention(model_.raw(), &args, err); });
  if (status != AQ_OK)
    fail("model \"{}\", layer {}: attention: {}", model_.id(), layer_, error_text(status, error));
  if (!at::isfinite(y).all().item<bool>())
    fail("model \"{}\", layer {}: attention left its output unfilled, or not finite", model_.id(),
         layer_);
  return y.to(a.options());
}

}  // namespace aqhost
