"""Tests that llama.cpp loads the GGUF files that aqhost writes, and computes from them what aqhost does.

ctest runs this file with AQ_BUILD set to the build folder and AQ_LLAMA_CPP to the llama.cpp that
`tools/test --engines` builds; it is skipped elsewhere. llama_probe.cc, which the test compiles, runs
llama.cpp on ids, so that both programs see the same windows, and gives its logits.
"""
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import numpy
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from common import BUILD, LENGTH, MODELS, TESTS, WINDOWS, aqhost, window_ids, without_avx2

sys.path.append(str(TESTS / "interop"))
import gguf_checkpoints
import random_checkpoints

LLAMA_CPP = pathlib.Path(os.environ["AQ_LLAMA_CPP"])
# what llama.cpp has kernels for, each with the type that the file must have
RECIPES = {
    "Q4_0": "{default: {wq: int4, group_size: 32}}",
    "Q4_1": "{default: {wq: int4, group_size: 32, symmetric: false}}",
    "Q5_0": "{default: {wq: int5, group_size: 64}}",
    "Q5_1": "{default: {wq: int5, group_size: 32, symmetric: false}}",
    "Q8_0": "{default: {wq: int8, group_size: 32}}",
    "IQ4_NL": "{default: {wq: iq4_nl}}",
    "MXFP4": "{default: {wq: mxfp4}}",
    "NVFP4": "{default: {wq: nvfp4}}",
    "MXFP4, attention in Q8_0": "{default: {wq: mxfp4}, overrides: [{pattern: '*.self_attn.*', wq: int8,"
                                " group_size: -1}]}",
    "Q4_0, attention in NVFP4": "{default: {wq: int4, group_size: 64},"
                                " overrides: [{pattern: '*.self_attn.*', wq: nvfp4}]}",
}
# Their blocks of 256 weights divide the rows of few matrices of the small models; these are in mixtral.
K_QUANTS = {f"{wq.upper()} in down projections":
            f"{{default: {{wq: int4, group_size: 32}}, overrides: [{{pattern: '*.w2', wq: {wq}}}]}}"
            for wq in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")}
TEXT = """In the beginning God created the heaven and the earth. (Genesis 1:1)

  And it's 1234567 days later -- we'll see: x = {'a': [1, 22, 333]};\tnaïve café, 你好, δοκιμή, 🙂!
"""


class LlamaCpp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.work = pathlib.Path(folder.name)
        cls.program = cls.work / "llama_probe"
        cls.run_program("c++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-isystem{LLAMA_CPP}/include",
                        TESTS / "engines/llama_probe.cc", "-o", cls.program, f"-L{LLAMA_CPP}/lib", "-lllama",
                        f"-Wl,-rpath,{LLAMA_CPP}/lib")
        cls.models, cls.ids, cls.in_float32 = {}, {}, {}
        for name in MODELS:
            cls.models[name] = TESTS / f"models/{name}-tiny"
            cls.ids[name] = window_ids(cls.models[name])
            numpy.save(cls.work / f"{name}.npy", cls.ids[name].reshape(-1))
            cls.in_float32[name] = cls.float32_copy(name)

    @classmethod
    def float32_copy(cls, name):
        """The model with its weights in float32, in which llama.cpp multiplies without rounding inputs, and
        its GGUF file."""
        copy = cls.work / f"{name}-float32"
        copy.mkdir()
        for file in cls.models[name].iterdir():
            if file.suffix == ".safetensors":
                tensors = {n: t.float() for n, t in load_file(file).items()}
                save_file(tensors, copy / file.name, {"format": "pt"})
            else:
                (copy / file.name).write_bytes(file.read_bytes())
        return copy, cls.converted(copy, copy.name)

    @classmethod
    def converted(cls, checkpoint, name):
        aqhost("convert", checkpoint, "--to", "gguf", "--out", cls.work / f"{name}.gguf")
        return cls.work / f"{name}.gguf"

    @staticmethod
    def run_program(*arguments, given=b""):
        done = subprocess.run([str(a) for a in arguments], input=given, capture_output=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{arguments}: {done.returncode} {done.stderr.decode()}")
        return done.stdout

    def probe(self, file, what, *number, given):
        if not isinstance(given, bytes):
            given = numpy.asarray(given, dtype=numpy.int32).tobytes()
        return self.run_program(self.program, file, what, *number, given=given)

    def logits(self, file, ids):
        """llama.cpp's logits [windows, tokens, vocabulary] for ids [windows, tokens]."""
        answer = numpy.frombuffer(self.probe(file, "logits", ids.shape[1], given=ids), dtype=numpy.float32)
        return answer.reshape(*ids.shape, -1)

    def greedy(self, file, ids, count):
        return numpy.frombuffer(self.probe(file, "greedy", count, given=ids), dtype=numpy.int32).tolist()

    def perplexity(self, file, name):
        """llama.cpp's, of each next token inside its window, as `aqhost eval` counts."""
        ids = self.ids[name]
        logits = self.logits(file, ids)[:, :-1].astype(numpy.float64)
        of_next = numpy.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
        top = logits.max(-1)
        logs = of_next - top - numpy.log(numpy.exp(logits - top[..., None]).sum(-1))
        return math.exp(-logs.mean())

    def perplexity_in_aqhost(self, checkpoint, name):
        told = json.loads(aqhost("eval", "--model", checkpoint, "--text", self.work / f"{name}.npy",
                                 "--window", LENGTH, "--json", *self.plugins()))
        self.assertEqual(told["tokens"], WINDOWS * (LENGTH - 1))
        return told["perplexity"]

    @staticmethod
    def plugins():
        """One format is a plugin of another test."""
        return "--plugin-dir", BUILD / "tests/plugins-export"

    def compare(self, name, what, file, checkpoint, tolerance):
        there, here = self.perplexity(file, name), self.perplexity_in_aqhost(checkpoint, name)
        print(f"{name} {what}: llama.cpp {there:.4f}, aqhost {here:.4f}, {100 * (there / here - 1):+.3f} %", flush=True)
        self.assertLess(abs(there / here - 1), tolerance)

    def check_original(self, name):
        checkpoint, file = self.in_float32[name]
        self.compare(name, "original in F32", file, checkpoint, 2e-5)
        self.compare_logits(name, "original in F32", file, checkpoint, self.ids[name][0], 1e-4)

    def compare_logits(self, name, what, file, checkpoint, ids, tolerance, summary=numpy.max):
        text, dump = self.work / "ids.txt", pathlib.Path(tempfile.mkdtemp(dir=self.work))
        text.write_text(" ".join(map(str, ids)))
        self.run_program(BUILD / "bin/interop_dump", BUILD / "plugins", checkpoint, text, dump, "float32")
        here = load_file(next(dump.glob("*.safetensors")))["logits"].numpy()
        there = self.logits(file, ids[None])[0]
        errors = numpy.linalg.norm(there - here, axis=-1) / numpy.linalg.norm(here, axis=-1)
        print(f"{name} {what}: the logits of a token differ by {numpy.median(errors):.1e} of their norm, at most "
              f"by {errors.max():.1e}", flush=True)
        self.assertLess(summary(errors), tolerance)

    def check_random(self, name):
        """A family of which there is only a checkpoint with random weights."""
        original = self.work / name
        gguf_checkpoints.write(name, original)
        case = gguf_checkpoints.CASES[name]
        ids = random_checkpoints.reference(random_checkpoints.load(case, original), LENGTH)[0].numpy()
        self.compare_logits(name, "original", self.converted(original, name), original, ids, 1e-4)
        self.models[name] = original
        self.compare_tokens(original, self.work / f"{name}.gguf")
        # llama.cpp rounds inputs to 8 bits, and random routers then choose other experts for some tokens
        for what in ("Q8_0", "NVFP4" if name == "qwen3-moe" else "MXFP4"):
            out = self.export(name, RECIPES[what])
            self.compare_logits(name, what, out / "model.gguf", out, ids, 0.1, numpy.median)

    def check_bfloat16(self, name):
        """llama.cpp rounds the inputs of these matrices to bfloat16."""
        self.compare(name, "original in BF16", self.converted(self.models[name], name), self.models[name], 0.005)

    def export(self, name, recipe):
        (self.work / "recipe.yaml").write_text(recipe)
        out = self.work / "out"
        aqhost("quantize", "--model", self.models[name], "--config", self.work / "recipe.yaml", "--algorithm",
               "rtn", "--export", "gguf", "--save", out, "--overwrite", *self.plugins())
        return out

    def check_recipe(self, name, what):
        """llama.cpp rounds the inputs of these matrices to 8 bits, in blocks of 32, or of 256 for K-quants."""
        out = self.export(name, {**RECIPES, **K_QUANTS}[what])
        self.compare(name, what, out / "model.gguf", out, 0.005)

    def check_greedy(self, name):
        """On a prompt after which no choice is close, so that rounding to Q8_0 changes none."""
        _, original = self.in_float32[name]
        rounded = self.export(name, RECIPES["Q8_0"]) / "model.gguf"
        for window in self.ids[name]:
            prompt, count = window[:32], 8
            chosen = self.greedy(original, prompt, count)
            logits = self.logits(original, numpy.concatenate((prompt, chosen))[None])[0, 31:-1]
            self.assertEqual(logits.argmax(-1).tolist(), chosen)  # step by step or at once is the same
            best = numpy.sort(logits, -1)
            if (best[:, -1] - best[:, -2]).min() > 0.2:
                self.assertEqual(self.greedy(rounded, prompt, count), chosen)
                return
        self.fail("close choices after every prompt")

    def check_tokens(self, name):
        self.compare_tokens(*self.in_float32[name])

    def compare_tokens(self, checkpoint, file):
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        text = TEXT + (TESTS / "data/kjv_eval.txt").read_text()[:20000]
        tokens = numpy.frombuffer(self.probe(file, "tokens", given=text.encode()), dtype=numpy.int32)
        self.assertEqual(tokens.tolist(), tokenizer.encode(text).ids)

    def test_several_files(self):
        _, one = self.in_float32["olmoe"]
        checkpoint, ids = self.in_float32["olmoe"][0], self.ids["olmoe"][:1]
        told = aqhost("convert", checkpoint, "--to", "gguf", "--out", self.work / "several.gguf",
                      "--max-shard-size", 2, "--json")
        files = json.loads(told)["files"]
        self.assertGreater(len(files), 3)
        self.assertTrue((self.logits(files[0], ids) == self.logits(one, ids)).all())


def add_test(name, what, check, *arguments):
    setattr(LlamaCpp, re.sub(r"\W+", "_", f"test_{name}_{what}"), lambda self: check(self, name, *arguments))


for n in MODELS:
    for label, checked in (("original", LlamaCpp.check_original), ("bfloat16", LlamaCpp.check_bfloat16),
                           ("greedy", LlamaCpp.check_greedy), ("tokens", LlamaCpp.check_tokens)):
        add_test(n, label, checked)
    for format_ in (*RECIPES, *(K_QUANTS if n == "mixtral" else ())):
        if format_ != "NVFP4" or n == "mixtral":  # in others, llama.cpp has NVFP4 in attention alone
            add_test(n, format_, LlamaCpp.check_recipe, format_)


for n in gguf_checkpoints.CASES:
    add_test(n, "random weights", LlamaCpp.check_random)


if __name__ == "__main__":
    missing = without_avx2() if (LLAMA_CPP / "lib/libllama.so").exists() else \
        f"there is no llama.cpp in \"{os.environ['AQ_LLAMA_CPP']}\"; tools/test --engines builds it, but not if CI=true"
    if missing:
        print(f"SKIPPED: {missing}")
        sys.exit(77)
    unittest.main()
