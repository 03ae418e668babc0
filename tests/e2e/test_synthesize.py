"""Tests of tools/synthesize: aqhost accepts its checkpoints of every shape."""
import json
import subprocess
import unittest

from test_cli import ROOT, WorkFolder, read_safetensors

SMALL = {  # {shape: (the small model whose config.json is the base, the key of its number of experts)}
    "olmoe-1b-7b": ("olmoe-tiny", "num_experts"),
    "qwen1.5-moe-a2.7b": ("qwen2-moe-tiny", "num_experts"),
    "mixtral-8x7b": ("mixtral-tiny", "num_local_experts"),
    "deepseek-moe-16b": ("deepseek-moe-tiny", "n_routed_experts"),
}
SIZES = {"hidden_size": 256, "intermediate_size": 128, "vocab_size": 2048,
         "moe_intermediate_size": 128, "shared_expert_intermediate_size": 256}


class Synthesize(WorkFolder):
    def test_a_small_model_of_every_shape_can_be_quantized(self):
        for like, (base, experts) in SMALL.items():
            out = self.work / like
            known = json.loads((ROOT / f"tests/models/{base}/config.json").read_text())
            sizes = SIZES | {experts: 8}
            command = [ROOT / "tools/synthesize", out, "--like", like, "--layers", "2"]
            for key in sizes.keys() & known.keys():
                command += ["--set", f"{key}={sizes[key]}"]
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
            self.assertEqual(json.loads((out / "config.json").read_text())["hidden_size"], 256)
            self.ok("--model", out, "--algorithm", "rtn", "--save", self.work / f"{like}-int4")
            self.ok("verify", "--model", self.work / f"{like}-int4")

    def test_weights_are_random_and_norms_are_one(self):
        out = self.work / "model"
        command = [ROOT / "tools/synthesize", out, "--like", "olmoe-1b-7b", "--layers", "1",
                   "--set", "hidden_size=256", "--set", "num_experts=8", "--set", "vocab_size=2048"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        header, data = read_safetensors(out / "model-00001-of-00001.safetensors")
        begin, end = header["model.norm.weight"]["data_offsets"]
        self.assertEqual(data[begin:end], b"\x80\x3f" * 256)
        experts = [header[f"model.layers.0.mlp.experts.{e}.up_proj.weight"]["data_offsets"]
                   for e in range(8)]
        self.assertEqual(len({data[begin:end] for begin, end in experts}), 8)


if __name__ == "__main__":
    unittest.main()
