"""Checkpoints with random weights of the families that have no small trained model in tests/models, with
options that llama.cpp has, too. See random_checkpoints.py."""
import json

import random_checkpoints
from random_checkpoints import MLA, ROPE, YARN, Case

# as in MLA, the sizes of the parts of a head differ; rows consist of blocks of 32 weights
LATENT = {**MLA, "kv_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "rms_norm_eps": 1e-6}

CASES = {
    "qwen3-moe": Case("qwen3_moe", {
        "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
        "moe_intermediate_size": 64, "intermediate_size": 96, "rope_parameters": ROPE}),
    "qwen3-moe-tied": Case("qwen3_moe", {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
        "moe_intermediate_size": 32, "num_key_value_heads": 4, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}, stacked=True),
    "gpt-oss": Case("gpt_oss", {
        "num_hidden_layers": 4, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 3,
        "intermediate_size": 64, "sliding_window": 40, "rope_parameters": {**YARN, "truncate": True}}),
    "gpt-oss-tied": Case("gpt_oss", {
        "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32,
        "sliding_window": 17, "tie_word_embeddings": True,
        "rope_parameters": {**YARN, "attention_factor": 1.3, "truncate": True}}),
    "granite-moe": Case("granitemoe", {
        "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 64, "embedding_multiplier": 3.0,
        "logits_scaling": 4.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1,
        "tie_word_embeddings": True}),
    "minimax-m2": Case("minimax_m2", {
        "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}}),
    "glm4-moe": Case("glm4_moe", {
        "head_dim": 32, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "use_qk_norm": True,
        "attention_bias": True, "intermediate_size": 96, "moe_intermediate_size": 64,
        "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}, mtp=True),
    "glm4-moe-plain": Case("glm4_moe", {
        "head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": 2, "norm_topk_prob": False, "intermediate_size": 96,
        "moe_intermediate_size": 32, "tie_word_embeddings": True,
        "rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, stacked=True),
    "deepseek-v2": Case("deepseek_v2", {
        **LATENT, "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
        "first_k_dense_replace": 1, "routed_scaling_factor": 4.0,
        "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}),
    "deepseek-v2-lite": Case("deepseek_v2", {
        **LATENT, "q_lora_rank": None, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
        "topk_method": "greedy", "first_k_dense_replace": 1, "tie_word_embeddings": True,
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9}}, stacked=True),
    "deepseek-v3": Case("deepseek_v3", {
        **LATENT, "n_shared_experts": 1, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}, mtp=True),
    "deepseek-v3-plain": Case("deepseek_v3", {
        **LATENT, "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2,
        "norm_topk_prob": False, "routed_scaling_factor": 0.8, "rope_parameters": YARN}),
    "glm4-moe-lite": Case("glm4_moe_lite", {
        **LATENT, "mlp_layer_types": ["dense", "sparse", "sparse"], "n_group": 1, "topk_group": 1,
        "n_shared_experts": 1, "num_experts_per_tok": 3, "routed_scaling_factor": 1.3, "rope_parameters": ROPE}),
    "ernie4-5-moe": Case("ernie4_5_moe", {
        "moe_num_experts": 8, "moe_k": 3, "moe_num_shared_experts": 2, "intermediate_size": 96,
        "moe_intermediate_size": 32, "moe_layer_start_index": 1}, mtp=True),
    "ernie4-5-moe-unshared": Case("ernie4_5_moe", {
        "head_dim": 32, "moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 0, "intermediate_size": 96,
        "moe_intermediate_size": 64, "moe_layer_start_index": 0, "tie_word_embeddings": True}),
}


WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPLIT = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{WORD}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{WORD}|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# as in the published file, CR and LF are not escaped
DEEPSEEK_V3 = (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
               r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^R\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
               r" ?[\p{P}\p{S}]+[R]*|\s*[R]+|\s+(?!\S)|\s+".replace("R", "\r\n"))
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
# the steps before the tokenizer of a family, if they are not those of tests/models/olmoe-tiny
PRE_TOKENIZERS = {
    "gpt-oss": [{"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                {**BYTES, "use_regex": False}],
    "granite-moe": [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}],
    "deepseek-v3": [*({"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False}
                      for r in DEEPSEEK_V3), {**BYTES, "use_regex": False}],
}


def write(name, folder):
    """Writes the checkpoint `name` to `folder`, which must not exist."""
    random_checkpoints.write(CASES[name], folder)
    if name not in PRE_TOKENIZERS:
        return
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[name]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
