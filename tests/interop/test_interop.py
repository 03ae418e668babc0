"""Tests that other tools read the exports of aqhost: compressed-tensors decodes them to the same weights,
bit for bit, and transformers loads them and computes the same logits.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates. It runs the class Decoded a second time with AQ_COMPRESSED_TENSORS=0.19, which is then the
release of compressed-tensors.
"""
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import torch
from safetensors.torch import load_file

from stored import load_folder

TESTS = pathlib.Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
PLUGINS = BUILD / "plugins"


RELEASE = importlib.metadata.version("compressed-tensors")
assert RELEASE.startswith(os.environ.get("AQ_COMPRESSED_TENSORS", "0.20")), RELEASE
# formats that compressed-tensors knows, for all linear maps; mxfp6 since 0.20
ALIKE = {"int2": "wq: int2", "int3": "wq: int3, symmetric: false", "int4": "wq: int4",
         "int4-asymmetric": "wq: int4, symmetric: false", "int5": "wq: int5, group_size: 64",
         "int6": "wq: int6, group_size: -1", "int8": "wq: int8", "fp8": "wq: fp8",
         "fp8-matrix": "wq: fp8, group_size: 0", "int8-W8A8": "wq: int8, group_size: -1, aq: int8",
         "fp8-W8A8": "wq: fp8, aq: fp8", "mxfp4": "wq: mxfp4", "mxfp6": "wq: mxfp6",
         "mxfp8": "wq: mxfp8", "nvfp4": "wq: nvfp4"}
if RELEASE.startswith("0.19"):
    del ALIKE["mxfp6"]


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def target_of(name, groups):
    """Returns the scheme of a module: an exact name counts before a pattern, and a pattern before the
    class."""
    def rank(target):
        if target == name:
            return 3
        if target.startswith("re:"):
            return 2 if re.match(target[3:], name) else 0
        return 1 if target == "Linear" else 0
    return max(groups.values(), key=lambda g: max(map(rank, g.targets)))


def decode(export):
    """Returns {module: weight} of every quantized module, as compressed-tensors decodes it."""
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
    """Rounds `model` by a recipe, and returns the folder of the export."""
    out = pathlib.Path(tempfile.mkdtemp(dir=work))
    (out / "recipe.yaml").write_text(recipe)
    run(BUILD / "bin/aqhost", "--plugin-dir", PLUGINS, "--model", model, "--config",
        out / "recipe.yaml", "--algorithm", "rtn", "--save", out / "export")
    return out / "export"


class Export(unittest.TestCase):
    """Tests the small OLMoE model with the recipe in configs/. All classes share the exports."""
    model = TESTS / "models/olmoe-tiny"
    work = gptq = None
    rounded_alike = {}  # the exports in which all modules have one format

    @classmethod
    def setUpClass(cls):
        if Export.work is None:
            folder = tempfile.TemporaryDirectory()
            unittest.addModuleCleanup(folder.cleanup)
            Export.work = pathlib.Path(folder.name)
            Export.gptq = Export.work / "gptq"
            run(BUILD / "bin/aqhost", "--plugin-dir", PLUGINS, "--model", cls.model, "--config",
                ROOT / "configs/olmoe_int4.yaml", "--calib", TESTS / "data/kjv_calib.txt", "--nsamples", 16,
                "--seqlen", 256, "--save", Export.gptq)

    def golden_ids(self):
        return load_file(TESTS / "golden/olmoe-tiny.safetensors")["input_ids"][0].tolist()

    def dump(self, export):
        """Returns the weights of an export as aqhost decodes them, and its logits of the golden ids."""
        out = export.parent / ("dump-" + export.name)
        if not out.exists():
            ids = self.work / "ids.txt"
            ids.write_text(" ".join(map(str, self.golden_ids())))
            run(BUILD / "bin/interop_dump", PLUGINS, export, ids, out, "float32")
        return load_folder(out)

    def alike(self, label):
        """Rounds the model to one format of ALIKE, and returns the folder of the export."""
        if label not in self.rounded_alike:
            self.rounded_alike[label] = rounded(self.model, self.work, f"default: {{{ALIKE[label]}}}\n")
        return self.rounded_alike[label]

    def check_weights(self, export):
        ours, theirs = self.dump(export), decode(export)
        self.assertEqual(len(theirs), 3 * (4 + 16 * 3))
        for name, weight in theirs.items():
            # compressed-tensors computes in the type of the scale, mostly bfloat16
            self.assertTrue(torch.equal(weight, ours[name + ".weight"].to(weight.dtype)), name)


class Decoded(Export):
    """The compressed-tensors package decodes exports."""

    def test_compressed_tensors_decodes_symmetric_to_our_weights(self):
        self.check_weights(self.gptq)

    def test_compressed_tensors_decodes_every_format_it_knows_to_our_weights(self):
        rows = {
            "0.self_attn.q_proj": "int2", "0.self_attn.k_proj": "int3",
            "0.self_attn.v_proj": "int5", "0.self_attn.o_proj": "int6",
            "1.self_attn.q_proj": "int8", "1.self_attn.k_proj": "nvfp4",
            "1.self_attn.v_proj": "fp8, group_size: -1", "1.self_attn.o_proj": "fp8, group_size: 0",
            "2.self_attn.q_proj": "mxfp4", "2.self_attn.k_proj": "mxfp6" if "mxfp6" in ALIKE else "int3",
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

    def test_compressed_tensors_decodes_exports_of_one_format_to_our_weights(self):
        for label in ALIKE:
            with self.subTest(label):
                self.check_weights(self.alike(label))

    def test_activations_are_exported_as_compressed_tensors_has_them(self):
        rows = {
            "0.self_attn.*": ("int8", "int8", "int-quantized", "token"),
            "1.self_attn.*": ("fp8", "fp8", "float-quantized", "token"),
            "2.self_attn.*": ("int4", "int8", "pack-quantized", "token"),
            "0.mlp.experts.*": ("mxfp4", "mxfp4", "mxfp4-pack-quantized", "group"),
            "1.mlp.experts.*": ("nvfp4", "nvfp4", "nvfp4-pack-quantized", "tensor_group"),
            "2.mlp.experts.*": ("mxfp8", "mxfp8", "mxfp8-quantized", "group"),
        }
        work = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        (work / "recipe.yaml").write_text("default: {wq: int4}\noverrides:\n" + "".join(
            f'  - {{pattern: "*.layers.{p}", wq: {row[0]}, aq: {row[1]}}}\n'
            for p, row in rows.items()))
        run(BUILD / "bin/aqhost", "--plugin-dir", PLUGINS, "--model", self.model, "--config",
            work / "recipe.yaml", "--calib", TESTS / "data/kjv_calib.txt", "--nsamples", 4,
            "--seqlen", 128, "--save", work / "export")
        config = json.loads((work / "export/config.json").read_text())["quantization_config"]
        self.assertEqual(config["quant_method"], "compressed-tensors")
        groups = config["config_groups"].values()
        self.assertEqual(sorted((g["format"], g["input_activations"]["strategy"]) for g in groups),
                         sorted(row[2:] for row in rows.values()))
        self.assertTrue(all(g["input_activations"]["dynamic"] for g in groups))
        self.check_weights(work / "export")
        tensors = load_folder(work / "export")
        experts = "model.layers.1.mlp.experts"
        for e in range(16):  # engines fuse gate and up, so their weights share a scale, and so do their inputs
            for part in ("weight_global_scale", "input_global_scale"):
                self.assertEqual(tensors[f"{experts}.{e}.gate_proj.{part}"],
                                 tensors[f"{experts}.{e}.up_proj.{part}"])
            self.assertGreater(tensors[f"{experts}.{e}.down_proj.input_global_scale"].item(), 1)
        self.assertEqual(tensors["model.layers.0.self_attn.q_proj.weight"].dtype, torch.int8)

    def test_scale_rule_even_gives_the_bytes_of_compressed_tensors(self):
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
        weights = load_folder(self.model)
        for bits, layout in ((4, "mxfp4-pack-quantized"), (6, "mxfp6-pack-quantized"),
                             (8, "mxfp8-quantized")):
            if f"mxfp{bits}" not in ALIKE:
                continue
            export = rounded(self.model, self.work,
                             f"default: {{wq: mxfp{bits}, group_size: 32, scale_rule: even}}\n")
            config = json.loads((export / "config.json").read_text())["quantization_config"]
            group = config["config_groups"]["group_0"]
            scheme = QuantizationScheme(targets=["Linear"], weights=group["weights"])
            compressor = BaseCompressor.get_value_from_registry(layout)
            ours = load_folder(export)
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


class Loaded(Export):
    """Other programs read exports, or this test unpacks them in the same way."""

    def test_transformers_answers_by_the_command_of_the_readme(self):
        command, = re.findall(r"(?m)^    (python3 -c 'from transformers .*)$", (ROOT / "README.md").read_text())
        work = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        (work / "out").symlink_to(self.gptq)
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", command], cwd=work, capture_output=True, text=True,
                              env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"'generated_text': .In the beginning\W*\w+")

    def test_gptq_files_hold_our_weights_as_their_readers_unpack_them(self):
        """This test unpacks as AutoGPTQ's kernels do, because the package itself needs a GPU."""
        work = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        (work / "recipe.yaml").write_text(
            "default: {wq: int4, group_size: 128}\noverrides:\n"
            '  - {pattern: "*.layers.1.mlp.experts.*", wq: int8, group_size: 32}\n'
            '  - {pattern: "*.layers.2.self_attn.*", wq: int3, group_size: 32}\n'
            '  - {pattern: "*.layers.0.self_attn.q_proj", wq: int2, group_size: -1}\n')
        export = work / "export"
        run(BUILD / "bin/aqhost", "--plugin-dir", PLUGINS, "--model", self.model, "--config",
            work / "recipe.yaml", "--algorithm", "rtn", "--export", "gptq", "--save", export)
        config = json.loads((export / "config.json").read_text())["quantization_config"]
        self.assertEqual(json.loads((export / "quantize_config.json").read_text()), config)
        self.assertEqual((config["bits"], config["group_size"], config["sym"]), (4, 128, True))
        run(BUILD / "bin/aqhost", "verify", "--plugin-dir", PLUGINS, "--model", export)
        ours, stored = self.dump(export), load_folder(export)
        names = [n[:-len(".qweight")] for n in stored if n.endswith(".qweight")]
        self.assertEqual(len(names), 3 * (4 + 16 * 3))
        seen = set()
        for name in names:
            settings = dict(config)
            for pattern, override in config["dynamic"].items():
                if re.match(pattern[2:], name):
                    self.assertTrue(pattern.startswith("+:"), name)
                    settings.update(override)
                    break
            bits = settings["bits"]
            seen.add((bits, settings["group_size"]))

            def unpacked(words):  # each column is one stream of bits
                stream = (words.long() & 0xFFFFFFFF)[:, None] >> torch.arange(32)[:, None] & 1
                fields = stream.flatten(0, 1).unflatten(0, (-1, bits))
                return (fields << torch.arange(bits)[:, None]).sum(1)
            q = unpacked(stored[name + ".qweight"])
            zero = unpacked(stored[name + ".qzeros"].T.contiguous()).T + 1
            groups = stored[name + ".g_idx"].long()
            weight = (q - zero[groups]) * stored[name + ".scales"].float()[groups]
            self.assertTrue(torch.equal(weight.T, ours[name + ".weight"]), name)
        self.assertEqual(seen, {(4, 128), (8, 32), (3, 32), (2, -1)})
        for layer in range(3):  # the router is not quantized, and config.json says so
            self.assertTrue(any(p.startswith("-:") and re.match(p[2:], f"model.layers.{layer}.mlp.gate")
                                for p in config["dynamic"]))

    def test_one_global_scale_for_what_engines_fuse_when_rounding(self):
        export = rounded(self.model, self.work, "default: {wq: nvfp4}\n")
        tensors = load_folder(export)
        weights = load_folder(self.model)
        for fused in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                      ("mlp.experts.3.gate_proj", "mlp.experts.3.up_proj"), ("self_attn.o_proj",)):
            names = [f"model.layers.1.{n}" for n in fused]
            absmax = max(weights[n + ".weight"].float().abs().max() for n in names)
            for name in names:
                self.assertEqual(tensors[name + ".weight_global_scale"],
                                 torch.tensor(448.0 * 6) / absmax)

    def logits(self, model):
        with torch.no_grad():
            return model.eval()(torch.tensor([self.golden_ids()])).logits[0]

    def stacked(self, ours, name):
        """Stacks the matrices of all experts into the tensor that transformers has."""
        def matrix(expert, role):
            return ours[name.rsplit(".", 1)[0] + f".{expert}.{role}.weight"]
        roles = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
        return torch.stack([torch.cat([matrix(e, r) for r in roles]) for e in range(16)])

    def test_transformers_loads_our_weights_and_agrees(self):
        from transformers import AutoModelForCausalLM
        ours = self.dump(self.gptq)
        model = AutoModelForCausalLM.from_pretrained(self.gptq, dtype=torch.float32)
        self.assertTrue(self.experts_are_ours(model, ours))
        # its experts are rounded to bfloat16 and computed in it, so some tokens go to other experts
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

    def experts_are_ours(self, model, ours):
        experts = {n: w for n, w in model.state_dict().items() if ".experts." in n}
        self.assertEqual(len(experts), 3 * 2)
        return all(torch.equal(w.bfloat16(), self.stacked(ours, n).bfloat16())
                   for n, w in experts.items())

    def test_transformers_loads_the_formats_that_the_plan_says_and_no_others(self):
        from transformers import AutoModelForCausalLM, logging
        logging.set_verbosity(logging.CRITICAL)
        loads = set()
        for label in ALIKE:
            with self.subTest(label):
                export = self.alike(label)
                plan = json.loads(run(BUILD / "bin/aqhost", "plan", "--plugin-dir", PLUGINS, "--model",
                                      self.model, "--config", export.parent / "recipe.yaml", "--json"))
                ours = self.dump(export)
                try:
                    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.bfloat16)
                    right = self.experts_are_ours(model, ours)
                except RuntimeError:
                    right = False
                self.assertEqual(right, plan["problems_in"]["transformers"] == [])
                if right:
                    loads.add(label)
                    agree = self.logits(model).argmax(1) == ours["logits"].argmax(1)
                    self.assertGreater(agree.float().mean().item(), 0.9)
        self.assertEqual(loads, {"int2", "int4", "int5", "int6", "int8", "fp8", "fp8-matrix",
                                 "fp8-W8A8", "mxfp4", "mxfp6"})

    def test_every_tensor_of_the_original_is_there_under_its_name(self):
        names = set(load_folder(self.model))
        weights = {n for n in self.dump(self.gptq) if n != "logits" and not n.startswith("routes.")}
        self.assertEqual(weights, names)


class Bfloat16(unittest.TestCase):
    def test_forward_in_bfloat16_is_as_near_to_float32_as_transformers_and_predicts_as_well(self):
        from transformers import AutoModelForCausalLM
        for name in ("olmoe-tiny", "qwen2-moe-tiny", "mixtral-tiny"):
            with self.subTest(model=name), tempfile.TemporaryDirectory() as folder:
                golden = load_file(TESTS / f"golden/{name}.safetensors")
                ids, exact = golden["input_ids"][:1], golden["logits"].float()
                (pathlib.Path(folder) / "ids.txt").write_text(" ".join(map(str, ids[0].tolist())))
                run(BUILD / "bin/interop_dump", PLUGINS, TESTS / "models" / name, folder + "/ids.txt",
                    folder + "/out", "bfloat16")
                ours = load_folder(folder + "/out")["logits"]
                model = AutoModelForCausalLM.from_pretrained(TESTS / "models" / name,
                                                             dtype=torch.bfloat16)
                with torch.no_grad():
                    theirs = model(ids).logits[0].float()

                def error(logits):
                    return ((logits - exact).norm() / exact.norm()).item()

                def perplexity(logits):
                    return torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).exp().item()
                self.assertLess(error(ours), 1.5 * error(theirs))
                # the perplexity of transformers also differs by up to 1 %, in either direction
                self.assertLess(abs(perplexity(ours) / perplexity(exact) - 1), 0.03)


if __name__ == "__main__":
    unittest.main()
