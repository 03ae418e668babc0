"""A model may be larger than the memory that its quantization takes: only one layer is in memory at a
time."""
import json
import os
import re
import resource
import subprocess
import unittest

from test_cli import AQHOST, BUILD, CALIB, ROOT, WorkFolder, aqhost, shards

LAYERS = 16


class Memory(WorkFolder):
    def model(self, layers, **others):
        out = self.work / f"model-{layers}"
        sizes = dict(hidden_size=512, intermediate_size=512, num_attention_heads=4,
                     num_key_value_heads=4, num_experts=32, num_experts_per_tok=4, vocab_size=2048)
        sizes |= others
        command = [ROOT / "tools/synthesize", out, "--like", "olmoe-1b-7b", "--layers", layers]
        for key, value in sizes.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        return out

    @unittest.skipIf(os.environ.get("AQ_SANITIZE"), "sanitizers take memory of their own")
    def test_a_model_larger_than_what_may_be_allocated_is_quantized(self):
        model = self.model(LAYERS)
        size = next(model.glob("*.safetensors")).stat().st_size
        recipe = self.work / "recipe.yaml"  # GPTQ solves experts 0 to 9 of 32, which saves a minute
        recipe.write_text("default: {wq: int4, group_size: 128}\n"
                          'overrides: [{pattern: "*.experts.??.*", skip: true}]\n')
        for options in (("--algorithm", "rtn"),
                        ("--calib", CALIB, "--nsamples", 2, "--memory-limit", 200, "--config", recipe)):
            command = [AQHOST, "--plugin-dir", BUILD / "plugins", "--model", model, "--save",
                       self.work / "out", "--overwrite", "--device", "cpu", "--threads", 2, "--json",
                       *options]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA,
                                                                        (size, size)))
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertLess(json.loads(done.stdout)["peak_memory_bytes"], size)

    def test_a_limit_below_what_hidden_states_need_is_an_error(self):
        self.fails(1, "layer weights, the inputs of modules and the modules that are solved at once take", "--model", self.model(1),
                   "--calib", CALIB, "--nsamples", 2, "--memory-limit", 10, "--device", "cpu",
                   "--save", self.work / "out")

    def test_a_limit_that_splits_the_rows_of_modules_changes_no_byte(self):
        model = self.model(1, hidden_size=256, intermediate_size=1024, num_experts=2,
                           num_experts_per_tok=1, vocab_size=4096)
        # nvfp4 has a scale for the whole matrix
        for override in ("wq: nvfp4, group_size: 16", "wq: int4, group_size: 64"):
            recipe = self.work / "recipe.yaml"
            recipe.write_text("default: {%s}\noverrides: [{pattern: lm_head, skip: false}]\n" % override)

            def run(name, *options):
                return ("--model", model, "--config", recipe, "--calib", CALIB, "--nsamples", 4,
                        "--seqlen", 64, "--device", "cpu", "--threads", 2, "--overwrite",
                        "--save", self.work / name, *options)

            limit = 1  # what the message says is raised until it is the least limit that is accepted
            while True:
                done = aqhost(*run("split", "--memory-limit", limit))
                if done.returncode == 0:
                    break
                limit = max(limit + 1, int(re.search(r"take (\d+) MB", done.stderr)[1]))
            self.assertLess(limit, 60)  # at once, lm_head takes 28 x 256^2 + 60 x 256 x 4096 = 65 MB
            self.ok(*run("whole"))
            self.assertEqual(shards(self.work / "split"), shards(self.work / "whole"))

    @unittest.skipIf(os.environ.get("AQ_SANITIZE"), "sanitizers take memory of their own")
    def test_hidden_states_that_do_not_fit_are_held_in_a_file_and_change_no_byte(self):
        model = self.model(1, hidden_size=256, intermediate_size=64, num_attention_heads=2,
                           num_key_value_heads=2, num_experts=2, num_experts_per_tok=1)

        def run(name, megabytes, *options):
            command = [AQHOST, "--plugin-dir", BUILD / "plugins", "--model", model, "--calib", CALIB,
                       "--nsamples", 128, "--seqlen", 1024, "--dtype", "float32", "--device", "cpu",
                       "--threads", 2, "--save", self.work / name, *options]
            limits = (megabytes * 1_000_000,) * 2 if megabytes else (resource.RLIM_INFINITY,) * 2
            return subprocess.run(list(map(str, command)), capture_output=True, text=True,
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limits))

        # the hidden states take 201 MB: those of the quantized model, and half as many of the original
        self.assertNotEqual(run("too-large", 640).returncode, 0)
        spilled = run("spilled", 640, "--memory-limit", 300)
        self.assertEqual(spilled.returncode, 0, spilled.stderr)
        self.assertIn("they are held in a file", spilled.stderr)
        whole = run("whole", None)
        self.assertEqual(whole.returncode, 0, whole.stderr)
        self.assertNotIn("they are held in a file", whole.stderr)
        self.assertEqual(shards(self.work / "spilled"), shards(self.work / "whole"))


if __name__ == "__main__":
    unittest.main()
