"""Tests of each model family: its checkpoint is quantized, and the export is verified and evaluated.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import struct
import unittest

from test_cli import CALIB, EVAL, TESTS, WorkFolder

FAMILIES = {"olmoe-tiny": "olmoe", "qwen2-moe-tiny": "qwen2_moe", "mixtral-tiny": "mixtral",
            "deepseek-moe-tiny": "deepseek_moe"}


def golden_perplexity(name):
    """Returns the perplexity of the original implementation in float32, with windows of 512 tokens."""
    raw = (TESTS / "golden" / (name + ".safetensors")).read_bytes()
    header = json.loads(raw[8:8 + struct.unpack("<Q", raw[:8])[0]])
    return float(header["__metadata__"]["ppl_kjv_eval_w512_f32"])


class Families(WorkFolder):
    def perplexity(self, model, text):
        return json.loads(self.ok("eval", "--model", model, "--text", text, "--window", 512,
                                  "--json"))["perplexity"]

    def check(self, name):
        model = TESTS / "models" / name
        shown = json.loads(self.ok("inspect", "--model", model, "--json"))
        self.assertEqual(shown["family"], FAMILIES[name])
        golden = golden_perplexity(name)
        self.assertAlmostEqual(self.perplexity(model, EVAL), golden, delta=1e-3 * golden)

        gptq, rtn = self.work / "gptq", self.work / "rtn"
        self.ok("--model", model, "--calib", CALIB, "--nsamples", 24, "--seqlen", 512, "--save", gptq)
        self.ok("--model", model, "--algorithm", "rtn", "--save", rtn)
        text = self.work / "text.txt"  # long enough to distinguish the perplexities
        text.write_text(EVAL.read_text()[:40000])
        original, quantized, rounded = (self.perplexity(m, text) for m in (model, gptq, rtn))
        self.assertGreater(quantized, original)
        self.assertLess(quantized, rounded)
        self.assertLess(rounded, 1.2 * original)

        verified = json.loads(self.ok("verify", "--model", gptq, "--json"))
        plan = json.loads(self.ok("plan", "--model", model, "--json"))
        packed = [m["name"] for m in plan["modules"] if m["format"]]
        self.assertEqual(verified["formats"], {"int4": len(packed)})
        # small modules with a large influence are not quantized
        for module in plan["modules"]:
            last = module["name"].rsplit(".", 1)[-1]
            self.assertEqual(module["format"] is None, last in ("gate", "shared_expert_gate", "lm_head"),
                             module["name"])


for model_name in FAMILIES:
    def test(self, name=model_name):
        self.check(name)
    setattr(Families, "test_" + model_name.replace("-", "_"), test)


if __name__ == "__main__":
    unittest.main()
