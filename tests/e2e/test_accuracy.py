"""Tests of calibration data, and of what aqhost reports about experts and accuracy.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import os
import re
import struct
import subprocess
import unittest

from terminal import open_terminal
from test_cli import AQHOST, BUILD, CALIB, EVAL, MODEL, RECIPE, WorkFolder

GPTQ = ("--model", MODEL, "--config", RECIPE, "--calib", CALIB, "--seqlen", 64)
FEW = (*GPTQ, "--nsamples", 2)


class Calibration(WorkFolder):
    def test_calibration_from_jsonl_and_ids_by_weight(self):
        documents = CALIB.read_text()[:60_000].split("\n\n")
        (self.work / "a.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
        ids = list(range(2048)) * 4
        header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({len(ids)},), }}\n".encode()
        (self.work / "b=2.npy").write_bytes(
            b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header +
            struct.pack(f"<{len(ids)}i", *ids))
        out = self.work / "out"
        text = self.ok("--model", MODEL, "--config", RECIPE, "--save", out, "--nsamples", 16, "--seqlen",
                       32, "--calib", f"{self.work}/a.jsonl=3", "--calib", self.work / "b=2.npy")
        self.assertIn("calibrated on windows of 32 tokens: 8 of text, 8 of random tokens\n", text)
        calibration = json.loads((out / "quantization_report.json").read_text())["calibration"]
        self.assertEqual([(f["file"], f["weight"], f["windows"]) for f in calibration["files"]],
                         [("a.jsonl", 3, 6), ("b=2.npy", 1, 2)])
        self.assertEqual((calibration["windows"], calibration["random_windows"]), (16, 8))
        self.fails(2, "a weight of 0", "--model", MODEL, "--save", out, "--calib", f"{CALIB}=0")

    def test_balanced_experts_are_reported(self):
        out = self.work / "out"
        text = self.ok(*GPTQ, "--nsamples", 4, "--balance-experts", "--save", out)
        self.assertRegex(text, r"experts balanced: spread of their tokens 0.\d+ -> 0.\d+, of 8 windows")
        balance = json.loads((out / "quantization_report.json").read_text())["calibration"]["balance"]
        self.assertLess(balance["spread_after"], balance["spread_before"])
        self.fails(2, "--balance-experts needs --calib", "--model", MODEL, "--algorithm", "rtn",
                   "--save", out, "--balance-experts")

    def test_a_terminal_is_shown_how_text_reached_the_experts_and_a_file_is_not(self):
        ours, theirs = open_terminal(self)
        command = [AQHOST, *FEW, "--save", self.work / "a", "--plugin-dir", BUILD / "plugins"]
        done = subprocess.run([str(c) for c in command], stdout=theirs, stderr=subprocess.PIPE)
        os.close(theirs)
        self.assertEqual(done.returncode, 0, done.stderr)
        shown = os.read(ours, 1 << 16).decode()
        self.assertRegex(shown, r"layer   2  [!\u2581-\u2588]{16}  \d+ to \d+ tokens, spread \d\.\d\d")
        worst = re.findall(r"^model\.layers\.\S+ +int\d g\d+ +[\d.]+ % of the loss, [\d.]+ % of rounding", shown,
                           flags=re.M)
        self.assertEqual(len(worst), 5, shown)
        self.assertRegex(done.stderr.decode(), r"times as much calibration text .*--nsamples \d+")
        plain = self.ok(*FEW, "--save", self.work / "b")
        self.assertNotIn("layer   2", plain)
        self.assertNotIn("% of the loss", plain)


class Refining(WorkFolder):
    def test_a_recipe_with_refine_gets_learned_rounding(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("default: {wq: int4, group_size: 128, refine: {steps: 30, batch: 8}}\n")
        out = self.work / "out"
        self.ok("--model", MODEL, "--config", recipe, "--calib", CALIB, "--seqlen", 64, "--nsamples", 16,
                "--save", out)
        refined = json.loads((out / "quantization_report.json").read_text())["refined"]
        self.assertEqual([r["layer"] for r in refined], [0, 1, 2])
        for layer in refined:  # codes that do not reduce the error of the output are not kept
            self.assertLessEqual(layer["error_after"], layer["error_before"])
        self.assertLess(refined[2]["error_after"], 0.9 * refined[2]["error_before"])


class Comparing(WorkFolder):
    def test_eval_against_the_original_and_a_table_of_exports(self):
        gptq, rtn = self.work / "gptq", self.work / "rtn"
        self.ok(*FEW, "--save", gptq)
        self.ok("--model", MODEL, "--algorithm", "rtn", "--save", rtn)
        few = self.work / "few.txt"
        few.write_text(EVAL.read_text()[:20_000])
        against = ("--against", MODEL, "--text", few, "--window", 128)
        text = self.ok("eval", "--model", gptq, *against)
        for word in ("perplexity", "KL divergence", "same top token", "layer   2"):
            self.assertIn(word, text)
        result = json.loads(self.ok("eval", "--model", gptq, *against, "--json"))
        plain = json.loads(self.ok("eval", "--model", gptq, *against[2:], "--json"))
        self.assertAlmostEqual(result["perplexity"], plain["perplexity"], places=3)
        self.assertEqual(result["tokens"], plain["tokens"])
        self.assertGreater(result["kl_divergence"], 0.01)
        self.assertLess(result["top1_agreement"], 1)
        self.assertEqual([l["layer"] for l in result["layers"]], [0, 1, 2])
        self.assertEqual(result["layers"][0]["error"], result["layers"][0]["own_error"])

        rows = json.loads(self.ok("compare", gptq, rtn, *against, "--json"))
        self.assertEqual([r["folder"] for r in rows], [str(MODEL), str(gptq), str(rtn)])
        self.assertEqual(rows[0]["bits_per_weight"], 16)
        self.assertAlmostEqual(rows[1]["bits_per_weight"], 4.125)
        self.assertAlmostEqual(rows[1]["kl_divergence"], result["kl_divergence"])
        self.assertAlmostEqual(sum(l["loss_share"] for l in rows[1]["layers"]), 1)
        self.assertEqual(rows[2]["experts"], [])  # without calibration, nothing is known about experts
        lines = self.ok("compare", gptq, rtn).splitlines()
        self.assertEqual(len(lines), 3)
        self.assertRegex(lines[1], r"4\.125 .* MB .*\d\.\d+ \(\d+\.\d %\)$")

    def test_wrong_usage_and_models_that_cannot_be_compared(self):
        self.fails(2, "no folder is given", "compare")
        self.fails(2, "--against needs --text", "compare", MODEL, "--against", MODEL)
        self.fails(2, "takes options only", "eval", MODEL)
        self.fails(1, "only versions of one model can be compared", "eval", "--model", MODEL, "--text",
                   EVAL, "--against", MODEL.parent / "mixtral-tiny")
        broken = self.copy_model()
        (broken / "quantization_report.json").write_text("{}")
        self.fails(1, "quantization_report.json: modules: expected the modules of a report", "compare", broken)


if __name__ == "__main__":
    unittest.main()
