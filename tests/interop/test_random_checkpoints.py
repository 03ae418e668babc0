"""Compares aqhost with transformers on the checkpoints of random_checkpoints.py: logits and chosen experts
of the checkpoint itself, and logits of its exports by rounding and by GPTQ.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates.
"""
import concurrent.futures
import os
import pathlib
import subprocess
import tempfile
import unittest

import torch

import random_checkpoints
from stored import load_folder

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
RECIPE = "default: {wq: int4, group_size: 32}\n"
ALGORITHMS = {"rtn": ["--algorithm", "rtn"],
              "gptq": ["--calib", TESTS / "data/kjv_calib.txt", "--nsamples", 8, "--seqlen", 64]}
# transformers 5.17 reads the experts of a layer only as one dense tensor
NOT_LOADED = {"gpt_oss", "granitemoe"}


def run(*arguments):
    """Runs a program on one core, since others run beside it. Returns its output, or fails with its error."""
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise AssertionError(f"{arguments}: {done.stdout}{done.stderr}")
    return done.stdout


def dump(model, ids, out):
    """Returns the tensors, the logits and the chosen experts of a window, as aqhost has them."""
    file = out.with_suffix(".ids")
    file.write_text(" ".join(map(str, ids.tolist())))
    run(BUILD / "bin/interop_dump", BUILD / "plugins", model, file, out, "float32")
    return load_folder(out)


def export(model, algorithm, out):
    """Quantizes a checkpoint and verifies the export; returns its folder."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(RECIPE)
    run(BUILD / "bin/aqhost", "--plugin-dir", BUILD / "plugins", "--model", model, "--config", recipe, "--save",
        out, *ALGORITHMS[algorithm])
    run(BUILD / "bin/aqhost", "verify", "--plugin-dir", BUILD / "plugins", "--model", out)
    return out


def distance(logits, expected):
    return ((logits - expected).norm() / expected.norm()).item()


class Checkpoint:
    """The tests of one checkpoint. aqhost works on it in the background while transformers runs here."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.work = pathlib.Path(folder.name)
        cls.model = cls.work / "model"
        random_checkpoints.write(cls.case, cls.model)
        pool = concurrent.futures.ThreadPoolExecutor(2)
        cls.addClassCleanup(pool.shutdown)
        cls.exports = {a: pool.submit(export, cls.model, a, cls.work / a) for a in ALGORITHMS}
        theirs = random_checkpoints.load(cls.case, cls.model)
        cls.expected, cls.ours = {}, {}
        for tokens in random_checkpoints.WINDOWS:
            cls.expected[tokens] = ids, *_ = random_checkpoints.reference(theirs, tokens)
            cls.ours[tokens] = pool.submit(dump, cls.model, ids, cls.work / f"dump-{tokens}")

    def test_logits(self):
        for tokens in random_checkpoints.WINDOWS:
            with self.subTest(tokens=tokens):
                _, logits, _ = self.expected[tokens]
                self.assertLess(distance(self.ours[tokens].result()["logits"], logits), 1e-4)

    def test_chosen_experts(self):
        for tokens in random_checkpoints.WINDOWS:
            ours = self.ours[tokens].result()
            chosen = {int(n.split(".")[1]): t for n, t in ours.items() if n.startswith("routes.")}
            _, _, expected = self.expected[tokens]
            self.assertEqual(set(chosen), set(expected))
            for layer, ids in expected.items():
                with self.subTest(tokens=tokens, layer=layer):
                    self.assertEqual(chosen[layer].shape, ids.shape)
                    wrong = (chosen[layer].sort(-1)[0] != ids.sort(-1)[0]).any(-1)
                    self.assertEqual(wrong.sum().item(), 0, "tokens with other experts")

    def check_export(self, algorithm):
        out = self.exports[algorithm].result()
        stored, original = load_folder(out), load_folder(self.model)
        for name in original:
            if random_checkpoints.never_run(name, self.case):
                self.assertTrue(torch.equal(stored[name], original[name]), f"{name} has changed")
        self.assertTrue(any(n.endswith("weight_packed") for n in stored))
        ids, before, _ = self.expected[random_checkpoints.WINDOWS[0]]
        ours = dump(out, ids, self.work / f"dump-{algorithm}")["logits"]
        self.assertLess(distance(ours, before), 1.1)  # it would be 1.4 if they had nothing in common
        if self.case.model_type in NOT_LOADED:
            return
        with torch.no_grad():
            theirs = random_checkpoints.load(self.case, out, experts=None)(ids[None]).logits[0]
        # transformers decodes the experts to bfloat16, so a few tokens are sent to other experts
        apart = (theirs - ours).norm(dim=1) / ours.norm(dim=1)
        self.assertLess(apart.median().item(), 0.03)

    def test_rounded_export(self):
        self.check_export("rtn")

    def test_gptq_export(self):
        self.check_export("gptq")


for name, case in random_checkpoints.CASES.items():
    globals()[name] = type(name, (Checkpoint, unittest.TestCase), {"case": case})
del name, case


def setUpModule():
    from transformers import logging
    logging.set_verbosity_error()  # the tensors that are never run would be listed
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # aqhost runs beside


if __name__ == "__main__":
    unittest.main()
