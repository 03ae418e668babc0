"""Tests that checkpoints which are published quantized are read exactly, and can be evaluated and quantized
anew: FP8 blocks as of DeepSeek-V3, and int4 and FP8 of compressed-tensors as of Kimi-K2-Thinking and
GLM-4.5. The encoders and decoders here are independent of those of aqhost.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates.
"""
import json
import shutil
import subprocess
import unittest

import numpy
import torch
from safetensors.torch import load_file, save_file

import test_families as families
from stored import load_folder

# neither the width nor the inner size is a multiple of a block
SIZES = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
FAMILY = {
    "olmoe": {"intermediate_size": 160, "num_experts": 4},
    "qwen2_moe": {"moe_intermediate_size": 160, "shared_expert_intermediate_size": 320,
                  "num_experts": 4},
}
BLOCK = 128
RECIPE = """
default: {wq: int4, group_size: 32}
overrides: [{pattern: '*.self_attn.*', skip: true}, {pattern: '*.experts.1.up_proj', skip: true}]
"""


def is_quantized(name):
    """Whether a tensor is one that the checkpoints store quantized: those of linear maps and of what is
    never run, but neither routers nor lm_head."""
    return name.endswith("_proj.weight") or "mtp" in name


class Fp8Blocks:
    """DeepSeek-V3, Qwen3-FP8, MiniMax-M2."""

    rounds_inputs = False

    def __init__(self, scale_type):
        self.scale_type = scale_type
        self.config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                       "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": ["lm_head"]}

    def encode(self, name, weight):
        rows, cols = weight.shape
        blocks = [[weight[r:r + BLOCK, c:c + BLOCK] for c in range(0, cols, BLOCK)]
                  for r in range(0, rows, BLOCK)]
        scales = torch.tensor([[b.abs().max().item() / 448 for b in row] for row in blocks])
        if self.scale_type == torch.float8_e8m0fnu:
            scales = torch.exp2(torch.ceil(torch.log2(scales)))
        scales = scales.to(self.scale_type)
        codes = [[(b / scales[r, c].float()).clamp(-448, 448).to(torch.float8_e4m3fn).float()
                  for c, b in enumerate(row)] for r, row in enumerate(blocks)]
        codes = torch.cat([torch.cat(row, dim=1) for row in codes]).to(torch.float8_e4m3fn)
        return {name: codes, name + "_scale_inv": scales}

    def decode(self, name, parts):
        codes, scales = parts[name].float(), parts[name + "_scale_inv"].float()
        spread = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return codes * spread[:codes.shape[0], :codes.shape[1]]


class CompressedTensors:
    def __init__(self, kind, weights, activations=None):
        self.rounds_inputs = activations is not None  # by every engine that runs the checkpoint
        self.config = {
            "quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed",
            "ignore": ["lm_head", "re:.*mlp\\.gate$", "re:.*shared_expert_gate$"],
            "kv_cache_scheme": None,
            "config_groups": {"group_0": {
                "input_activations": activations, "output_activations": None, "targets": ["Linear"],
                "weights": {"actorder": None, "block_structure": None, "dynamic": False,
                            "observer": "minmax", "observer_kwargs": {}, "symmetric": True, **weights}}}}


class PackedInt4(CompressedTensors):
    """Kimi-K2-Thinking, whose weight_shape has 32 bits."""

    def __init__(self):
        super().__init__("pack-quantized",
                         {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32})

    def encode(self, name, weight):
        grouped = weight.unflatten(1, (-1, 32))
        scales = (grouped.abs().amax(2) / 7.5).to(torch.bfloat16)
        codes = (grouped / scales.float()[..., None]).round().clamp(-8, 7).flatten(1)
        nibbles = (codes + 8).to(torch.int64).numpy().reshape(weight.shape[0], -1, 8)
        words = (nibbles << numpy.arange(0, 32, 4)).sum(axis=2).astype(numpy.uint32).view(numpy.int32)
        return {name + "_packed": torch.from_numpy(words), name + "_scale": scales,
                name + "_shape": torch.tensor(weight.shape, dtype=torch.int32)}

    def decode(self, name, parts):
        words = parts[name + "_packed"].numpy().view(numpy.uint32)
        nibbles = (words[:, :, None] >> numpy.arange(0, 32, 4, dtype=numpy.uint32) & 15).astype(numpy.float32)
        codes = torch.from_numpy(nibbles).flatten(1) - 8
        return codes * parts[name + "_scale"].float().repeat_interleave(32, 1)


class Fp8Rows(CompressedTensors):
    """GLM-4.5-FP8: a scale for each row, and inputs that engines round to FP8."""

    def __init__(self):
        kind = {"num_bits": 8, "type": "float"}
        super().__init__("float-quantized", {**kind, "strategy": "channel"},
                         {**kind, "strategy": "token", "dynamic": True, "symmetric": True})

    def encode(self, name, weight):
        scales = weight.abs().amax(1, keepdim=True) / 448
        return {name: (weight / scales).to(torch.float8_e4m3fn), name + "_scale": scales}

    def decode(self, name, parts):
        return parts[name].float() * parts[name + "_scale"]


FORMATS = {"fp8_f32": Fp8Blocks(torch.float32), "fp8_bf16": Fp8Blocks(torch.bfloat16),
           "fp8_e8m0": Fp8Blocks(torch.float8_e8m0fnu), "int4": PackedInt4(), "fp8_rows": Fp8Rows()}


def aqhost(*arguments):
    return subprocess.run([families.BUILD / "bin/aqhost", *map(str, arguments)], capture_output=True,
                          text=True)


class Sources(families.Folder):
    make = families.Transformers.make

    def ok(self, *arguments):
        done = aqhost(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def make_source(self, family, form):
        """Stores a model in `form` in self.model, and what it decodes to, in float32, in self.dense."""
        self.make(family, {**SIZES, **FAMILY[family]}, dtype=torch.bfloat16)
        work = self.model.parent
        self.dense, self.ids = work / "dense", work / "ids.npy"
        numpy.save(self.ids, torch.randint(0, 64, (6, 48), generator=torch.Generator().manual_seed(1)))
        shutil.copytree(self.model, self.dense)
        stored, self.decoded = {}, {}
        tensors = load_file(self.model / "model.safetensors")
        tensors["model.layers.2.mtp.weight"] = torch.randn(130, 192)
        for name, weight in tensors.items():
            parts = form.encode(name, weight.float()) if is_quantized(name) else {name: weight}
            stored.update(parts)
            self.decoded[name] = (form.decode(name, parts) if is_quantized(name) else weight).contiguous()
        save_file(stored, self.model / "model.safetensors", {"format": "pt"})
        save_file(self.decoded, self.dense / "model.safetensors", {"format": "pt"})
        families.rewrite(self.model, quantization_config=form.config)

    def quantize(self, model, algorithm):
        out = model.parent / f"{model.name}-{algorithm}"
        recipe = model.parent / "recipe.yaml"
        recipe.write_text(RECIPE)
        self.ok("--model", model, "--config", recipe, "--algorithm", algorithm, "--calib", self.ids,
                "--nsamples", 6, "--seqlen", 32, "--dtype", "float32", "--save", out)
        self.ok("verify", "--model", out)
        return out

    def check_read(self, form):
        """Checks that each value is that of the decoder above, bit for bit, and so are the logits."""
        ours, error = families.dump(self.model)
        self.assertIsNone(error)
        dense, error = families.dump(self.dense)
        self.assertIsNone(error)
        self.assertEqual(ours.keys(), dense.keys())
        for name, values in self.decoded.items():
            self.assertTrue(torch.equal(ours[name], values.float()), name)
        if not form.rounds_inputs:
            self.assertTrue(torch.equal(ours["logits"], dense["logits"]))

    def check_export(self, algorithm):
        """Checks that the export is that of the dense model, and has nothing of the old format."""
        out, reference = self.quantize(self.model, algorithm), self.quantize(self.dense, algorithm)
        ours, theirs = load_folder(out), load_folder(reference)
        self.assertEqual(ours.keys(), theirs.keys())
        for name, tensor in ours.items():
            expected = theirs[name]
            if name in self.decoded and is_quantized(name):  # left alone by the recipe
                expected = self.decoded[name].to(torch.bfloat16)
            self.assertEqual(tensor.dtype, expected.dtype, name)
            self.assertTrue(torch.equal(tensor, expected), name)
            self.assertFalse(name.endswith("_scale_inv"), name)
        self.assertEqual((out / "config.json").read_text(), (reference / "config.json").read_text())
        left = {n for n in ours if is_quantized(n)}
        self.assertEqual(len(left), 2 * 4 + 2 + 1)

    def check_format(self, family, form, algorithms):
        self.make_source(family, FORMATS[form])
        self.check_read(FORMATS[form])
        if not FORMATS[form].rounds_inputs:
            measured = [self.ok("eval", "--model", m, "--text", self.ids, "--window", 32, "--json")
                        for m in (self.model, self.dense)]
            self.assertEqual(*measured)
        for algorithm in algorithms:
            self.check_export(algorithm)

    def test_transformers_decodes_fp8_blocks_to_the_same_bfloat16(self):
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize
        generator = torch.Generator().manual_seed(3)
        for form in (FORMATS["fp8_f32"], FORMATS["fp8_e8m0"]):
            weight = torch.randn(256, 384, generator=generator)  # transformers needs whole blocks
            parts = form.encode("w", weight)
            theirs = Fp8Dequantize(None)._dequantize_one(parts["w"], parts["w_scale_inv"], torch.bfloat16)
            self.assertTrue(torch.equal(form.decode("w", parts).to(torch.bfloat16), theirs))

    def test_plan_and_inspect_tell_what_is_stored(self):
        self.make_source("olmoe", FORMATS["fp8_f32"])
        shown = json.loads(self.ok("inspect", "--model", self.model, "--json"))
        self.assertTrue(shown["quantized"])
        self.assertEqual(shown["parameters"], sum(t.numel() for t in self.decoded.values()))
        self.assertEqual(shown["extra_tensors"], ["model.layers.2.mtp.weight"])
        (self.model.parent / "recipe.yaml").write_text(RECIPE)
        plan = json.loads(self.ok("plan", "--model", self.model, "--config",
                                  self.model.parent / "recipe.yaml", "--json"))
        stored = load_file(self.model / "model.safetensors")
        self.assertEqual(plan["bytes_before"], sum(t.nbytes for t in stored.values()))
        out = load_folder(self.quantize(self.model, "rtn"))
        shapes = sum(t.nbytes for n, t in out.items() if n.endswith("_shape"))
        self.assertEqual(plan["bytes_after"], sum(t.nbytes for t in out.values()) - shapes)

    def test_what_cannot_be_read_is_refused_and_nothing_is_written(self):
        self.make_source("olmoe", FORMATS["fp8_f32"])
        path = self.model / "model.safetensors"
        stored = load_file(path)
        name = "model.layers.1.self_attn.q_proj.weight_scale_inv"
        out = self.model.parent / "out"

        def refused(message):
            for command in (("--algorithm", "rtn", "--save", out), ("eval", "--text", self.ids),
                            ("plan",)):
                done = aqhost(*command[:command[0] in ("eval", "plan")], "--model", self.model,
                              *command[command[0] in ("eval", "plan"):])
                self.assertEqual(done.returncode, 1)
                self.assertIn(message, done.stderr)
            self.assertFalse(out.exists())

        save_file({n: t for n, t in stored.items() if n != name}, path)
        refused(f"{path}: tensor model.layers.1.self_attn.q_proj.weight is F8_E4M3, but its scales, "
                f"{name}, are missing")
        save_file({**stored, name: stored[name][:1].contiguous()}, path)
        refused(f"{path}: tensor {name} is F32 [1, 2], expected F32, BF16 or F8_E8M0 [2, 2]")
        save_file(stored, path)
        families.rewrite(self.model, quantization_config={"quant_method": "fp8"})
        refused("quantization_config.weight_block_size: expected two integers")
        families.rewrite(self.model, quantization_config={"quant_method": "awq"})
        refused('quant_method is "awq", expected')


for family, form, *algorithms in (
        ("olmoe", "fp8_f32", "rtn", "gptq"), ("olmoe", "fp8_bf16", "rtn"), ("olmoe", "fp8_e8m0", "rtn"),
        ("olmoe", "int4", "rtn", "gptq"), ("olmoe", "fp8_rows", "gptq"), ("qwen2_moe", "fp8_f32", "gptq"),
        ("qwen2_moe", "int4", "rtn")):
    setattr(Sources, f"test_{form}_{family}",
            lambda self, f=family, s=form, a=tuple(algorithms): self.check_format(f, s, a))


if __name__ == "__main__":
    unittest.main()
