"""Tests of aqhost plan for a config.json without weights."""
import json
import unittest

from test_cli import MODEL, RECIPE, TESTS, WorkFolder, aqhost

# The keys with an effect in config.json of huggingface.co/moonshotai/Kimi-K2-Instruct.
KIMI_K2 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2", "attention_bias": False,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 131072,
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 384,
    "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 64,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "rope_theta": 50000.0, "routed_scaling_factor": 2.827, "scoring_func": "sigmoid",
    "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 163840}


class ConfigOnly(WorkFolder):
    def config(self, config):
        path = self.work / "config.json"
        path.write_text(json.dumps(config))
        return path

    def test_the_plan_is_that_for_the_weights(self):
        for model in sorted(TESTS.glob("models/*-tiny")):
            recipe = ("--config", RECIPE) if model == MODEL else ()
            given = json.loads(self.ok("plan", "--model", model, *recipe, "--json"))
            alone = json.loads(self.ok("plan", "--config-only", model / "config.json", *recipe,
                                       "--json"))
            seconds = [plan["run"].pop("seconds") for plan in (given, alone)]
            self.assertLess(0, seconds[1][0])
            self.assertLess(seconds[1][0], seconds[1][1])
            self.assertEqual(given, alone)

    def test_kimi_k2_has_a_trillion_parameters(self):
        done = aqhost("plan", "--config-only", self.config(KIMI_K2), "--device", "cpu", "--json")
        self.assertIn("config.json: has a quantization_config", done.stderr)
        plan = json.loads(done.stdout)
        self.assertAlmostEqual(plan["parameters"] / 1e12, 1.03, delta=0.005)
        self.assertAlmostEqual(plan["bytes_before"] / 1e12, 2.05, delta=0.01)
        self.assertAlmostEqual(plan["bits_per_weight"], 4.125)
        # more than the weights of a layer in bfloat16, and little more than that with their inputs
        largest = max(layer["bytes_before"] for layer in plan["layers"])
        self.assertTrue(largest < plan["run"]["least_memory_bytes"] < 3 * largest)

    def test_the_text_says_about_how_long_a_run_takes(self):
        config = MODEL / "config.json"
        text = self.ok("plan", "--config-only", config, "--nsamples", 64, "--seqlen", 256)
        self.assertRegex(text, r"by config.json alone: 3,\d\d\d,\d\d\d parameters")
        self.assertRegex(text, r"a run takes +about .* with 64 windows of 256 tokens")
        self.assertRegex(text, r"its memory.* at least .*MB for tensors")
        longer = [json.loads(self.ok("plan", "--config-only", config, "--nsamples", n, "--json"))["run"]
                  for n in (128, 65536)]
        self.assertLess(longer[0]["seconds"][1], longer[1]["seconds"][1])
        self.assertLess(longer[0]["memory_bytes"], longer[1]["memory_bytes"])

    def test_rounding_to_nearest_takes_no_windows(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("default: {algorithm: rtn}\n")
        done = aqhost("plan", "--config-only", MODEL / "config.json", "--config", recipe,
                      "--nsamples", 4)
        self.assertNotIn("windows", done.stdout)
        self.assertIn("--nsamples has no effect", done.stderr)

    def test_what_is_no_config_is_refused_by_name(self):
        self.fails(1, f"{self.work}/config.json", "plan", "--config-only", self.work)
        missing = self.work / "none.json"
        self.fails(1, str(missing), "plan", "--config-only", missing)
        listed = self.config([1])
        self.fails(1, f"{listed}: expected a JSON object", "plan", "--config-only", listed)
        (self.work / "config.json").write_text("weights")
        self.fails(1, str(listed), "plan", "--config-only", listed)
        self.config({"model_type": "mamba"})
        self.fails(1, f'{listed}: no plugin knows model_type "mamba"', "plan", "--config-only", listed)
        self.fails(1, "num_attention_heads", "plan", "--config-only", self.config({"model_type": "olmoe"}))

    def test_a_plan_is_for_either_a_checkpoint_or_a_config(self):
        both = "plan needs either --model, a checkpoint, or --config-only, a config.json"
        self.fails(2, both, "plan")
        self.fails(2, both, "plan", "--model", MODEL, "--config-only", MODEL / "config.json")
        self.fails(2, '--device "tpu"', "plan", "--model", MODEL, "--device", "tpu")


if __name__ == "__main__":
    unittest.main()
