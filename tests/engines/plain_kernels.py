"""Products in plain torch for vLLM 0.32 on a CPU that it has no kernel for.

vLLM reads config.json, chooses the scheme of each module, creates the parameters, and loads the tensors of
a checkpoint into them. Then it chooses a kernel, and on most CPUs there is none for quantized experts.
install() replaces this choice: where vLLM finds no kernel, the weights are decoded after the definition of
their format, and multiplied by torch. Where it finds one, nothing changes.
"""
import importlib
from unittest import mock

import torch
from torch.nn.functional import linear, silu

replaced = set()  # what has run on plain torch since the last clear(): "linear maps", "experts"

LAYERS = "vllm.model_executor.layers"
SCHEMES = f"{LAYERS}.quantization.compressed_tensors.schemes.compressed_tensors_"
EXPERTS = f"{LAYERS}.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_"
GPTQ = f"{LAYERS}.quantization.auto_gptq"

E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def in_groups(codes, scales):
    """codes [..., rows, columns] times scales [..., rows, groups]."""
    groups = codes.float().unflatten(-1, (scales.shape[-1], -1))
    return (groups * scales.float().unsqueeze(-1)).flatten(-2)


def unpacked(words, bits, count):
    """`count` unsigned integers in the int32 words of the last dimension, a stream with the lowest bits first."""
    stream = (words.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32) & 1).flatten(-2)[..., :count * bits]
    return (stream.unflatten(-1, (count, bits)) << torch.arange(bits, dtype=torch.int32)).sum(-1)


def integers(words, scales, zero_points, bits):
    """words [..., rows, columns x bits / 32]; zero_points [..., rows x bits / 32 rounded up, groups], or None."""
    codes = unpacked(words, bits, words.shape[-1] * 32 // bits)
    if zero_points is None:
        return in_groups(codes - (1 << bits - 1), scales)
    zeros = unpacked(zero_points.mT, bits, codes.shape[-2]).mT
    return in_groups(codes - zeros.repeat_interleave(codes.shape[-1] // zeros.shape[-1], -1), scales)


def fp4(pairs):
    """The numbers in the bytes of the last dimension, the low four bits first."""
    return E2M1[torch.stack((pairs & 15, pairs >> 4), -1).flatten(-2).long()]


def power_of_two(scales):
    return torch.exp2(scales.float() - 127)


def mxfp4(pairs, scales):
    return in_groups(fp4(pairs), power_of_two(scales))


def mxfp8(values, scales):
    return in_groups(values, power_of_two(scales))


def nvfp4(pairs, scales, global_scales):
    """The weights are divided by global_scales [...]."""
    return in_groups(fp4(pairs), scales.float() / global_scales[..., None, None])


def rounded_to_int8(x):
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (torch.round(x.float() / scale) * scale).to(x.dtype)


def rounded_to_fp8(x):
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return ((x.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)


class PlainLinear:
    """In place of a kernel of linear maps; `weights` takes the layer and returns [rows, columns]."""

    def __init__(self, weights):
        self.weights = weights

    def input_quant_key(self):
        return None  # the inputs are not rounded

    def process_weights_after_loading(self, layer):
        layer.plain = self.weights(layer)
        replaced.add("linear maps")

    def apply_weights(self, layer, x, bias=None):
        return linear(x, layer.plain.to(x.dtype), bias)


def packed_linear(config, w_q_param_name, w_s_param_name, w_zp_param_name):
    """Integers, in compressed-tensors' layout or, transposed, in GPTQ's."""
    def weights(layer):
        words, scales = getattr(layer, w_q_param_name), getattr(layer, w_s_param_name)
        zeros = getattr(layer, w_zp_param_name).data if config.zero_points else None
        rows_first = (lambda t: t.data) if words.output_dim == 0 else (lambda t: t.data.mT)
        return integers(rows_first(words), rows_first(scales), zeros, config.weight_type.size_bits)
    return PlainLinear(weights)


class PlainExperts:
    """In place of a class of kernels of experts."""

    @staticmethod
    def is_monolithic():
        return False  # the routing is vLLM's


def run_experts(layer, x, topk_weights, topk_ids, rounded):
    assert layer.activation.value == "silu" and not layer.apply_router_weight_on_input
    gate_up, down = (w.to(x.dtype) for w in layer.plain)
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert in range(len(down)):
        tokens, slot = torch.where(topk_ids == expert)
        gate, up = linear(rounded(x[tokens]), gate_up[expert]).chunk(2, -1)
        y = linear(rounded(silu(gate) * up), down[expert])
        out.index_add_(0, tokens, y.float() * topk_weights[tokens, slot, None].float())
    return out.to(x.dtype)


def no_kernel(error):
    """Whether vLLM means this machine, and not the checkpoint."""
    return any(said in str(error) for said in (
        "MoE backend supports the deployment configuration", "Failed to find a kernel",
        "No MXFP8 MoE backends available", "No supported MXFP8 expert class",
        "Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported"))


def runs_here(chosen):
    """Whether what vLLM has chosen is there: a kernel, or a backend with its class of experts."""
    if not isinstance(chosen, tuple):
        return True
    from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
    from vllm.triton_utils import HAS_TRITON
    return chosen[1] is not None and (HAS_TRITON or not issubclass(chosen[1], TritonExperts))


def replace_choice(module, function, plain):
    """Where vLLM's `function` finds no kernel, plain(*arguments of the function) takes its place."""
    module = importlib.import_module(module)
    choose = getattr(module, function)

    def choice(*arguments, **keywords):
        try:
            chosen = choose(*arguments, **keywords)
        except (NotImplementedError, ValueError) as error:
            if not no_kernel(error):
                raise
            return plain(*arguments, **keywords)
        return chosen if runs_here(chosen) else plain(*arguments, **keywords)
    setattr(module, function, choice)


def replace_run(module, method, weights, rounded=lambda x: x):
    """The experts of vLLM's class `method` run on torch if PlainExperts was chosen. weights(method, layer,
    "w13" or "w2") returns [experts, rows, columns]."""
    method = getattr(importlib.import_module(module), method)
    process, apply = method.process_weights_after_loading, method.apply
    describe = method.get_fused_moe_quant_config

    def plain_process(self, layer):
        if self.experts_cls is not PlainExperts:
            return process(self, layer)
        layer.plain = tuple(weights(self, layer, name) for name in ("w13", "w2"))
        replaced.add("experts")

    def plain_apply(self, layer, x, topk_weights, topk_ids, *shared, **shared_by_name):
        if self.experts_cls is not PlainExperts:
            return apply(self, layer, x, topk_weights, topk_ids, *shared, **shared_by_name)
        return run_experts(layer, x, topk_weights, topk_ids, rounded)

    def plain_describe(self, layer):
        return None if self.experts_cls is PlainExperts else describe(self, layer)
    method.process_weights_after_loading, method.apply = plain_process, plain_apply
    method.get_fused_moe_quant_config = plain_describe


def install_linear():
    for module in (f"{SCHEMES}wNa16", GPTQ):
        replace_choice(module, "choose_mp_linear_kernel", lambda config: packed_linear)
    replace_choice(f"{SCHEMES}w8a16_fp8", "init_wfp8_a16_linear_kernel", lambda **_: PlainLinear(
        lambda layer: in_groups(layer.weight.T, layer.weight_scale)))  # vLLM has transposed it by then
    replace_choice(f"{SCHEMES}w4a4_mxfp4", "init_mxfp4_linear_kernel", lambda **_: PlainLinear(
        lambda layer: mxfp4(layer.weight, layer.weight_scale)))
    replace_choice(f"{SCHEMES}w8a8_mxfp8", "init_mxfp8_linear_kernel", lambda **_: PlainLinear(
        lambda layer: mxfp8(layer.weight, layer.weight_scale)))
    replace_choice(f"{SCHEMES}w4a4_nvfp4", "init_nvfp4_linear_kernel", lambda **_: PlainLinear(
        # vLLM has inverted the global scale by then
        lambda layer: nvfp4(layer.weight, layer.weight_scale, 1 / layer.weight_global_scale)))


def install_experts():
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
    from vllm.model_executor.layers.fused_moe.oracle.int8 import Int8MoeBackend
    from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
    from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
    from vllm.model_executor.layers.fused_moe.oracle.w4a8_int8 import W4A8Int8MoeBackend

    def instead_of(backend):
        return lambda *_, **__: (backend, PlainExperts)

    def tensor(layer, name):
        found = getattr(layer, name, None)
        return None if found is None else found.data

    def packed(method, layer, w):
        return integers(tensor(layer, f"{w}_weight_packed"), tensor(layer, f"{w}_weight_scale"),
                        tensor(layer, f"{w}_weight_zero_point"), method.num_bits)

    def gptq(method, layer, w):
        return integers(tensor(layer, f"{w}_qweight").mT, tensor(layer, f"{w}_scales").mT, None,
                        method.quant_config.weight_bits)

    def nvfp4_experts(_, layer, w):
        divisors = tensor(layer, f"{w}_weight_global_scale")
        divisors = divisors[:, 0] if w == "w13" else divisors  # vLLM takes that of gate_proj for up_proj
        return nvfp4(tensor(layer, f"{w}_weight_packed"), tensor(layer, f"{w}_weight_scale"), divisors)

    # Marlin, so that vLLM also checks what Marlin wants of the checkpoint
    for module, method, weights in ((f"{EXPERTS}wna16", "CompressedTensorsWNA16MoEMethod", packed),
                                    (GPTQ, "AutoGPTQMoEMethod", gptq)):
        replace_choice(module, "select_wna16_moe_backend", instead_of(WNA16MoEBackend.MARLIN))
        replace_run(module, method, weights)
    replace_choice(f"{EXPERTS}w4a4_nvfp4", "select_nvfp4_moe_backend", instead_of(NvFp4MoeBackend.MARLIN))
    replace_run(f"{EXPERTS}w4a4_nvfp4", "CompressedTensorsW4A4Nvfp4MoEMethod", nvfp4_experts)
    replace_choice(f"{EXPERTS}w8a8_fp8", "select_fp8_moe_backend", instead_of(Fp8MoeBackend.TRITON))
    replace_run(f"{EXPERTS}w8a8_fp8", "CompressedTensorsW8A8Fp8MoEMethod",
                lambda _, layer, w: in_groups(tensor(layer, f"{w}_weight"), tensor(layer, f"{w}_weight_scale")),
                rounded_to_fp8)
    replace_choice(f"{EXPERTS}w8a8_int8", "select_int8_moe_backend", instead_of(Int8MoeBackend.TRITON))
    replace_run(f"{EXPERTS}w8a8_int8", "CompressedTensorsW8A8Int8MoEMethod",
                lambda _, layer, w: in_groups(tensor(layer, f"{w}_weight"), tensor(layer, f"{w}_weight_scale")),
                rounded_to_int8)
    replace_choice(f"{EXPERTS}w8a8_mxfp8", "select_mxfp8_moe_backend", instead_of(Fp8MoeBackend.MARLIN))
    replace_run(f"{EXPERTS}w8a8_mxfp8", "CompressedTensorsW8A8Mxfp8MoEMethod",
                lambda _, layer, w: mxfp8(tensor(layer, f"{w}_weight"), tensor(layer, f"{w}_weight_scale")))
    # no product: this shows what the loader says to the file
    replace_choice(f"{EXPERTS}w4a8_int8", "select_w4a8_int8_moe_backend",
                   instead_of(W4A8Int8MoeBackend.CPU_INT4))
    install_mxfp4_experts()


def install_mxfp4_experts():
    """vLLM takes Marlin for mxfp4 without asking whether the machine has it."""
    module = f"{EXPERTS}w4a4_mxfp4"
    method = importlib.import_module(module).CompressedTensorsW4A4Mxfp4MoEMethod
    init = method.__init__

    def plain_init(self, moe):
        init(self, moe)
        if not self.experts_cls._supports_current_device():
            self.experts_cls = PlainExperts
    method.__init__ = plain_init
    replace_run(module, "CompressedTensorsW4A4Mxfp4MoEMethod", lambda _, layer, w: mxfp4(
        getattr(layer, f"{w}_weight_packed"), layer.get_parameter(f"{w}_weight_scale")))


def install_marlin_check():
    """Of GPTQ's layout vLLM asks on a CPU, too, whether Marlin has it, and then names fewer widths."""
    from vllm.model_executor.layers.quantization.utils import marlin_utils

    class Gpu:
        is_cpu = is_xpu = is_rocm = staticmethod(lambda: False)

    def verify(quant_type, group_size, has_zp=False):
        with mock.patch.object(marlin_utils, "current_platform", Gpu):
            good, message = marlin_utils._check_marlin_supported(quant_type, group_size, has_zp,
                                                                 device_capability=80)
        if not good:
            raise ValueError(message)
    importlib.import_module(GPTQ).verify_marlin_supported = verify


def install():
    install_marlin_check()
    install_linear()
    install_experts()
