"""Writes small checkpoints with random weights of the families that transformers has, and computes what
transformers makes of them.

    python random_checkpoints.py OUT [CASE...]

writes every case, or those that are named, to OUT/CASE, and to OUT/CASE.reference.safetensors the ids, the
logits and the chosen experts of a window of 96 tokens and of one of 1024. The same call always writes the
same bytes.
"""
import dataclasses
import json
import pathlib
import re
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

TOKENIZER = pathlib.Path(__file__).resolve().parent.parent / "models/olmoe-tiny"
VOCABULARY = 2048
WINDOWS = (96, 1024)

BASE = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
ROPE = {"rope_type": "default", "rope_theta": 3000.0}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 256}
# 12 experts in 3 groups; the sizes of the parts of a head differ, so that none can stand for another
MLA = {"num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 64, "qk_nope_head_dim": 16,
       "qk_rope_head_dim": 8, "v_head_dim": 24, "n_routed_experts": 12, "num_experts_per_tok": 4,
       "intermediate_size": 96, "moe_intermediate_size": 32}
DELTA = {"num_hidden_layers": 4, "head_dim": 32, "linear_key_head_dim": 16, "linear_value_head_dim": 24,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 8,
         "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
          "num_position_embeddings": 16, "patch_size": 4}


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint. `options` are those of the configuration class of `model_type`, beside BASE.

    stacked: the experts of a layer are one tensor, as transformers has them in memory.
    text: the options of text_config, for a model with a vision tower.
    mtp: a block for multi-token prediction is added under the names of the published checkpoints.
    spelling: the changes of config.json after it is written; the value None removes a key.
    read_as: the changes by which transformers understands config.json after `spelling`.
    """
    model_type: str
    options: dict
    stacked: bool = False
    text: dict | None = None
    mtp: bool = False
    spelling: dict = dataclasses.field(default_factory=dict)
    read_as: dict = dataclasses.field(default_factory=dict)


CASES = {
    "qwen3_moe": Case("qwen3_moe", {
        "head_dim": 24, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
        "moe_intermediate_size": 32, "intermediate_size": 96, "mlp_only_layers": [1],
        "rope_parameters": ROPE},
        spelling={"num_experts": 8, "num_local_experts": None, "rope_parameters": None,
                  "rope_theta": 3000.0}),
    "qwen3_moe_window": Case("qwen3_moe", {
        "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": False,
        "moe_intermediate_size": 32, "intermediate_size": 96, "decoder_sparse_step": 2, "attention_bias": True,
        "use_sliding_window": True, "sliding_window": 40, "max_window_layers": 2, "tie_word_embeddings": True,
        "rope_parameters": YARN}, stacked=True),
    "deepseek_v3": Case("deepseek_v3", {
        **MLA, "n_shared_experts": 2, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5, "attention_bias": True, "rms_norm_eps": 1e-3,
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9}}, mtp=True),
    "deepseek_v3_plain": Case("deepseek_v3", {
        **MLA, "q_lora_rank": None, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 0, "norm_topk_prob": False, "routed_scaling_factor": 0.8,
        "rope_interleave": False, "tie_word_embeddings": True}, stacked=True),
    "kimi_k2": Case("deepseek_v3", {
        **MLA, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.827,
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        spelling={"model_type": "kimi_k2", "rope_parameters": None, "rope_theta": 5000.0, "dtype": None,
                  "torch_dtype": "float32", "head_dim": None, "scoring_func": "sigmoid",
                  "topk_method": "noaux_tc",
                  "rope_scaling": {**{k: v for k, v in YARN.items() if k not in ("rope_type", "rope_theta")},
                                   "type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}},
        read_as={"model_type": "deepseek_v3"}),
    "glm4_moe_lite": Case("glm4_moe_lite", {
        **MLA, "mlp_layer_types": ["dense", "sparse", "dense"], "n_group": 3, "topk_group": 2,
        "num_experts_per_tok": 3, "routed_scaling_factor": 1.3, "rope_parameters": ROPE}, mtp=True),
    "deepseek_v2": Case("deepseek_v2", {
        **MLA, "n_shared_experts": 2, "n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy",
        "first_k_dense_replace": 1, "routed_scaling_factor": 16.0,
        "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.8}}),
    "deepseek_v2_lite": Case("deepseek_v2", {
        **MLA, "q_lora_rank": None, "first_k_dense_replace": 1, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": True}, stacked=True),
    "glm4_moe": Case("glm4_moe", {
        "head_dim": 32, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 3,
        "topk_group": 2, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "use_qk_norm": True,
        "attention_bias": True, "intermediate_size": 96, "moe_intermediate_size": 32,
        "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}, mtp=True,
        spelling={"rope_parameters": None, "rope_theta": 3000.0, "partial_rotary_factor": 0.25}),
    "glm4_moe_air": Case("glm4_moe", {
        "head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2,
        "first_k_dense_replace": 0, "norm_topk_prob": False, "intermediate_size": 96,
        "moe_intermediate_size": 32, "tie_word_embeddings": True,
        "rope_parameters": {**YARN, "partial_rotary_factor": 0.75}}, stacked=True),
    "gpt_oss": Case("gpt_oss", {
        "num_hidden_layers": 4, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 3,
        "intermediate_size": 64, "sliding_window": 40,
        "rope_parameters": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}},
        spelling={"swiglu_limit": 7.0, "experts_per_token": 3}),
    "gpt_oss_layers": Case("gpt_oss", {
        "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32,
        "sliding_window": 17, "attention_bias": False, "tie_word_embeddings": True,
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 2000.0}}),
    "qwen3_next": Case("qwen3_next", {
        **DELTA, "intermediate_size": 96, "full_attention_interval": 2, "rope_parameters": ROPE}, mtp=True,
        spelling={"layer_types": None, "full_attention_interval": 2, "rope_parameters": None,
                  "rope_theta": 3000.0}),
    "qwen3_next_dense": Case("qwen3_next", {
        **DELTA, "linear_num_value_heads": 2, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 3,
        "intermediate_size": 96, "decoder_sparse_step": 2, "norm_topk_prob": False, "attention_bias": True,
        "mlp_only_layers": [3], "tie_word_embeddings": True,
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
        "rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, stacked=True),
    "qwen3_5_moe": Case("qwen3_5_moe", {"vision_config": VISION}, text={
        **DELTA, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1], "mrope_interleaved": True}}, stacked=True, mtp=True),
    "qwen3_5_moe_per_expert": Case("qwen3_5_moe", {"vision_config": VISION}, text={
        **DELTA, "attention_bias": True,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]}),
    "qwen3_5_moe_text": Case("qwen3_5_moe_text", {
        **DELTA, "linear_num_key_heads": 4, "tie_word_embeddings": True}),
    "minimax_m2": Case("minimax_m2", {
        "head_dim": 24, "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}},
        # the published config.json has rotary_dim, which transformers 5.17 does not read
        spelling={"rope_parameters": None, "rope_theta": 5000.0, "rotary_dim": 12, "use_qk_norm": True,
                  "qk_norm_type": "per_layer", "scoring_func": "sigmoid", "use_routing_bias": True},
        read_as={"partial_rotary_factor": 0.5}),
    "minimax_m2_stacked": Case("minimax_m2", {
        "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32,
        "tie_word_embeddings": True}, stacked=True),
    "granitemoe": Case("granitemoe", {
        "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32, "embedding_multiplier": 3.0,
        "logits_scaling": 4.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1,
        "tie_word_embeddings": True}),
    "granitemoe_stacked": Case("granitemoe", {
        "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64, "attention_bias": True,
        "num_key_value_heads": None, "attention_multiplier": 0.25}, stacked=True),
    "ernie4_5_moe": Case("ernie4_5_moe", {
        "moe_num_experts": 8, "moe_k": 3, "moe_num_shared_experts": 2, "intermediate_size": 96,
        "moe_intermediate_size": 32}, mtp=True),
    "ernie4_5_moe_bias": Case("ernie4_5_moe", {
        "num_hidden_layers": 4, "head_dim": 24, "moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 2, "moe_norm_min": 0.4,
        "intermediate_size": 96, "moe_intermediate_size": 32, "use_bias": True, "tie_word_embeddings": True}),
}


def model_class(case):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    return AutoModelForImageTextToText if case.text else AutoModelForCausalLM


def configuration(case):
    from transformers import AutoConfig
    if case.text is None:
        return AutoConfig.for_model(case.model_type, **{**BASE, **case.options})
    return AutoConfig.for_model(case.model_type, **case.options, text_config={**BASE, **case.text})


def randomize(tensors, model_type, generator):
    """Makes weights so large that every detail of the computation affects the logits."""
    added_to_one = model_type.startswith(("qwen3_next", "qwen3_5"))
    for name, tensor in sorted(tensors.items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("norm.weight") or "norm" in name.split(".")[-2]:
            one = 0 if added_to_one and "linear_attn" not in name else 1
            noise = one * (not name.endswith("bias")) + 0.2 * noise
        elif name.endswith("e_score_correction_bias"):
            noise *= 0.04 if model_type == "ernie4_5_moe" else 0.3
        elif name.endswith("A_log"):
            noise -= 1  # some heads remember hundreds of tokens, others few
        elif name.endswith("bias"):
            noise *= 0.3
        elif model_type == "gpt_oss" and ".experts." in name:
            noise *= 1.5 / tensor.shape[-2] ** 0.5  # [experts, in, out]
        elif "conv1d" in name:
            noise *= 0.5
        elif tensor.dim() > 1 and "embed_tokens" not in name:
            noise *= 1.3 / tensor.shape[-1] ** 0.5
        tensor.copy_(noise)


def multi_token_prediction(model_type, config, tensors):
    """Returns {name: shape} of the block that the published checkpoints have beside the layers."""
    size = config.get("text_config", config)["hidden_size"]
    layers = config.get("text_config", config)["num_hidden_layers"]
    last = re.compile(rf"model\.(language_model\.)?layers\.{layers - 1}\.(.*)")
    layer = {match[2]: tensors[name].shape for name in tensors if (match := last.fullmatch(name))}
    if model_type.startswith("qwen"):
        shapes = {f"mtp.layers.0.{name}": shape for name, shape in layer.items()}
        return {**shapes, "mtp.fc.weight": [size, 2 * size], "mtp.norm.weight": [size],
                "mtp.pre_fc_norm_embedding.weight": [size], "mtp.pre_fc_norm_hidden.weight": [size]}
    if model_type == "ernie4_5_moe":
        shapes = {f"model.mtp_block.0.{name}": shape for name, shape in layer.items()}
        return {**shapes, "model.mtp_linear_proj.0.weight": [size, 2 * size],
                "model.mtp_emb_norm.0.weight": [size], "model.mtp_hidden_norm.0.weight": [size]}
    shapes = {**layer, "eh_proj.weight": [size, 2 * size], "enorm.weight": [size], "hnorm.weight": [size],
              "embed_tokens.weight": [VOCABULARY, size], "shared_head.norm.weight": [size],
              "shared_head.head.weight": [VOCABULARY, size]}
    return {f"model.layers.{layers}.{name}": shape for name, shape in shapes.items()}


def never_run(name, case):
    """Whether a tensor belongs to a part of the checkpoint that is no layer of the language model."""
    layers = (case.text or case.options).get("num_hidden_layers", BASE["num_hidden_layers"])
    return "mtp" in name or ".visual." in name or f".layers.{layers}." in name


def write(case, folder, seed=0):
    """Writes the checkpoint `case` to `folder`, which must not exist."""
    generator = torch.Generator().manual_seed(seed)
    model = model_class(case).from_config(configuration(case), dtype=torch.float32)
    with torch.no_grad():
        randomize(model.state_dict(), case.model_type, generator)
    folder = pathlib.Path(folder)
    model.save_pretrained(folder, save_original_format=not case.stacked)
    config = json.loads((folder / "config.json").read_text())
    if case.mtp:
        tensors = load_file(folder / "model.safetensors")
        shapes = multi_token_prediction(case.model_type, config, tensors)
        for name, shape in sorted(shapes.items()):
            tensors[name] = 0.1 * torch.randn(shape, generator=generator)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if case.spelling:
        config = {**config, **case.spelling}
        config = {key: value for key, value in config.items() if case.spelling.get(key, 0) is not None}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder)


def load(case, folder, experts="eager"):
    """Returns the model of a checkpoint, or of an export of it, as transformers runs it in float32.
    `experts` is how it runs them; None is its default, and the only way for those that it has unpacked."""
    from transformers import AutoConfig
    stored = {**json.loads((pathlib.Path(folder) / "config.json").read_text()), **case.read_as}
    config = type(AutoConfig.for_model(stored["model_type"])).from_dict(stored)
    return model_class(case).from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager",
        experts_implementation=experts).eval()


class Choices:
    """Collects the experts that the routers of a model choose, while it is entered."""

    def __init__(self, model):
        self.routes, self.close_calls = {}, 0
        self.routers = {name: module for name, module in model.named_modules()
                        if type(module).__name__.lower().endswith("router")}

    def __enter__(self):
        self.hooks = [module.register_forward_hook(lambda *a, name=name: self.record(name, *a))
                      for name, module in self.routers.items()]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def chosen(self, output):
        return next(t for t in output if not t.is_floating_point())

    def record(self, name, router, inputs, output):
        ids = self.chosen(output)
        layer = int(re.search(r"\.layers\.(\d+)\.", name)[1])
        self.routes[layer] = ids.to(torch.int32)
        x = inputs[0]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        moved = self.chosen(router.forward(x * (1 + 3e-5 * noise), *inputs[1:]))
        self.close_calls += (moved.sort(-1)[0] != ids.sort(-1)[0]).any(-1).sum().item()


def reference(model, tokens, seed=0):
    """Returns (ids, logits [tokens, vocabulary], {layer: chosen experts [tokens, top_k]}) of a window.
    The ids are such that no router of the model makes a choice that rounding errors could change."""
    for attempt in range(100):
        generator = torch.Generator().manual_seed(1000 * seed + attempt)
        ids = torch.randint(2, VOCABULARY, (1, tokens), generator=generator)
        with torch.no_grad(), Choices(model) as choices:
            logits = model(ids).logits[0]
        if choices.close_calls == 0:
            return ids[0], logits, choices.routes
    raise ValueError(f"every one of 100 windows of {tokens} tokens has choices that are too close")


def main(out, names):
    for name in names or CASES:
        folder = pathlib.Path(out) / name
        write(CASES[name], folder)
        model = load(CASES[name], folder)
        tensors = {}
        for tokens in WINDOWS:
            ids, logits, routes = reference(model, tokens)
            tensors |= {f"ids.{tokens}": ids, f"logits.{tokens}": logits.contiguous()}
            tensors |= {f"routes.{layer}.{tokens}": t.contiguous() for layer, t in routes.items()}
        save_file(tensors, pathlib.Path(out) / f"{name}.reference.safetensors")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(CASES):
        sys.exit(f"usage: random_checkpoints.py OUT [CASE...], with cases of {', '.join(CASES)}")
    main(sys.argv[1], sys.argv[2:])
