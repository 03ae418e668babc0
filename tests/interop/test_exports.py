"""Tests that transformers computes the logits of aqhost from an export of every family: with tied
embeddings, with an lm_head of its own, and if config.json and the checkpoint disagree about that.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates.
"""
import json
import subprocess
import unittest

import torch
from safetensors.torch import load_file, save_file

import test_families as families
from stored import load_folder

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2}
FAMILY = {
    "olmoe": {"intermediate_size": 64},
    "qwen2_moe": {"intermediate_size": 96, "moe_intermediate_size": 64,
                  "shared_expert_intermediate_size": 32},
    "mixtral": {"intermediate_size": 64},
    "deepseek": {"intermediate_size": 96, "moe_intermediate_size": 32},
}
RECIPES = {"int4": "{default: {wq: int4, group_size: 32}}",
           # several groups, so patterns take the place of the target Linear
           "mixed": "{default: {wq: int4, group_size: 32},"
                    " overrides: [{pattern: '*.self_attn.*', wq: int8, group_size: -1}]}",
           "fp8": "{default: {wq: fp8}}"}


def run(*arguments):
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True)


class Exports(families.Folder):
    make, logits = families.Transformers.make, families.Transformers.logits

    def export(self, recipe):
        """Rounds self.model, and puts the export in its place."""
        work = self.model.parent
        (work / "recipe.yaml").write_text(recipe)
        done = run(families.BUILD / "bin/aqhost", "--model", self.model, "--config",
                   work / "recipe.yaml", "--algorithm", "rtn", "--save", work / "out")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.model = work / "out"
        checked = run(families.BUILD / "bin/aqhost", "verify", "--model", self.model)
        self.assertEqual(checked.returncode, 0, checked.stderr)

    def check_agrees(self):
        """Checks that transformers, which runs the experts in bfloat16, computes the logits of aqhost."""
        ours, error = families.dump(self.model)
        self.assertIsNone(error)
        self.assertLess(self.distance(self.logits(), ours["logits"]), 0.05)

    def check_export(self, family, tied, recipe):
        self.make(family, {**SIZES, **FAMILY[family], "tie_word_embeddings": tied})
        self.export(RECIPES[recipe])
        self.assertEqual("lm_head.weight" in load_folder(self.model), not tied)
        self.check_agrees()

    def check_own_head(self, family):
        """config.json says that the embedding is lm_head, but the checkpoint has another lm_head."""
        self.make(family, {**SIZES, **FAMILY[family]})
        expected = self.logits()
        families.rewrite(self.model, tie_word_embeddings=True)
        self.assertLess(self.distance(self.logits(), expected), 1e-5)
        self.check(expected)
        self.export(RECIPES["int4"])
        # vLLM always uses the embedding if this is set
        self.assertIs(json.loads((self.model / "config.json").read_text())["tie_word_embeddings"], False)
        self.check_agrees()

    def check_quantized_head(self, family):
        """An lm_head that is a copy of the embedding is quantized on its own."""
        self.make(family, {**SIZES, **FAMILY[family], "tie_word_embeddings": True})
        path = self.model / "model.safetensors"
        tensors = load_file(path)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, path, {"format": "pt"})
        self.export("{default: {wq: int4, group_size: 32}, overrides: [{pattern: lm_head, wq: int8}]}")
        self.assertIn("lm_head.weight_packed", load_folder(self.model))
        self.check_agrees()


class DeepSeekExports(families.Folder):
    """transformers does not know the family; config.json nevertheless lists lm_head as not quantized."""

    make = families.DeepSeekMoe.make

    def test_transformers_does_not_know_it(self):
        from transformers import AutoConfig
        self.make(**SIZES, **FAMILY["deepseek"])
        with self.assertRaises(ValueError):
            AutoConfig.from_pretrained(self.model)

    def test_ignore(self):
        for tied in (False, True):
            with self.subTest(tied=tied):
                self.setUp()
                self.make(**SIZES, **FAMILY["deepseek"], tie_word_embeddings=tied)
                Exports.export(self, RECIPES["int4"])
                config = json.loads((self.model / "config.json").read_text())
                self.assertIn("lm_head", config["quantization_config"]["ignore"])


for family in ("olmoe", "qwen2_moe", "mixtral"):
    for recipe in RECIPES:
        for tied in (False, True):
            setattr(Exports, f"test_{family}_{'tied' if tied else 'untied'}_{recipe}",
                    lambda self, f=family, t=tied, r=recipe: self.check_export(f, t, r))
    setattr(Exports, f"test_{family}_own_head", lambda self, f=family: self.check_own_head(f))
    setattr(Exports, f"test_{family}_quantized_head",
            lambda self, f=family: self.check_quantized_head(f))


if __name__ == "__main__":
    unittest.main()
