"""Tests that exports which llm-compressor wrote become GGUF files with the weights that compressed-tensors
decodes from them.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates. The exports are in the folder llm_compressor; its README.md says how they were made.
"""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import gguf
import numpy
import torch

from test_interop import decode

EXPORTS = pathlib.Path(__file__).resolve().parent / "llm_compressor"
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
TYPES = {"int4": "Q4_0", "int4-zeros": "Q4_1", "mxfp4": "MXFP4", "nvfp4": "NVFP4"}
PARTS = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
         "up_proj": "ffn_up", "down_proj": "ffn_down"}


def name_in_file(module):
    """The name of the tensor that holds a module, and the number of the expert in it."""
    layer, part = module.split(".")[2], module.rsplit(".", 1)[1]
    expert = module.split(".experts.")[1].split(".")[0] if ".experts." in module else None
    return f"blk.{layer}.{PARTS[part]}{'' if expert is None else '_exps'}", int(expert or 0)


class LlmCompressor(unittest.TestCase):
    def converted(self, export):
        """The tensors of the GGUF file that is made of the export, and what the program says."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        checkpoint = pathlib.Path(folder.name) / export
        shutil.copytree(EXPORTS / export, checkpoint)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EXPORTS / file, checkpoint)
        out = checkpoint / "m.gguf"
        done = subprocess.run([BUILD / "bin/aqhost", "convert", checkpoint, "--to", "gguf", "--out", out, "--json",
                               "--plugin-dir", BUILD / "plugins"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return {t.name: t for t in gguf.GGUFReader(out).tensors}, json.loads(done.stdout)

    def check(self, export):
        tensors, told = self.converted(export)
        decoded = decode(EXPORTS / export)
        self.assertEqual(len(decoded), 2 * (4 + 3 * 4))
        for module, weight in decoded.items():
            stem, expert = name_in_file(module)
            tensor = tensors[f"{stem}.weight"]
            self.assertEqual(tensor.tensor_type.name, TYPES[export])
            value = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1, *weight.shape)[expert]
            if export == "nvfp4":
                value = value * gguf.dequantize(tensors[f"{stem}.scale"].data, gguf.GGMLQuantizationType.F32)[expert]
            self.compare(export, module, value, weight)
        self.assertEqual(told["rounded_scales"], 0)
        self.assertEqual(told["rounded_minima"] > 0, export == "int4-zeros")

    def compare(self, export, module, value, weight):
        """compressed-tensors computes in bfloat16 or float32, and rounds what it decodes to that type."""
        self.assertGreater(weight.abs().max(), 0.01)
        if export in ("int4", "mxfp4"):  # one product, of numbers that both have
            self.assertTrue((torch.from_numpy(value).to(weight.dtype) == weight).all(), module)
            return
        # NVFP4 has a quotient of scales. In Q4_1, scale x zero point is rounded to float16.
        expected = weight.float().numpy()
        tolerance = torch.finfo(weight.dtype).eps * numpy.abs(expected)
        if export == "int4-zeros":
            tolerance += 2.0 ** -11 * numpy.abs(expected).max()
        self.assertLessEqual((numpy.abs(value - expected) - tolerance).max(), 0, module)


for name in TYPES:
    setattr(LlmCompressor, f"test_{name.replace('-', '_')}", lambda self, n=name: self.check(n))


if __name__ == "__main__":
    unittest.main()
