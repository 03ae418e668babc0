"""What the tests of serving engines share: the program, and the windows of ids on which both sides are run."""
import os
import pathlib
import subprocess

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
WINDOWS, LENGTH = 20, 256
MODELS = ("olmoe", "mixtral", "qwen2-moe", "deepseek-moe")


def aqhost(*arguments):
    command = [BUILD / "bin/aqhost", *arguments, "--plugin-dir", BUILD / "plugins"]
    done = subprocess.run([str(a) for a in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout


def window_ids(model):
    """Returns the ids [WINDOWS, LENGTH] of the text on which a checkpoint is measured."""
    import numpy
    from tokenizers import Tokenizer
    text = (TESTS / "data/kjv_eval.txt").read_text()
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids[:WINDOWS * LENGTH]
    return numpy.array(ids, dtype=numpy.int64).reshape(WINDOWS, LENGTH)


def without_avx2():
    """Why programs that were compiled for AVX2 do not run here; "" if they do."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    return "" if "avx2" in flags else "this CPU has no AVX2"
