"""Tests of tools/synthesize: aqhost accepts its checkpoints of every shape."""
import json
import runpy
import shutil
import subprocess
import unittest

from test_cli import EVAL, ROOT, WorkFolder, read_safetensors

EXPERTS = {  # {shape: the key of its number of experts in config.json}
    "olmoe-1b-7b": "num_experts",
    "qwen1.5-moe-a2.7b": "num_experts",
    "mixtral-8x7b": "num_local_experts",
    "deepseek-moe-16b": "n_routed_experts",
    "qwen3-30b-a3b": "num_experts",
    "deepseek-v3": "n_routed_experts",
    "gpt-oss-20b": "num_local_experts",
    "glm-4.5-air": "n_routed_experts",
    "qwen3.6-35b-a3b": "num_experts",
    "minimax-m2": "num_local_experts",
}
SIZES = {"hidden_size": 256, "intermediate_size": 128, "vocab_size": 2048,
         "moe_intermediate_size": 128, "shared_expert_intermediate_size": 256,
         "num_attention_heads": 8, "kv_lora_rank": 128, "q_lora_rank": 128,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4}


class Synthesize(WorkFolder):
    def synthesize(self, out, like, *options):
        command = [ROOT / "tools/synthesize", out, "--like", like, *options]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)

    def small(self, like, layers):
        """Writes a model with the shape of a real one and few, small experts; returns its folder."""
        synthesize = runpy.run_path(str(ROOT / "tools/synthesize"))
        known = synthesize["published"](like)
        known = known.get("text_config", known)
        out = self.work / like
        # latent attention makes a key for every head
        sizes = SIZES | {EXPERTS[like]: 16,
                         "num_key_value_heads": 8 if "kv_lora_rank" in known else 2}
        options = [f"--set={key}={sizes[key]}" for key in sorted(sizes.keys() & known.keys())]
        self.synthesize(out, like, "--layers", layers, *options)
        return out

    def test_a_small_model_of_every_shape_can_be_run_and_quantized(self):
        text = self.work / "text"
        text.write_bytes(EVAL.read_bytes()[:600])
        for like in EXPERTS:
            with self.subTest(like):
                out = self.small(like, 2)
                config = json.loads((out / "config.json").read_text())
                self.assertEqual(config.get("text_config", config)["hidden_size"], 256)
                # random weights know nothing: about as many choices as the vocabulary has tokens
                evaluation = self.ok("eval", "--model", out, "--text", text,
                                     "--window", "128", "--json")
                self.assertTrue(1024 < json.loads(evaluation)["perplexity"] < 4096, evaluation)
                # a plan for config.json alone has the sizes of the plan for the weights
                plans = [json.loads(self.ok("plan", *source, "--json")) for source in
                         (("--model", out), ("--config-only", out / "config.json"))]
                for key in ("bytes_before", "bytes_after", "bits_per_weight", "parameters"):
                    self.assertEqual(plans[0][key], plans[1][key], key)
                self.ok("--model", out, "--algorithm", "rtn", "--save", self.work / f"{like}-int4")
                self.ok("verify", "--model", self.work / f"{like}-int4")

    def test_a_model_that_is_cut_keeps_dense_layers_and_has_experts(self):
        for layers, dense in ((1, 0), (2, 1), (5, 3)):
            out = self.small("deepseek-v3", layers)
            inspection = json.loads(self.ok("inspect", "--model", out, "--json"))
            self.assertEqual((inspection["layers"], inspection["moe_layers"]),
                             (layers, layers - dense))
            shutil.rmtree(out)

    def test_weights_are_random_and_norms_are_one(self):
        out = self.work / "model"
        self.synthesize(out, "olmoe-1b-7b", "--layers", "1", "--set", "hidden_size=256",
                        "--set", "num_experts=8", "--set", "vocab_size=2048")
        header, data = read_safetensors(out / "model-00001-of-00001.safetensors")
        begin, end = header["model.norm.weight"]["data_offsets"]
        self.assertEqual(data[begin:end], b"\x80\x3f" * 256)
        experts = [header[f"model.layers.0.mlp.experts.{e}.up_proj.weight"]["data_offsets"]
                   for e in range(8)]
        self.assertEqual(len({data[begin:end] for begin, end in experts}), 8)


if __name__ == "__main__":
    unittest.main()
