"""Compares the spectra behind `aqhost allocate --score alpha` with an implementation in NumPy.

ctest runs this file with AQ_BUILD set to the build folder, in the Python environment of requirements.txt.
"""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import numpy as np
from safetensors.torch import load_file

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])


def alpha_of(weight):
    """Hill's estimate for the eigenvalues of B B^T of square blocks B of a weight (arXiv:2606.04980)."""
    side = min(128, *weight.shape)
    blocks = [weight[r:r + side, c:c + side] for r in range(0, weight.shape[0] - side + 1, side)
              for c in range(0, weight.shape[1] - side + 1, side)]
    if len(blocks) > 256:
        blocks = [blocks[i * len(blocks) // 256] for i in range(256)]
    values = np.sort(np.concatenate([np.linalg.svd(b, compute_uv=False) ** 2 for b in blocks]))
    k = min(len(values) - 1, max(10, len(values) // 10))
    return 1 + k / np.log(values[-k:] / values[-k - 1]).sum()


class Alpha(unittest.TestCase):
    def run_on(self, model, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [BUILD / "bin/aqhost", "allocate", "--model", model, "--bits", "4", "--score", "alpha",
                 "--save-recipe", pathlib.Path(folder) / "r.yaml", "--plugin-dir", BUILD / "plugins", "--json",
                 *arguments], capture_output=True, text=True, check=True)
            return json.loads(done.stdout), (pathlib.Path(folder) / "r.yaml").read_bytes()

    def test_every_alpha_is_that_of_numpy(self):
        for name in ("olmoe-tiny", "qwen2-moe-tiny"):
            model = TESTS / "models" / name
            weights = {}
            for file in model.glob("*.safetensors"):
                weights.update(load_file(file))
            result, _ = self.run_on(model)
            self.assertGreater(len(result["alphas"]), 20)
            for module, alpha in result["alphas"].items():
                expected = alpha_of(weights[module + ".weight"].double().numpy())
                self.assertLess(abs(alpha / expected - 1), 1e-6, module)

    def test_the_scores_are_those_of_alphaq(self):
        model = TESTS / "models/olmoe-tiny"
        weights = {}
        for file in model.glob("*.safetensors"):
            weights.update(load_file(file))
        result, _ = self.run_on(model, "--candidates", "int3,int8")
        median = np.median(list(result["alphas"].values()))
        for part in result["parts"]:
            for choice, bits in zip(part["choices"], (3, 8)):
                expected = sum(w.size * w.var() * median / result["alphas"][name] * 4.0 ** -bits
                               for name in part["modules"]
                               for w in [weights[name + ".weight"].double().numpy()])
                self.assertLess(abs(choice["score"] / expected - 1), 1e-5, part["name"])

    def test_the_same_checkpoint_gives_the_same_recipe(self):
        model = TESTS / "models/olmoe-tiny"
        self.assertEqual(self.run_on(model)[1], self.run_on(model, "--threads", "1")[1])


if __name__ == "__main__":
    unittest.main()
