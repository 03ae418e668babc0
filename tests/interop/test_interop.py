"""What aqhost writes, read by the tools it is written for: compressed-tensors decodes it to the same
weights, bit for bit, and transformers loads it and gives the same logits.

Run by ctest with AQ_BUILD (the build folder) set, in the virtual environment that tools/test makes.
"""
import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import torch
from safetensors.torch import load_file

TESTS = pathlib.Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
PLUGINS = BUILD / "plugins"


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def target_of(name, groups):
    """The scheme that covers a module: an exact name before a pattern before the class."""
    def rank(target):
        if target == name:
            return 3
        if target.startswith("re:"):
            return 2 if re.match(target[3:], name) else 0
        return 1 if target == "Linear" else 0
    return max(groups.values(), key=lambda g: max(map(rank, g.targets)))


def decode(export):
    """{module: weight} of every quantized module, by the compressed-tensors package."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    config = json.loads((export / "config.json").read_text())["quantization_config"]
    parsed = QuantizationConfig.model_validate(config)
    modules = {}
    for file in sorted(export.glob("*.safetensors")):
        for name, value in load_file(file).items():
            module, part = name.rsplit(".", 1)
            modules.setdefault(module, {})[part] = value
    weights = {}
    for name, parts in modules.items():
        if not any(p.startswith("weight_") for p in parts):
            continue
        scheme = target_of(name, parsed.config_groups)
        method = BaseCompressor.get_value_from_registry(getattr(scheme.format, "value", scheme.format))
        parts = {p: v for p, v in parts.items() if p != "bias"}
        weights[name] = method.decompress(parts, scheme)["weight"]
    return weights


def rounded(model, work, recipe):
    """`model` rounded by a recipe, as an export folder."""
    out = pathlib.Path(tempfile.mkdtemp(dir=work))
    (out / "recipe.yaml").write_text(recipe)
    run(BUILD / "bin/aqhost", "--plugin-dir", PLUGINS, "--model", model, "--config",
        out / "recipe.yaml", "--algorithm", "rtn", "--save", out / "export")
    return out / "export"


class Export(unittest.TestCase):
    """The shipped OLMoE model under the shipped recipe, and rounded to every format that
    compressed-tensors knows."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.work = pathlib.Path(cls.folder.name)
        cls.model = TESTS / "models/olmoe-tiny"
        cls.gptq = cls.work / "gptq"
        run(BUILD / "bin/aqhost", "--plugin-dir", PLUGINS, "--model", cls.model, "--config",
            ROOT / "configs/olmoe_int4.yaml", "--calib", TESTS / "data/kjv_calib.txt", "--nsamples", 16,
            "--seqlen", 256, "--save", cls.gptq)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def golden_ids(self):
        return load_file(TESTS / "golden/olmoe-tiny.safetensors")["input_ids"][0].tolist()

    def dump(self, export):
        """Our dense weights of an export, and our logits of the golden ids."""
        out = export.parent / ("dump-" + export.name)
        if not out.exists():
            ids = self.work / "ids.txt"
            ids.write_text(" ".join(map(str, self.golden_ids())))
            run(BUILD / "bin/interop_dump", PLUGINS, export, ids, out)
        return load_file(out / "model.safetensors")

    def check_weights(self, export):
        ours, theirs = self.dump(export), decode(export)
        self.assertEqual(len(theirs), 3 * (4 + 16 * 3))
        for name, weight in theirs.items():
            # their arithmetic is in the scale's type, mostly bfloat16
            self.assertTrue(torch.equal(weight, ours[name + ".weight"].to(weight.dtype)), name)

    def test_compressed_tensors_decodes_symmetric_to_our_weights(self):
        self.check_weights(self.gptq)

    def test_compressed_tensors_decodes_every_format_it_knows_to_our_weights(self):
        rows = {
            "0.self_attn.q_proj": "int2", "0.self_attn.k_proj": "int3",
            "0.self_attn.v_proj": "int5", "0.self_attn.o_proj": "int6",
            "1.self_attn.q_proj": "int8", "1.self_attn.k_proj": "nvfp4",
            "1.self_attn.v_proj": "fp8, group_size: -1", "1.self_attn.o_proj": "fp8, group_size: 0",
            "2.self_attn.q_proj": "mxfp4", "2.self_attn.k_proj": "mxfp6",
            "2.self_attn.v_proj": "mxfp8", "2.self_attn.o_proj": "int8, symmetric: false",
            "0.mlp.experts.*": "mxfp4", "1.mlp.experts.*": "nvfp4",
            "2.mlp.experts.*": "int3, symmetric: false",
            "2.mlp.experts.7.*": "int4, symmetric: false, group_size: -1",
        }
        recipe = "default: {wq: int4, group_size: 32}\noverrides:\n" + "".join(
            f'  - {{pattern: "*.layers.{p}", wq: {wq}}}\n' for p, wq in rows.items())
        export = rounded(self.model, self.work, recipe)
        config = json.loads((export / "config.json").read_text())["quantization_config"]
        self.assertEqual(config["format"], "mixed-precision")
        self.check_weights(export)

    def test_scale_rule_even_gives_the_bytes_of_compressed_tensors(self):
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
        weights = load_file(self.model / "model.safetensors")
        for bits, layout in ((4, "mxfp4-pack-quantized"), (6, "mxfp6-pack-quantized"),
                             (8, "mxfp8-quantized")):
            export = rounded(self.model, self.work,
                             f"default: {{wq: mxfp{bits}, group_size: 32, scale_rule: even}}\n")
            config = json.loads((export / "config.json").read_text())["quantization_config"]
            group = config["config_groups"]["group_0"]
            scheme = QuantizationScheme(targets=["Linear"], weights=group["weights"])
            compressor = BaseCompressor.get_value_from_registry(layout)
            ours = load_file(export / "model.safetensors")
            modules = [n[:-len(".weight_scale")] for n in ours if n.endswith(".weight_scale")]
            self.assertEqual(len(modules), 3 * (4 + 16 * 3))
            for name in modules:
                weight = weights[name + ".weight"].float()
                absmax = weight.unflatten(1, (-1, 32)).abs().amax(-1)
                scale = 2.0 ** (generate_mx_scales(absmax, bits) - 127)
                theirs = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
                for part, value in theirs.items():
                    self.assertTrue(torch.equal(value.view(torch.uint8),
                                                ours[f"{name}.{part}"].view(torch.uint8)),
                                    f"{name}.{part}")

    def logits(self, model):
        with torch.no_grad():
            return model.eval()(torch.tensor([self.golden_ids()])).logits[0]

    def stacked(self, ours, name):
        """transformers' tensor of all experts, of our matrices of each."""
        def matrix(expert, role):
            return ours[name.rsplit(".", 1)[0] + f".{expert}.{role}.weight"]
        roles = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
        return torch.stack([torch.cat([matrix(e, r) for r in roles]) for e in range(16)])

    def test_transformers_loads_our_weights_and_agrees(self):
        from transformers import AutoModelForCausalLM
        ours = self.dump(self.gptq)
        model = AutoModelForCausalLM.from_pretrained(self.gptq, dtype=torch.float32)
        experts = {n: w for n, w in model.state_dict().items() if ".experts." in n}
        self.assertEqual(len(experts), 3 * 2)
        for name, weight in experts.items():
            self.assertTrue(torch.equal(weight.bfloat16(), self.stacked(ours, name).bfloat16()), name)
        # its experts are rounded to bfloat16 and run in it, which moves some tokens to other experts
        theirs = self.logits(model)
        agree = (theirs.argmax(1) == ours["logits"].argmax(1)).float().mean().item()
        self.assertGreater(agree, 0.9)
        self.assertLess(((theirs - ours["logits"]).norm() / ours["logits"].norm()).item(), 0.05)

    def test_transformers_gives_our_logits_on_the_same_weights(self):
        from transformers import AutoModelForCausalLM
        ours = self.dump(self.gptq)
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        model.load_state_dict({n: ours[n] if n in ours else self.stacked(ours, n)
                               for n in model.state_dict()})
        error = (self.logits(model) - ours["logits"]).norm() / ours["logits"].norm()
        self.assertLess(error.item(), 1e-5)

    def test_every_tensor_of_the_original_is_there_under_its_name(self):
        names = set(load_file(self.model / "model.safetensors"))
        self.assertEqual(set(self.dump(self.gptq)) - {"logits"}, names)


if __name__ == "__main__":
    unittest.main()
