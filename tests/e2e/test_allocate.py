"""Tests of `aqhost allocate`, from the command line to the export that its recipe gives.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import os
import pathlib
import signal
import subprocess
import time
import unittest
import xml.etree.ElementTree
from unittest import mock

from test_cli import AQHOST, BUILD, CALIB, EVAL, MODEL, TESTS, WorkFolder

QWEN2_MOE = TESTS / "models/qwen2-moe-tiny"
SHORT = ("--calib", CALIB, "--nsamples", 8, "--seqlen", 128)


class Allocate(WorkFolder):
    def setUp(self):
        super().setUp()
        self.recipe = self.work / "recipe.yaml"

    def command(self, *arguments, model=MODEL, bits=3.5):
        return ("allocate", "--model", model, "--bits", bits, "--save-recipe", self.recipe, *arguments)

    def allocate(self, *arguments, **keywords):
        return json.loads(self.ok(*self.command(*arguments, "--json", **keywords)))

    def base(self, text):
        (self.work / "base.yaml").write_text(text)
        return ("--config", self.work / "base.yaml")

    def planned(self, model=MODEL):
        return json.loads(self.ok("plan", "--model", model, "--config", self.recipe, "--json"))

    def chosen(self, result):
        return {name: part["chosen"] for part in result["parts"] for name in part["modules"]}


class Recipes(Allocate):
    def test_the_recipe_gives_what_was_chosen_within_the_bits(self):
        for score in ("loss", "error", "alpha"):
            result = self.allocate("--score", score, "--overwrite", *(() if score == "alpha" else SHORT),
                                   model=QWEN2_MOE)
            plan = self.planned(QWEN2_MOE)
            self.assertLessEqual(plan["bits_per_weight"], 3.5)
            self.assertGreater(plan["bits_per_weight"], 3.4, score)
            self.assertAlmostEqual(plan["bits_per_weight"], result["bits_per_weight"])
            self.assertEqual({m["name"]: m["format"] for m in plan["modules"] if m["format"]},
                             self.chosen(result))
            self.assertGreater(len(set(self.chosen(result).values())), 1)
            self.assertEqual(plan["warnings"], [])
            self.assertEqual(result["score_kind"], score)

    def test_what_was_chosen_is_the_best_within_the_bits(self):
        result = self.allocate(*SHORT)
        score = sum(c["score"] for u in result["parts"] for c in u["choices"] if c["candidate"] == u["chosen"])
        self.assertAlmostEqual(score / result["score"], 1)
        for other in result["uniform"]:
            if other["bits_per_weight"] <= 3.5:
                self.assertGreater(other["score"], result["score"])
        left = (3.5 - result["bits_per_weight"]) * sum(u["weights"] for u in result["parts"])
        for part in result["parts"]:  # no single change is better
            now = next(c for c in part["choices"] if c["candidate"] == part["chosen"])
            for c in part["choices"]:
                if c["score"] < now["score"]:
                    self.assertGreater((c["bits_per_weight"] - now["bits_per_weight"]) * part["weights"], left)

    def test_modules_are_alike_as_an_engine_needs_them(self):
        parts = self.allocate("--score", "alpha", model=QWEN2_MOE)["parts"]
        self.assertEqual({u["name"] for u in parts},
                         {"q k v", "o", "experts", "shared gate up", "shared down"})
        self.allocate("--score", "alpha", "--target", "vllm", "--overwrite", model=QWEN2_MOE)
        self.assertTrue(self.planned(QWEN2_MOE)["engines"]["vllm"]["right"])
        result = self.allocate("--score", "alpha", "--target", "llamacpp", "--candidates", "int4,int5,int8",
                               "--overwrite", *self.base("default: {group_size: 32}"), bits=5.5)
        self.assertEqual({u["name"] for u in result["parts"]},
                         {"q", "k", "v", "o", "experts gate", "experts up", "experts down"})
        self.assertTrue(self.planned()["engines"]["llamacpp"]["right"])

    def test_the_base_recipe_decides_about_everything_else(self):
        base = self.base("default: {wq: mxfp4, group_size: 64}\npercdamp: 0.05\noverrides:\n"
                         "  - {pattern: '*.o_proj', skip: true}\n"
                         "  - {pattern: '*.experts.*', routing_power: 2}\n"
                         "  - {pattern: lm_head, wq: int8}\n")
        result = self.allocate("--score", "alpha", *base)
        plan = self.planned()
        self.assertIn("lm_head", self.chosen(result))
        self.assertEqual({m["group_size"] for m in plan["modules"] if m["format"]}, {64})
        self.assertEqual({m["name"] for m in plan["modules"] if m["format"]}, set(self.chosen(result)))
        self.assertFalse([name for name in self.chosen(result) if name.endswith("o_proj")])
        text = self.recipe.read_text()
        self.assertIn("percdamp: 0.05", text)
        self.assertIn("routing_power: 2", text)

    def test_active_bits_count_experts_by_their_share_of_tokens(self):
        stored, active = (self.allocate(*SHORT, "--cost", cost, "--overwrite") for cost in ("stored", "active"))
        experts = [[u["weights"] for u in r["parts"] if u["name"] == "experts"] for r in (stored, active)]
        config = json.loads((MODEL / "config.json").read_text())
        share = config["num_experts_per_tok"] / config["num_experts"]
        self.assertEqual([n * share for n in experts[0]], experts[1])
        self.assertLessEqual(active["bits_per_weight"], 3.5)

    def test_a_part_may_stay_as_it_is(self):
        result = self.allocate(*SHORT, "--candidates", "int2,bf16", bits=9)
        self.assertEqual(set(self.chosen(result).values()), {"int2", "bf16"})
        self.assertEqual({m["name"] for m in self.planned()["modules"] if m["format"]},
                         {name for name, chosen in self.chosen(result).items() if chosen == "int2"})

    def test_the_table_and_the_picture_show_what_was_chosen(self):
        picture = self.work / "picture.svg"
        text = self.ok(*self.command(*SHORT, "--save-picture", picture))
        self.assertRegex(text, r"layer +q k v +o +experts")
        self.assertRegex(text, r"what was chosen +3\.\d")
        root = xml.etree.ElementTree.parse(picture).getroot()
        svg = "{http://www.w3.org/2000/svg}"
        self.assertEqual(root.get("role"), "img")
        self.assertIn("Bits per weight", root.find(svg + "title").text)
        self.assertIn("A row for each layer", root.find(svg + "desc").text)
        layers = json.loads((MODEL / "config.json").read_text())["num_hidden_layers"]
        self.assertEqual(len(root.findall(svg + "g")), 3 * layers)

    def test_the_prediction_is_near_the_divergence_of_the_export(self):
        calibration = ("--calib", CALIB, "--nsamples", 24, "--seqlen", 256)
        text = self.work / "text.txt"
        text.write_text(EVAL.read_text()[:40000])
        result = self.allocate(*calibration, *self.base("error_feedback: 0"))
        out = self.work / "out"
        self.ok("--model", MODEL, "--config", self.recipe, *calibration, "--save", out)
        measured = json.loads(self.ok("eval", "--model", out, "--against", MODEL, "--text", text, "--window", 256,
                                      "--json"))["kl_divergence"]
        self.assertLess(measured / result["score"], 2.5)
        self.assertGreater(measured / result["score"], 0.4)


class Refused(Allocate):
    def test_a_wrong_command_line(self):
        start = ("allocate", "--model", MODEL, "--save-recipe", self.recipe)
        alpha = (*start, "--score", "alpha")
        self.fails(2, '--bits "x" is not a number of bits per weight', *alpha, "--bits", "x")
        self.fails(2, "the score loss is measured on calibration text: give --calib FILE", *start, "--bits", 3)
        for arguments, message in (
                (("--candidates", "int4,int4"), "--candidates: int4 appears twice"),
                (("--candidates", "bf16"), "--candidates: there is no format to quantize to"),
                (("--target", "vlm"), '--target "vlm", did you mean "vllm"?')):
            self.fails(2, message, *alpha, "--bits", 3, *arguments)
        self.assertEqual(list(self.work.iterdir()), [])

    def test_what_is_impossible(self):
        alpha = self.command("--score", "alpha")
        self.fails(1, "--bits 2: the smallest candidates take 2.1250 bits per weight",
                   *self.command("--score", "alpha", bits=2))
        self.fails(1, 'no plugin offers the format "int44", did you mean "int4"?', *alpha, "--candidates", "int44")
        self.fails(1, "this router", *alpha, *self.base("overrides: [{pattern: '*.mlp.gate', wq: int8}]"))
        self.fails(1, "may have none of the candidates: llama.cpp", *alpha, "--target", "llamacpp",
                   "--candidates", "int2,int3")
        self.recipe.write_text("mine")
        self.fails(1, f"{self.recipe}: exists already; --overwrite replaces it", *alpha)
        self.assertEqual(self.recipe.read_text(), "mine")

    def test_several_processes(self):
        with mock.patch.dict(os.environ, {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                                          "MASTER_PORT": "29517", "LOCAL_RANK": "0"}):
            self.fails(1, "allocate runs in one process, and 2 were started", *self.command("--score", "alpha"))

    def test_a_signal_leaves_nothing(self):
        process = subprocess.Popen([AQHOST, *map(str, self.command("--calib", CALIB)), "--plugin-dir",
                                    BUILD / "plugins"], stderr=subprocess.PIPE, text=True)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 130, errors)
        self.assertIn("interrupted", errors)
        self.assertEqual(list(self.work.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
