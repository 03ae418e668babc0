"""Tests that every model plugin holds to the rules of aq-check, on small models of transformers with random
weights. The families of tests/models are checked without transformers (tests/plugin, models_test.cc).

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates.
"""
import os
import pathlib
import subprocess
import tempfile
import unittest

import torch
import transformers

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])

BASE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
        "max_position_embeddings": 64, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2}
EXPERTS = {"moe_intermediate_size": 16, "head_dim": 8}
LATENT = {**EXPERTS, "num_key_value_heads": 4, "kv_lora_rank": 12, "q_lora_rank": 20, "qk_nope_head_dim": 8,
          "qk_rope_head_dim": 4, "v_head_dim": 10, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 4,
          "topk_group": 2, "first_k_dense_replace": 1}
DELTA = {**EXPERTS, "num_experts": 6, "shared_expert_intermediate_size": 12, "linear_num_value_heads": 4,
         "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
         "layer_types": ["linear_attention", "full_attention"]}
FAMILIES = {  # the plugin, the class of transformers without "Config" and "ForCausalLM", its options
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "num_experts": 6, "mlp_only_layers": [1]}),
    "qwen3_next": ("Qwen3Next", DELTA),
    "qwen3_5_moe": ("Qwen3_5Moe", DELTA),
    "deepseek_v2": ("DeepseekV2", {**LATENT, "topk_method": "group_limited_greedy"}),
    "deepseek_v3": ("DeepseekV3", LATENT),
    "glm4_moe": ("Glm4Moe", {**EXPERTS, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2,
                             "topk_group": 1, "first_k_dense_replace": 1, "use_qk_norm": True}),
    "gpt_oss": ("GptOss", {"head_dim": 8, "num_local_experts": 6, "sliding_window": 9}),
    "minimax_m2": ("MiniMaxM2", {"head_dim": 8, "num_local_experts": 6}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 6, "embedding_multiplier": 2.0, "logits_scaling": 4.0,
                                  "residual_multiplier": 0.5, "attention_multiplier": 0.1}),
    "ernie4_5_moe": ("Ernie4_5_Moe", {**EXPERTS, "moe_num_experts": 6, "moe_k": 2, "moe_num_shared_experts": 1,
                                      "moe_layer_start_index": 1}),
}


class Families(unittest.TestCase):
    def check(self, plugin):
        name, options = FAMILIES[plugin]
        config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config(**{**BASE, **options}))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            done = subprocess.run([BUILD / "bin/aq-check", BUILD / f"plugins/{plugin}.so", "--model", folder],
                                  capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        lines = done.stdout.splitlines()
        self.assertGreater(len(lines), 14)
        self.assertEqual([l for l in lines if not l.startswith("holds ")], [])

    def test_every_plugin_is_checked_here_or_with_a_model_of_tests_models(self):
        plugins = {p.name for p in (TESTS.parent / "plugins/models").iterdir() if p.is_dir()}
        stored = {p.name.removesuffix("-tiny").replace("-", "_") for p in (TESTS / "models").glob("*-tiny")}
        self.assertEqual(plugins, stored | set(FAMILIES))


for plugin_id in FAMILIES:
    setattr(Families, "test_" + plugin_id, lambda self, plugin=plugin_id: self.check(plugin))


if __name__ == "__main__":
    unittest.main()
