#!/usr/bin/env python3
"""Compares the scores of `aqhost allocate` with uniform recipes, and with recipes that protect attention by hand.

    tools/bench/allocation.py [--model olmoe ...] [--bits 2.5 ...] > table.md

Each recipe quantizes a model of tests/models by the default settings, calibrated on tests/data/kjv_calib.txt. The
table has the perplexity on tests/data/kjv_eval.txt and on Python source code, see ACCURACY.md. It needs build/bin/aqhost,
and of Python only the standard library, which is also the source code.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TESTS, BUILD = ROOT / "tests", pathlib.Path(os.environ.get("AQ_BUILD", ROOT / "build"))
MODELS = ("olmoe", "mixtral", "qwen2-moe", "deepseek-moe")
FORMATS = ("int2", "int3", "int4", "int8")
SCORES = ("loss", "error", "kl", "alpha")
BASE = "default: {{wq: {}, group_size: 64}}\n"
ATTENTION = "overrides: [{{pattern: '*.self_attn.*', wq: {}}}]\n"


def aqhost(*arguments):
    done = subprocess.run([BUILD / "bin/aqhost", *map(str, arguments), "--json", "--plugin-dir", BUILD / "plugins"],
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{arguments}: {done.stderr}")
    return json.loads(done.stdout)


def source_code():
    """Returns the code that ACCURACY.md describes, of the Python that runs this."""
    modules = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "".join(m.read_text() for m in modules[::7])[:200_000]


class Model:
    def __init__(self, family, work):
        self.folder, self.work = TESTS / f"models/{family}-tiny", work
        self.known = {}

    def bits(self, recipe):
        (self.work / "recipe.yaml").write_text(recipe)
        return aqhost("plan", "--model", self.folder, "--config", self.work / "recipe.yaml")["bits_per_weight"]

    def measure(self, recipe):
        """Returns the bits of a recipe, and the perplexities of its export."""
        key = re.sub("#.*", "", recipe)
        if key not in self.known:
            bits, out = self.bits(recipe), self.work / "out"
            aqhost("--model", self.folder, "--config", self.work / "recipe.yaml", "--calib",
                   TESTS / "data/kjv_calib.txt", "--save", out, "--overwrite")
            self.known[key] = bits, *self.perplexities(out)
        return self.known[key]

    def perplexities(self, folder):
        return [aqhost("eval", "--model", folder, "--text", text)["perplexity"]
                for text in (TESTS / "data/kjv_eval.txt", self.work.parent / "code.txt")]

    def largest(self, recipes, bits):
        """Returns the recipe with the most bits within the budget; "" if there is none."""
        fitting = [(self.bits(recipe), recipe) for recipe in recipes]
        return max((f for f in fitting if f[0] <= bits), default=(0, ""))[1]

    def allocated(self, score, bits):
        base, recipe = self.work / "base.yaml", self.work / "allocated.yaml"
        base.write_text("default: {group_size: 64}\n")
        text = () if score == "alpha" else ("--calib", TESTS / "data/kjv_calib.txt")
        aqhost("allocate", "--model", self.folder, "--bits", bits, "--config", base, "--score", score, *text,
               "--candidates", ",".join(FORMATS), "--save-recipe", recipe, "--overwrite")
        return recipe.read_text()

    def recipes(self, bits):
        yield "uniform", self.largest([BASE.format(f) for f in FORMATS], bits)
        yield "by hand", self.largest([BASE.format(f) + ATTENTION.format(a) for f in FORMATS for a in FORMATS
                                       if FORMATS.index(a) > FORMATS.index(f)], bits)
        for score in SCORES:
            yield f"`{score}`", self.allocated(score, bits)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--bits", nargs="+", type=float, default=[2.5, 3.0, 3.5, 4.25])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "code.txt").write_text(source_code())
        names = ["uniform", "by hand", *(f"`{s}`" for s in SCORES)]
        print("| KJV / code (bits) | at most |", " | ".join(names), "|\n|" + "---|" * (len(names) + 2))
        for family in options.model:
            work = pathlib.Path(folder) / family
            work.mkdir()
            model = Model(family, work)
            print(f"| {family} | 16 |", "{:.2f} / {:.2f} |".format(*model.perplexities(model.folder)), flush=True)
            for bits in options.bits:
                cells = ["{1:.2f} / {2:.2f} ({0:.2f})".format(*model.measure(recipe)) if recipe else ""
                         for _, recipe in model.recipes(bits)]
                print(f"| {family} | {bits:g} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
