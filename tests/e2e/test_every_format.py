"""Tests of every format with every group size, and of every shipped recipe, by GPTQ and by rounding,
with and without rounded activations and learned rounding, on two short windows of the small models:
a recipe that `plan` accepts can be run, and `plan` refuses any other recipe in one sentence.

The formats are those that `aqhost plugins` lists, so a new format needs no change here. Each routed
expert of a model gets a format and a group size of its own, so one run tests dozens of them. GPTQ has
each of them on every model. The other ways of rounding do not depend on the shape of a layer, so they
have each of them on one model.
ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import concurrent.futures
import itertools
import json
import pathlib
import re
import tempfile
import unittest

from test_cli import CALIB, ROOT, TESTS, aqhost
import test_recipes

# {model: (layers with routed experts, experts per layer, the pattern that matches an expert)}
MODELS = {"olmoe": (range(3), 16, "*.layers.{}.mlp.experts.{}.*"),
          "deepseek-moe": (range(1, 4), 16, "*.layers.{}.mlp.experts.{}.*"),
          "qwen2-moe": (range(3), 12, "*.layers.{}.mlp.experts.{}.*"),
          "mixtral": (range(3), 8, "*.layers.{}.block_sparse_moe.experts.{}.*")}
WINDOWS = ("--calib", CALIB, "--nsamples", 2, "--seqlen", 32, "--random-percent", 0)
REFINE = "refine: {steps: 2, batch: 2}"
KINDS = {"row": -1, "matrix": 0}  # the words for group sizes in `aqhost plugins`


def path_of(model):
    return TESTS / "models" / (model + "-tiny")


def places_of(model):
    """Returns the number of routed experts of a model."""
    layers, count, _ = MODELS[model]
    return len(layers) * count


def chunks(items, size):
    return [items[i:i + size] for i in range(0, len(items), size)]


class EveryFormat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.work = pathlib.Path(folder.name)
        cls.numbers = itertools.count()
        cls.pool = concurrent.futures.ThreadPoolExecutor(2)  # two runs at a time, with one thread each
        cls.addClassCleanup(cls.pool.shutdown)
        plugins = json.loads(aqhost("plugins", "--json").stdout)
        plugins = plugins["plugins"] if isinstance(plugins, dict) else plugins
        cls.sizes = {p["id"]: [KINDS.get(s) if s in KINDS else int(s)
                               for s in p["format"]["group_sizes"]]
                     for p in plugins if p["kind"] == "quantizer" and p["format"]["super_group"] == 0}
        cls.super_groups = [p["id"] for p in plugins
                            if p["kind"] == "quantizer" and p["format"]["super_group"] > 0]

    def recipe(self, text):
        path = self.work / f"{next(self.numbers)}.yaml"
        path.write_text(text)
        return path

    def ends(self, done, name):
        """Checks that a command succeeded, or failed with one sentence. Returns whether it succeeded."""
        self.assertIn(done.returncode, (0, 1), f"{name}: {done.stderr}")
        for word in ("LibTorch", "json.exception", "Exception raised", "frame #"):
            self.assertNotIn(word, done.stderr, name)
        if done.returncode == 1:
            lines = [l for l in done.stderr.splitlines() if l.startswith("aqhost: ")]
            self.assertEqual(len(lines), 1, f"{name}: {done.stderr}")
            self.assertGreater(len(lines[0].split()), 5, f"{name}: {done.stderr}")
        return done.returncode == 0

    def run_well(self, model, name, text, *options):
        """Checks that a run succeeds, and that `verify` accepts its export."""
        recipe = self.recipe(text)
        out = recipe.with_suffix(".out")
        done = aqhost("--model", path_of(model), "--config", recipe, "--save", out, "--threads", 1,
                      "--device", "cpu", *options)
        self.assertTrue(self.ends(done, name), f"{name}: {done.stderr}")
        report = json.loads((out / "quantization_report.json").read_text())
        for module, result in report["modules"].items():
            self.assertGreater(result["bits_per_weight"], 1, module)
        verified = aqhost("verify", "--model", out)
        self.assertEqual(verified.returncode, 0, f"{name}: {verified.stderr}")

    def all_well(self, runs):
        self.assertTrue(runs)
        futures = {run[1]: self.pool.submit(self.run_well, *run) for run in runs}
        for name, future in futures.items():
            with self.subTest(name):
                future.result()

    def accepted(self, settings):
        """Returns those of `settings` ("wq: fp8, group_size: 0") that `plan` accepts."""
        def plan(setting):
            done = aqhost("plan", "--model", path_of("olmoe"), "--config",
                          self.recipe(f"default: {{{setting}}}"))
            return self.ends(done, setting)
        return [s for s, good in zip(settings, self.pool.map(plan, settings)) if good]

    def settings(self, aq):
        """Returns the settings of every format with each of its group sizes, and with a whole row and a
        whole matrix if `plan` accepts that."""
        def of(format, size):
            return f"wq: {format}, group_size: {size}" + (f", aq: {format}" if aq else "")
        own = [of(f, s) for f, sizes in self.sizes.items() for s in sizes]
        other = [of(f, s) for f, sizes in self.sizes.items() for s in (-1, 0) if s not in sizes]
        return own + self.accepted(other)

    def run_of(self, mode, model, number, settings, extra, *options):
        """Returns a run in which experts of the model have these settings, each expert another one."""
        layers, count, pattern = MODELS[model]
        places = [pattern.format(l, e) for l in layers for e in range(count)]
        lines = [f"default: {{group_size: 64{extra}}}", "overrides:"]
        lines += [f"- {{pattern: '{p}', {s}}}" for p, s in zip(places, settings)]
        return model, f"{model} {mode} {number}", "\n".join(lines) + "\n", *options

    def on_every_model(self, mode, settings, extra, *options):
        """Returns runs in which every model has all of the settings."""
        return [self.run_of(mode, model, i, part, extra, *options)
                for model in MODELS for i, part in enumerate(chunks(settings, places_of(model)))]

    def on_one_model_each(self, mode, settings, extra, *options):
        """Returns runs in which each of the settings is in one model, and every model has some."""
        share = -(-len(settings) // len(MODELS))
        return [self.run_of(mode, model, i, part, extra, *options)
                for model, dealt in zip(MODELS, chunks(settings, share))
                for i, part in enumerate(chunks(dealt, places_of(model)))]

    def test_there_are_formats_and_group_sizes_of_every_kind(self):
        self.assertGreaterEqual(set(self.sizes), {"int4", "int8", "fp8", "mxfp4", "nvfp4", "nf4"})
        found = set(itertools.chain(*self.sizes.values()))
        self.assertGreaterEqual(found, {-1, 0, 16, 32, 64, 128, 256})

    def test_formats(self):
        settings = self.settings(aq=False)
        self.assertIn("wq: fp8, group_size: 0", settings)
        self.all_well(self.on_every_model("gptq", settings, "", *WINDOWS) +
                      self.on_one_model_each("refine", settings, ", " + REFINE, *WINDOWS) +
                      self.on_one_model_each("rtn", settings, "", "--algorithm", "rtn") +
                      self.on_one_model_each("rtn refine", settings, ", " + REFINE, "--algorithm", "rtn"))

    def test_formats_with_super_groups(self):
        """Super-groups of 256 divide the rows of the down projections of one model."""
        self.assertEqual(self.super_groups, ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"])
        runs = []
        for mode, order, extra, *options in (("gptq", "static", "", *WINDOWS),
                                             ("no act-order", "none", "", *WINDOWS),
                                             ("refine", "static", ", " + REFINE, *WINDOWS),
                                             ("rtn", "static", "", "--algorithm", "rtn")):
            lines = [f"actorder: {order}", f"default: {{group_size: 64{extra}}}", "overrides:"]
            lines += [f"- {{pattern: '*.experts.{e}.w2', wq: {f}}}" for e, f in enumerate(self.super_groups)]
            runs.append(("mixtral", f"mixtral super-groups {mode}", "\n".join(lines) + "\n", *options))
        self.all_well(runs)
        done = aqhost("plan", "--model", path_of("mixtral"), "--config",
                      self.recipe("{default: {wq: int4}, overrides: [{pattern: '*.w2', wq: q4_k, aq: q4_k}]}"))
        self.assertFalse(self.ends(done, "q4_k of inputs"))

    def test_formats_with_rounded_activations(self):
        settings = self.settings(aq=True)
        self.assertIn("wq: int8, group_size: 0, aq: int8", settings)
        self.assertIn("wq: nvfp4, group_size: 16, aq: nvfp4", settings)
        self.all_well(self.on_every_model("gptq aq", settings, "", *WINDOWS) +
                      self.on_one_model_each("rtn aq", settings, "", "--algorithm", "rtn", *WINDOWS))
        both = self.recipe(f"default: {{wq: int8, aq: int8, {REFINE}}}")
        done = aqhost("plan", "--model", path_of("olmoe"), "--config", both)
        self.assertFalse(self.ends(done, "refine and aq"))

    def test_recipes(self):
        runs = []
        for name, (model, _) in test_recipes.LAYER_1.items():
            text = (ROOT / "configs" / name).read_text()
            in_json = name.endswith(".json")
            refine = '"refine": {"steps": 2, "batch": 2}' if in_json else REFINE
            for mode, setting in (("", None), ("refine", refine),
                                  ("aq", '"aq": "int8"' if in_json else "aq: int8")):
                changed, n = re.subn(r'"?aq"?: "?bf16"?', setting or r"\g<0>", text)
                self.assertGreater(n, 0, name)
                runs.append((model, f"{name} gptq {mode}", changed, *WINDOWS))
                runs.append((model, f"{name} rtn {mode}", changed, "--algorithm", "rtn"))
        self.all_well(runs)


if __name__ == "__main__":
    unittest.main()
