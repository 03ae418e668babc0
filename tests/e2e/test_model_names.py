"""Tests of what --model takes: a folder, or a model in the cache of the Hugging Face Hub."""
import json
import os
import shutil
import unittest
from unittest import mock

from test_cli import EVAL, MODEL, WorkFolder, shards

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class ModelNames(WorkFolder):
    def setUp(self):
        super().setUp()
        self.cache = self.work / "hub"
        self.repository = self.cache / "models--org--olmoe-tiny"
        self.snapshot = self.repository / "snapshots" / COMMIT
        self.snapshot.mkdir(parents=True)
        (self.repository / "blobs").mkdir()
        (self.repository / "refs").mkdir()
        (self.repository / "refs/main").write_text(COMMIT)
        for number, file in enumerate(sorted(MODEL.iterdir())):
            shutil.copyfile(file, self.repository / f"blobs/{number}")
            (self.snapshot / file.name).symlink_to(f"../../blobs/{number}")
        cache = mock.patch.dict(os.environ, {"HF_HUB_CACHE": str(self.cache)})
        cache.start()
        self.addCleanup(cache.stop)

    def test_every_command_takes_a_model_of_the_cache(self):
        name = "org/olmoe-tiny"
        text = self.work / "text.txt"
        text.write_text(EVAL.read_text()[:4000])
        lines = self.work / "lines.jsonl"
        lines.write_text('"In the beginning"\n')
        for option in ("--model", "--config-only"):
            self.assertEqual(len(json.loads(self.ok("plan", option, name, "--json"))["layers"]), 3)
        for command in (["inspect", "--model"],
                        ["tokenize", "--jsonl", lines, "--no-special-tokens", "--model"]):
            plugins = {"plugins": None} if command[0] == "tokenize" else {}
            self.assertEqual(self.ok(*command, name, **plugins), self.ok(*command, self.snapshot, **plugins))
        self.assertIn("KL divergence 0.00000", self.ok("eval", "--model", name, "--against", MODEL, "--text", text,
                                                       "--window", 64))
        out = self.ok("compare", MODEL, name, "--against", f"{name}@{COMMIT}", "--text", text, "--window", 64)
        self.assertEqual(out.count(" 0.00000 "), 2, out)

    def test_an_export_of_a_model_of_the_cache_has_files_and_no_links(self):
        results = []
        for number, model in enumerate((MODEL, "org/olmoe-tiny", self.repository, self.snapshot)):
            out = self.work / f"out{number}"
            self.ok("--model", model, "--algorithm", "rtn", "--save", out)
            self.assertFalse([file for file in out.iterdir() if file.is_symlink()])
            results.append(shards(out))
        self.assertEqual(results[1:], results[:1] * 3)

    def test_a_model_that_is_missing_is_said_with_the_command_that_fetches_it(self):
        self.fails(1, f"org/other: there is no such folder, and the cache {self.cache} has no model of this id; "
                      "hf download org/other fetches it", "inspect", "--model", "org/other")
        self.fails(1, "hf download org/other config.json", "plan", "--config-only", "org/other")
        self.fails(1, "hf download org/other", "eval", "--model", MODEL, "--against", "org/other", "--text", EVAL)
        (self.snapshot / "model.safetensors").resolve().unlink()
        self.fails(1, "the snapshot is not complete, for model.safetensors is missing; hf download org/olmoe-tiny",
                   "verify", "--model", "org/olmoe-tiny")


if __name__ == "__main__":
    unittest.main()
