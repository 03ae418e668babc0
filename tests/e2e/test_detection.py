"""Tests of how the family of a checkpoint is detected, of what `inspect` shows of an unknown model, and of
options of config.json that are refused.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import shutil
import unittest

from test_cli import TESTS, WorkFolder

FAMILIES = {"olmoe-tiny": "olmoe", "qwen2-moe-tiny": "qwen2_moe", "mixtral-tiny": "mixtral",
            "deepseek-moe-tiny": "deepseek_moe"}
NAMES = {"olmoe": "olmoe", "olmo": "olmoe", "qwen2_moe": "qwen2_moe", "qwen": "qwen2_moe",
         "qwen2moe": "qwen2_moe", "mixtral": "mixtral", "deepseek_moe": "deepseek_moe",
         "deepseek": "deepseek_moe"}
EXPERTS = {"num_hidden_layers": 4, "hidden_size": 64, "num_experts_per_tok": 2}


ROPE = {"rope_theta": 10000.0, "factor": 2.0}
REFUSED_BY_ALL = [
    {"hidden_act": "relu"}, {"mlp_bias": True}, {"partial_rotary_factor": 0.5}, {"use_qk_norm": True},
    {"kv_lora_rank": 64}, {"final_logit_softcapping": 30.0}, {"num_experts_per_tok": 99},
    {"rms_norm_eps": "small"}, {"num_key_value_heads": 3}, {"rope_theta": -1.0},
    {"rope_scaling": {"type": "longrope", "factor": 2.0}}, {"rope_scaling": {"type": "linear"}},
    {"rope_parameters": {"rope_type": "mrope", **ROPE}},
    {"rope_parameters": {"full_attention": {"rope_type": "linear", **ROPE}}},
    {"rope_parameters": {"rope_type": "linear", "partial_rotary_factor": 0.5, **ROPE}},
]
REFUSED = {
    "olmoe-tiny": [{"clip_qkv": -1.0}, {"clip_qkv": 0}, {"sliding_window": 64}, {"attention_bias": True},
                   {"layer_types": ["sliding_attention"] * 3}, {"norm_topk_prob": "yes"}],
    "qwen2-moe-tiny": [{"layer_types": ["sliding_attention"] * 3}, {"layer_types": ["full_attention"]},
                       {"layer_types": ["linear_attention"] * 3}, {"attention_bias": True},
                       {"use_sliding_window": True, "sliding_window": None},
                       {"decoder_sparse_step": 0}, {"mlp_only_layers": "0"}],
    "mixtral-tiny": [{"norm_topk_prob": False}, {"sliding_window": 0}, {"attention_bias": True}],
    "deepseek-moe-tiny": [{"scoring_func": "tanh"}, {"topk_method": "group_limited_greedy"},
                          {"n_group": 8}, {"moe_layer_freq": [1, 1, 1, 1]}, {"sliding_window": 64},
                          {"attention_bias": True}, {"routed_scaling_factor": "big"}],
}
# the word that the message contains, if it is not the last key of the change
NAMED = {"rope_parameters": "rope", "rope_scaling": "rope", "attention_bias": "_proj.bias"}


class Refusals(WorkFolder):
    def test_an_option_that_is_set_and_not_supported_is_named(self):
        for name, own in REFUSED.items():
            config = json.loads((TESTS / "models" / name / "config.json").read_text())
            shutil.copytree(TESTS / "models" / name, self.work / name)
            shared = REFUSED_BY_ALL if name == "mixtral-tiny" else [{"mlp_bias": True}]  # the code is shared
            for change in [*shared, *own]:
                with self.subTest(name, change=change):
                    (self.work / name / "config.json").write_text(json.dumps({**config, **change}))
                    key = list(change)[-1]
                    self.fails(1, NAMED.get(key, key), "plan", "--model", self.work / name)


class Detection(WorkFolder):
    def model(self, name, **changes):
        """Copies a small model and changes config.json; the value None removes a key."""
        target = self.work / "model"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(TESTS / "models" / name, target)
        config = {**json.loads((target / "config.json").read_text()), **changes}
        config = {k: v for k, v in config.items() if v is not None}
        (target / "config.json").write_text(json.dumps(config))
        return target

    def inspect(self, model, *more):
        return json.loads(self.ok("inspect", "--model", model, "--json", *more))

    def test_model_type_then_architectures_then_structure(self):
        for name, family in FAMILIES.items():
            with self.subTest(name):
                shown = self.inspect(self.model(name))
                self.assertEqual((shown["family"], shown["score"]), (family, 100))
                self.assertIn("model_type", shown["why"])
                shown = self.inspect(self.model(name, model_type=None))
                self.assertEqual((shown["family"], shown["score"]), (family, 90))
                self.assertIn("architectures", shown["why"])
                shown = self.inspect(self.model(name, model_type="tuned"))
                self.assertEqual(shown["family"], family)
                given = {} if name != "olmoe-tiny" else {"clip_qkv": 100.0}
                shown = self.inspect(self.model(name, model_type=None, architectures=None, **given))
                self.assertEqual((shown["family"], shown["score"]), (family, 50))
                self.assertIn("experts", shown["why"])

    def test_each_family_has_several_names(self):
        for given, family in NAMES.items():
            name = next(n for n, f in FAMILIES.items() if f == family)
            shown = self.inspect(self.model(name, model_type="x", architectures=["X"]), "--model-type", given)
            self.assertEqual((shown["family"], shown["why"]), (family, "chosen by --model-type"))
        self.fails(1, 'did you mean "mixtral"', "inspect", "--model", TESTS / "models/mixtral-tiny",
                   "--model-type", "mixtrl")

    def unknown(self, kind, **config):
        config = {"model_type": None, "architectures": None, **EXPERTS, **config}
        target = self.model("olmoe-tiny")
        (target / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        shown = self.inspect(target)
        self.assertEqual(shown["family"], kind)
        self.assertIn("adapter plugin", shown["advice"])
        text = self.ok("inspect", "--model", target)
        self.assertIn(kind, text)
        self.assertIn("adapter plugin", text)
        self.fails(1, kind, "plan", "--model", target)
        return shown

    def test_an_unknown_model_with_experts_is_a_generic_moe(self):
        shown = self.unknown("generic_moe", model_type="glm9_moe", architectures=["Glm9MoeForCausalLM"],
                            n_routed_experts=128, n_shared_experts=1, first_k_dense_replace=1,
                            moe_intermediate_size=32)
        self.assertEqual(shown["found"]["n_routed_experts"], 128)
        self.assertEqual(shown["found"]["num_experts_per_tok"], 2)
        self.assertIn("glm9_moe", shown["why"])
        self.unknown("generic_moe", num_experts=8)
        self.unknown("generic_moe", model_type="gemma_big", num_experts_per_tok=None,
                     text_config={"num_local_experts": 16})

    def test_later_deepseek_models_are_not_deepseek_moe(self):
        sizes = {"n_routed_experts": 64, "n_shared_experts": 2, "first_k_dense_replace": 1,
                 "moe_intermediate_size": 32, "kv_lora_rank": 512, "q_lora_rank": None}
        shown = self.unknown("generic_moe", model_type="deepseek_v9",
                             architectures=["DeepseekV9ForCausalLM"], **sizes)
        self.assertEqual(shown["found"]["n_routed_experts"], 64)
        self.unknown("generic_moe", **sizes)
        for version in "23":
            model = self.model("deepseek-moe-tiny", model_type=f"deepseek_v{version}", architectures=None)
            self.fails(1, f'model "deepseek_v{version}": config.json', "inspect", "--model", model)

    def test_dense_models_are_standard(self):
        self.unknown("standard", model_type="olmo", architectures=["OlmoForCausalLM"], clip_qkv=8.0,
                     num_experts_per_tok=None)
        self.unknown("standard", model_type="qwen2", architectures=["Qwen2ForCausalLM"],
                     num_experts_per_tok=None)
        self.unknown("standard", num_experts_per_tok=None)


if __name__ == "__main__":
    unittest.main()
