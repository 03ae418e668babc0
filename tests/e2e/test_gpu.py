"""Compares runs on a GPU with runs on the CPU. Without a GPU, the tests are skipped with the reason.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
If AQ_RANDOM_CHECKPOINTS is a folder that tests/interop/random_checkpoints.py has written, every family is tested.
"""
import json
import os
import pathlib
import re
import sys
import unittest

from test_cli import CALIB, EVAL, MODEL, ROOT, TESTS, WorkFolder, aqhost

FAMILIES = ("olmoe-tiny", "qwen2-moe-tiny", "mixtral-tiny", "deepseek-moe-tiny")


class OnAGpu(WorkFolder):
    def quantize(self, device, model, *options):
        out = self.work / f"{device}-{model.name}"
        self.ok("--model", model, "--calib", CALIB, "--save", out, "--overwrite", "--device", device,
                *options)
        return out

    def perplexity(self, export):
        return json.loads(self.ok("eval", "--model", export, "--text", EVAL, "--window", 512,
                                  "--json"))["perplexity"]

    def close(self, maximum, model, *options, seeds=(0,)):
        """Compares the mean perplexity of runs with these seeds on the two devices, and prints it."""
        means = []
        for device in ("cpu", "cuda"):
            runs = [self.perplexity(self.quantize(device, model, "--seed", s, *options)) for s in seeds]
            means.append(sum(runs) / len(runs))
        cpu, gpu = means
        print(f"{model.name} {' '.join(map(str, options))}: cpu {cpu:.4f}, gpu {gpu:.4f}, "
              f"{100 * (gpu / cpu - 1):+.3f} %", flush=True)
        self.assertLess(abs(gpu / cpu - 1), maximum)

    def test_every_family_is_as_accurate_as_on_the_cpu(self):
        # The GPU adds in a different order, so a few ties are decided differently, and everything after
        # such a tie differs: by up to 0.5 % of perplexity in a single run, in either direction.
        for family in FAMILIES:
            for dtype, maximum in (("float32", 0.003), ("bfloat16", 0.005)):
                with self.subTest(family, dtype=dtype):
                    self.close(maximum, TESTS / "models" / family, "--dtype", dtype, seeds=range(3))

    def test_recipes_in_mixed_formats(self):
        for family, recipe in (("mixtral-tiny", "mixtral"), ("qwen2-moe-tiny", "qwen2_moe")):
            with self.subTest(recipe):
                self.close(0.01, TESTS / "models" / family, "--config", ROOT / f"configs/{recipe}.yaml")

    def test_learned_rounding_and_rounded_activations(self):
        for default in ("{wq: int3, group_size: 64, refine: {steps: 20, batch: 8}}",
                        "{wq: mxfp4, group_size: 32, aq: mxfp8}", "{wq: nvfp4, aq: nvfp4}"):
            with self.subTest(default):
                recipe = self.work / "r.yaml"
                recipe.write_text(f"default: {default}\n")
                self.close(0.015, MODEL, "--config", recipe, "--nsamples", 32)

    def test_eval_and_compare_give_the_same_results_as_on_the_cpu(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("default: {wq: mxfp4, group_size: 32, aq: mxfp8}\n")
        for family in FAMILIES:
            model = TESTS / "models" / family
            out = self.work / f"rtn-{family}"
            more = ("--config", recipe) if family == "qwen2-moe-tiny" else ()
            self.ok("--model", model, "--algorithm", "rtn", "--save", out, *more)
            results = {}
            for device in ("cpu", "cuda"):
                table = json.loads(self.ok("compare", out, "--text", EVAL, "--against", model,
                                           "--device", device, "--json"))
                alone = json.loads(self.ok("eval", "--model", out, "--text", EVAL, "--device", device,
                                           "--json"))["perplexity"]
                narrow = json.loads(self.ok("eval", "--model", out, "--text", EVAL, "--device", device,
                                            "--dtype", "bfloat16", "--json"))["perplexity"]
                results[device] = (table, alone, narrow)
            alone, narrow = ([results[d][i] for d in ("cpu", "cuda")] for i in (1, 2))
            print(f"{family}: eval cpu {alone[0]:.5f}, gpu {alone[1]:.5f}; in bfloat16 {narrow[0]:.5f}, "
                  f"{narrow[1]:.5f}", flush=True)
            with self.subTest(family):
                self.assertLess(abs(alone[1] / alone[0] - 1), 1e-3)
                self.assertLess(abs(narrow[1] / narrow[0] - 1), 5e-3)
                for on_cpu, on_gpu in zip(results["cpu"][0], results["cuda"][0]):
                    self.assertLess(abs(on_gpu["perplexity"] / on_cpu["perplexity"] - 1), 1e-3)
                    if on_cpu["kl_divergence"] is None:
                        continue
                    self.assertLess(abs(on_gpu["kl_divergence"] / on_cpu["kl_divergence"] - 1), 0.02)
                    self.assertLess(abs(on_gpu["top1_agreement"] - on_cpu["top1_agreement"]), 2e-3)
                    for a, b in zip(on_cpu["layers"], on_gpu["layers"]):
                        self.assertLess(abs(b["error"] / a["error"] - 1), 0.02)

    def test_random_checkpoints_give_the_same_results_as_on_the_cpu(self):
        folder = os.environ.get("AQ_RANDOM_CHECKPOINTS")
        if not folder:
            self.skipTest("AQ_RANDOM_CHECKPOINTS is not set; see random_checkpoints.py")
        text = self.work / "text.txt"
        text.write_text(EVAL.read_text()[:40000])
        for model in sorted(p for p in pathlib.Path(folder).iterdir() if p.is_dir()):
            out = self.quantize("cuda", model, "--nsamples", 8, "--seqlen", 128)
            perplexities = {}
            for device in ("cpu", "cuda"):
                for what, arguments in (("float32", (model,)), ("bfloat16", (model, "--dtype", "bfloat16")),
                                        ("export", (out,))):
                    told = self.ok("eval", "--model", *arguments, "--text", text, "--device", device, "--json")
                    perplexities.setdefault(what, []).append(json.loads(told)["perplexity"])
            print(model.name, {what: f"{gpu / cpu - 1:+.1e}" for what, (cpu, gpu) in perplexities.items()},
                  flush=True)
            for what, (cpu, gpu) in perplexities.items():
                with self.subTest(model.name, what=what):
                    self.assertLess(abs(gpu / cpu - 1), 0.03 if what == "bfloat16" else 1e-3)

    def test_experts_are_balanced_on_the_gpu(self):
        spreads = []
        for device in ("cpu", "cuda"):
            out = self.quantize(device, MODEL, "--balance-experts", "--nsamples", 16, "--dtype",
                                "float32")
            report = json.loads((out / "quantization_report.json").read_text())
            spreads.append(report["calibration"]["balance"]["spread_after"])
        self.assertLess(abs(spreads[1] / spreads[0] - 1), 0.05)

    def test_rounding_to_nearest_opens_no_gpu(self):
        out = self.work / "rtn"
        self.ok("--model", MODEL, "--algorithm", "rtn", "--device", "auto", "--save", out)
        report = json.loads((out / "quantization_report.json").read_text())
        self.assertEqual(report["device"], "cpu")

    def test_every_gpu_gives_the_same_bytes(self):
        second = aqhost("eval", "--model", MODEL, "--text", EVAL, "--device", "cuda:1")
        if "there are 1 GPUs" in second.stderr:
            self.skipTest("there is one GPU")
        first = self.quantize("cuda:0", MODEL, "--nsamples", 16)
        other = self.quantize("cuda:1", MODEL, "--nsamples", 16)
        report = json.loads((other / "quantization_report.json").read_text())
        self.assertEqual(report["device"], "cuda:1")
        for shard in sorted(first.glob("*.safetensors")):
            with self.subTest(shard.name):
                self.assertEqual(shard.read_bytes(), (other / shard.name).read_bytes())

    def test_device_and_peak_memory_are_in_the_report(self):
        out = self.quantize("cuda", MODEL, "--nsamples", 2)
        report = json.loads((out / "quantization_report.json").read_text())
        self.assertEqual(report["device"], "cuda:0")
        totals = report["totals"]
        self.assertGreater(totals["peak_device_bytes"], 1 << 20)
        self.assertEqual(set(totals["device_memory"]), set(totals["seconds"]) - {"total"})
        self.assertGreater(totals["device_memory"]["solve"], 1 << 20)
        self.assertLess(totals["device_memory"]["prepare"], totals["peak_device_bytes"])
        self.assertLessEqual(max(totals["device_memory"].values()), totals["peak_device_bytes"])
        self.assertIn("GPU memory", (out / "report.html").read_text())
        self.fails(1, "layer weights, the inputs of modules", "--model", MODEL, "--calib", CALIB,
                   "--device", "cuda", "--memory-limit", 1, "--save", self.work / "no")
        self.assertFalse((self.work / "no").exists())

    def test_hidden_states_that_do_not_fit_are_held_in_the_memory_of_the_host(self):
        recipe = self.work / "r.yaml"
        for default in ("{wq: int4, group_size: 128}",
                        "{wq: int3, group_size: 64, refine: {steps: 20, batch: 8}}"):
            with self.subTest(default):
                recipe.write_text(f"default: {default}\n")
                options = ("--config", recipe, "--calib", CALIB, "--device", "cuda", "--nsamples", 256,
                           "--seqlen", 512, "--overwrite")
                refused = aqhost("--model", MODEL, *options, "--memory-limit", 1, "--save", self.work / "no")
                limit = re.search(r"take (\d+) MB", refused.stderr)[1]
                runs = {}
                for name, more in (("whole", ()), ("limited", ("--memory-limit", limit))):
                    out = self.work / name
                    done = aqhost("--model", MODEL, *options, *more, "--save", out)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    self.assertEqual("they are held in the host's memory" in done.stderr,
                                     name == "limited", done.stderr)
                    report = json.loads((out / "quantization_report.json").read_text())
                    runs[name] = (self.perplexity(out), report["totals"]["peak_device_bytes"])
                (whole, more), (limited, less) = runs["whole"], runs["limited"]
                print(f"{default}: peak {more / 1e6:.0f} MB, with --memory-limit {limit} {less / 1e6:.0f} MB; "
                      f"perplexity {whole:.4f}, {limited:.4f}", flush=True)
                self.assertLess(less, more)
                # fewer experts are solved at once, so a GPU adds in another order
                self.assertLess(abs(limited / whole - 1), 0.01)


if __name__ == "__main__":
    tried = aqhost("eval", "--model", MODEL, "--text", EVAL, "--device", "cuda").stderr
    if "--device cuda" in tried:
        print("SKIPPED:", tried.strip())
        sys.exit(77)
    unittest.main()
