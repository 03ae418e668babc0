"""Tests of plugins as third parties build them: with only the install tree, and from the template. aq-check
checks them, aqhost uses them, and transformers is the reference.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
from unittest import mock

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
SOURCES = TESTS / "third_party/plugins"
CLANG = shutil.which("clang++-16")
OLMOE = TESTS / "models/olmoe-tiny"
try:
    import torch
    import transformers
except ImportError:
    torch = transformers = None


def run(*command, **keywords):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, **keywords)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build(source, prefix, folder, *options, target="all"):
    """Configures and builds a project with the SDK in `prefix`."""
    run("cmake", "-S", source, "-B", folder, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", *options)
    run("cmake", "--build", folder, "--target", target)


def setUpModule():
    """Creates one install tree for all tests."""
    folder = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(folder.cleanup)
    Installed.work = pathlib.Path(folder.name)
    Installed.prefix = Installed.work / "prefix"
    run("cmake", "--install", BUILD, "--prefix", Installed.prefix)
    Installed.aqhost = Installed.prefix / "bin/aqhost"
    Installed.environment = {**os.environ, "CMAKE_PREFIX_PATH": str(Installed.prefix),
                             "PATH": f"{Installed.prefix}/bin:{os.environ['PATH']}"}


class Installed(unittest.TestCase):
    """Gives tests access to what setUpModule() has created."""


class InstallTree(Installed):
    def test_it_has_what_it_should_and_nothing_of_the_core(self):
        files = {str(p.relative_to(self.prefix)) for p in self.prefix.rglob("*") if p.is_file()}
        for name in ("bin/aqhost", "bin/aq-check", "bin/aq-new-plugin", "include/aq/abi.h",
                     "include/aq/ext/block_forward.h", "include/aq/sdk/format.hpp",
                     "lib/aqhost/plugins/olmoe.so", "lib/cmake/aqsdk/aqsdkConfig.cmake",
                     "share/aqsdk/template/model/CMakeLists.txt", "share/doc/aqhost/README.md",
                     "share/doc/aqhost/FORMATS.md", "share/doc/aqhost/MODELS.md",
                     "share/doc/aqhost/ABI.md"):
            self.assertIn(name, files)
        for name in files:
            self.assertRegex(name, r"^(bin|include/aq|lib/aqhost/plugins|lib/cmake/aqsdk|share)/|/aqhost_cuda.so$")

    def test_the_installed_aqhost_finds_its_plugins(self):
        listed = {p["id"]: p for p in json.loads(run(self.aqhost, "plugins", "--json"))}
        self.assertEqual(pathlib.Path(listed["olmoe"]["path"]).resolve(),
                         (self.prefix / "lib/aqhost/plugins/olmoe.so").resolve())
        self.assertRegex(listed["olmoe"]["sha256"], "^[0-9a-f]{64}$")
        expected = run("sha256sum", self.prefix / "lib/aqhost/plugins/olmoe.so").split()[0]
        self.assertEqual(listed["olmoe"]["sha256"], expected)

    def test_aq_check_needs_no_libtorch(self):
        self.assertNotRegex(run("readelf", "-d", self.prefix / "bin/aq-check"), "torch|c10")


class Template(Installed):
    def refused(self, message, *arguments):
        done = subprocess.run([self.prefix / "bin/aq-new-plugin", *arguments], capture_output=True,
                              text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn(message, done.stderr)

    def test_wrong_arguments_are_named(self):
        self.refused("usage:")
        self.refused('"format" is neither', "format", "x", self.work / "x")
        self.refused('name "No-Good" is not', "model", "No-Good", self.work / "x")
        self.refused("already exists", "model", "x", self.work)

    def test_names_go_everywhere(self):
        run(self.prefix / "bin/aq-new-plugin", "model", "odd_name2", self.work / "odd")
        text = "".join(p.read_text() for p in (self.work / "odd").iterdir())
        self.assertNotRegex(text.lower(), "template_?name")
        self.assertIn("class OddName2", text)


class Documentation(Installed):
    """Every block of code in the SDK's pages is compiled or run."""

    def blocks(self, page, language):
        text = (TESTS.parent / "sdk" / page).read_text()
        found = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.S | re.M)
        self.assertTrue(found, f"{page} has no {language}")
        return found

    def test_no_block_is_of_a_language_that_is_not_tested(self):
        for page in (TESTS.parent / "sdk").glob("*.md"):
            languages = re.findall(r"^```(\w*)$", page.read_text(), flags=re.M)[::2]
            self.assertLessEqual(set(languages), {"sh", "cpp", "cmake"}, page.name)

    def test_the_ten_minutes_of_the_readme(self):
        folder = self.work / "readme"
        folder.mkdir()
        printed = ""
        for block in self.blocks("README.md", "sh"):
            printed += run("bash", "-euc", block, cwd=folder, env=self.environment)
        self.assertIn("nf3", printed)
        self.assertEqual(printed.count("100% tests passed"), 2)
        self.assertIn("family", printed)
        # the project file on the page is a short form of the template's
        [cmake] = self.blocks("README.md", "cmake")
        (folder / "nf3/CMakeLists.txt").write_text(cmake)
        build(folder / "nf3", self.prefix, folder / "nf3/again")
        run("ctest", "--test-dir", folder / "nf3/again")

    def test_the_format_of_the_guide_is_the_template_and_short(self):
        run(self.prefix / "bin/aq-new-plugin", "quantizer", "trits", self.work / "template")
        [code] = self.blocks("FORMATS.md", "cpp")
        self.assertEqual(code, (self.work / "template/trits.cc").read_text())
        self.assertLess(code.count("\n"), 40)

    def test_the_plugins_of_the_guides(self):
        blocks = self.blocks("FORMATS.md", "cpp") + self.blocks("MODELS.md", "cpp")
        for code, name in zip(blocks, ("trits", "my_moe", "my_latent"), strict=True):
            folder = self.work / name
            folder.mkdir()
            (folder / f"{name}.cc").write_text(code)
            (folder / "CMakeLists.txt").write_text(
                f"cmake_minimum_required(VERSION 3.25)\nproject({name} LANGUAGES CXX)\n"
                f"find_package(aqsdk REQUIRED)\naq_add_plugin({name} SOURCES {name}.cc)\n")
            build(folder, self.prefix, folder / "build")
            output = run(self.prefix / "bin/aq-check", folder / f"build/{name}.so")
            self.assertIn(f"{'format' if name == 'trits' else 'model'} {name}: ", output)


class Plugins(Installed):
    @classmethod
    def setUpClass(cls):
        cls.plugins = cls.work / "build"
        build(SOURCES, cls.prefix, cls.plugins)

    def check(self, name, *options):
        lines = run(self.prefix / "bin/aq-check", self.plugins / f"{name}.so", *options).splitlines()
        self.assertGreater(len(lines), 12)
        return [l for l in lines if not l.startswith("holds")]

    def test_a_format_in_c_holds_to_every_rule(self):
        self.assertEqual(len(self.check("ternary")), 1)  # the plugin describes no numbers that could be compared
        needed = run("readelf", "-d", self.plugins / "ternary.so")
        self.assertNotIn("libstdc++", needed)

    @unittest.skipUnless(CLANG, "clang is not installed")
    def test_built_by_clang_with_libcpp_they_hold_and_run_beside_those_of_gcc(self):
        built = self.work / "build-clang"
        build(SOURCES, self.prefix, built, "-DCMAKE_C_COMPILER=clang-16",
              f"-DCMAKE_CXX_COMPILER={CLANG}", "-DCMAKE_CXX_FLAGS=-stdlib=libc++",
              target="codebook")
        needed = run("readelf", "-d", built / "codebook.so")
        self.assertIn("libc++.so", needed)
        self.assertNotIn("libstdc++", needed)
        output = run(self.prefix / "bin/aq-check", built / "codebook.so")
        self.assertNotIn("BROKEN", output)
        by_gcc, _ = self.quantize("codebook", "gptq")
        by_clang, _ = self.quantize("codebook", "gptq", plugins=built)
        loss = [r["modules"]["model.layers.2.self_attn.o_proj"]["loss"] for r in (by_gcc, by_clang)]
        self.assertAlmostEqual(loss[1] / loss[0], 1, places=4)

    def test_the_broken_rule_and_the_exit_status(self):
        bad = BUILD / "tests/plugins-bad/names-null.so"
        for command in ([self.prefix / "bin/aq-check", bad], [self.aqhost, "plugins", "--check", bad]):
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stdout, "BROKEN +file: what it offers is described")
        usage = subprocess.run([self.prefix / "bin/aq-check"], capture_output=True, text=True)
        self.assertEqual(usage.returncode, 2)
        output = json.loads(run(self.aqhost, "plugins", "--check", self.plugins / "ternary.so", "--json"))
        self.assertEqual({v["result"] for v in output}, {"holds", "skipped"})

    def quantize(self, wq, algorithm, model=OLMOE, calib=TESTS / "data/kjv_calib.txt", plugins=None,
                 group_size=None):
        """Returns (the report, the result of `verify`)."""
        recipe = self.work / f"{wq}.yaml"
        group = f", group_size: {group_size}" if group_size else ""
        recipe.write_text(f"default: {{wq: {wq}{group}}}\n")
        plugins = plugins or self.plugins
        out = pathlib.Path(tempfile.mkdtemp(dir=self.work)) / "out"
        run(self.aqhost, "--plugin-dir", plugins, "--model", model, "--config", recipe,
            "--algorithm", algorithm, "--calib", calib, "--nsamples", 4, "--seqlen", 64, "--save", out)
        output = run(self.aqhost, "verify", "--plugin-dir", plugins, "--model", out, "--json")
        return json.loads((out / "quantization_report.json").read_text()), json.loads(output)

    def test_a_codebook_of_vectors_goes_through_rounding_and_gptq(self):
        self.assertEqual(len(self.check("codebook")), 1)
        rtn, gptq = (self.quantize("codebook", a)[0] for a in ("rtn", "gptq"))
        name = "model.layers.1.self_attn.q_proj"
        self.assertLess(gptq["modules"][name]["loss"], gptq["modules"][name]["rtn_loss"])
        self.assertEqual(rtn["modules"][name]["format"], "codebook")

    def test_two_formats_of_one_library_hold_and_can_be_used(self):
        self.assertEqual(self.check("steps"), [])
        listed = json.loads(run(self.aqhost, "plugins", "--plugin-dir", self.plugins, "--json"))
        offered = [p["id"] for p in listed if p["path"].endswith("/steps.so")]
        self.assertEqual(offered, ["steps3", "steps5"])
        name = "model.layers.1.self_attn.q_proj"
        losses = []
        for wq in offered:
            report, loaded = self.quantize(wq, "gptq")
            self.assertEqual(report["modules"][name]["format"], wq)
            self.assertEqual(set(loaded["formats"]), {wq})
            losses.append(report["modules"][name]["loss"])
        self.assertLess(losses[1], losses[0])

    @unittest.skipUnless(transformers, "needs transformers (tests/interop/requirements.txt)")
    def test_dots1_gives_the_logits_of_transformers(self):
        torch.manual_seed(0)
        config = transformers.Dots1Config(
            vocab_size=96, hidden_size=48, intermediate_size=40, moe_intermediate_size=24,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=2, norm_topk_prob=True, n_group=4,
            topk_group=2, routed_scaling_factor=2.5, first_k_dense_replace=1, sliding_window=9,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            max_position_embeddings=256, tie_word_embeddings=False)
        self.agrees(transformers.Dots1ForCausalLM(config), "dots1")

    def diff_llama(self):
        torch.manual_seed(0)
        return transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(
            vocab_size=96, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=8,
            num_key_value_heads=4, head_dim=10, max_position_embeddings=256, rms_norm_eps=1e-4,
            tie_word_embeddings=False, attn_implementation="eager"))

    @unittest.skipUnless(transformers, "needs transformers (tests/interop/requirements.txt)")
    def test_an_attention_of_the_plugins_own_gives_the_logits_of_transformers(self):
        self.agrees(self.diff_llama(), "diff_llama")

    @unittest.skipUnless(transformers, "needs transformers (tests/interop/requirements.txt)")
    def test_an_attention_of_the_plugins_own_goes_through_gptq(self):
        self.agrees(self.diff_llama(), "diff_llama", "q")
        report, _ = self.quantize("int3", "gptq", self.work / "diff_llama-q-model", self.random_ids(),
                                  group_size=-1)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            module = report["modules"][f"model.layers.2.self_attn.{name}"]
            self.assertEqual(module["format"], "int3")
            self.assertLess(module["loss"], module["rtn_loss"], name)

    @unittest.skipUnless(transformers, "needs transformers (tests/interop/requirements.txt)")
    def test_stacked_interleaved_experts_give_the_logits_of_transformers(self):
        """Returns transformers' GptOss without its sinks and with a plain gated activation."""
        from transformers.models.gpt_oss import modeling_gpt_oss
        torch.manual_seed(0)
        config = transformers.GptOssConfig(
            vocab_size=96, hidden_size=48, intermediate_size=24, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=6,
            num_experts_per_tok=2, sliding_window=9, max_position_embeddings=256,
            rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0,
                             "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                             "original_max_position_embeddings": 32},
            attn_implementation="eager")
        gated = lambda _, x: torch.nn.functional.silu(x[..., ::2]) * x[..., 1::2]
        with mock.patch.object(modeling_gpt_oss.GptOssExperts, "_apply_gate", gated):
            self.agrees(transformers.GptOssForCausalLM(config), "oss_like", without="sinks")
            report, loaded = self.quantize("int4", "gptq", self.work / "oss_like--model",
                                           self.random_ids(), group_size=-1)
        for name in ("gate_proj", "up_proj", "down_proj"):
            module = report["modules"][f"model.layers.1.mlp.experts.3.{name}"]
            self.assertLess(module["loss"], module["rtn_loss"], name)
        self.assertEqual(loaded["formats"], {"int4": 3 * (4 + 6 * 3)})

    @unittest.skipUnless(transformers, "needs transformers (tests/interop/requirements.txt)")
    def test_experts_in_mxfp4_are_read_as_transformers_decodes_them(self):
        from safetensors.torch import load_file, save_file
        config = transformers.GptOssConfig(
            vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4,
            num_experts_per_tok=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
        torch.manual_seed(0)
        stored, dense = self.work / "mxfp4-model", self.work / "mxfp4-dense"
        transformers.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(dense)
        tensors = {n: t for n, t in load_file(dense / "model.safetensors").items()
                   if not n.endswith("sinks")}
        settings = json.loads((dense / "config.json").read_text())
        settings.update(model_type="oss_like", architectures=[])
        packed = self.packed_as_mxfp4(tensors)  # and decodes `tensors`
        for folder, content, extra in (
                (dense, tensors, {}),
                (stored, packed, {"quantization_config": {
                    "quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}})):
            folder.mkdir(exist_ok=True)
            save_file(content, folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text(json.dumps({**settings, **extra}))
        (self.work / "ids.txt").write_text("1 2 3 5 8 13 21 34")
        ids, dumps, exports = self.random_ids(), [], []
        for folder in (stored, dense):
            out = self.work / f"{folder.name}-dump"
            run(BUILD / "bin/interop_dump", self.plugins, folder, self.work / "ids.txt", out, "float32")
            dumps.append(load_file(out / "model.safetensors"))
            for skip in ("true", "false"):
                recipe, out = self.work / "mxfp4.yaml", self.work / f"{folder.name}-skip-{skip}"
                recipe.write_text(f"default: {{group_size: -1}}\noverrides: "
                                  f"[{{pattern: '*.down_proj', skip: {skip}}}]\n")
                run(self.aqhost, "--plugin-dir", self.plugins, "--model", folder, "--config", recipe,
                    "--calib", ids, "--nsamples", 4, "--seqlen", 32, "--save", out)
                run(self.aqhost, "verify", "--plugin-dir", self.plugins, "--model", out)
                files = {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
                exports.append((files, (out / "config.json").read_text()))
        self.assertEqual(dumps[0].keys(), dumps[1].keys())
        for name, tensor in dumps[0].items():
            self.assertTrue(torch.equal(tensor, dumps[1][name]), name)
        self.assertEqual(exports[:2], exports[2:])

    def packed_as_mxfp4(self, tensors):
        """Returns the checkpoint as gpt-oss stores it. In `tensors`, the experts become what
        transformers decodes from that."""
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors
        packed = {}
        for name, weight in list(tensors.items()):
            if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                packed[name] = weight
                continue
            rows = weight.float().transpose(1, 2).unflatten(2, (-1, 32))  # [experts, out, in / 32, 32]
            exponents = torch.floor(torch.log2(rows.abs().amax(3))) - 2
            values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
            scaled = rows * torch.exp2(-exponents)[..., None]
            codes = (scaled.abs()[..., None] - values).abs().argmin(-1) + 8 * (scaled < 0)
            codes = codes.to(torch.uint8)
            packed[name + "_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
            packed[name + "_scales"] = (exponents + 127).to(torch.uint8)
            tensors[name] = convert_moe_packed_tensors(packed[name + "_blocks"],
                                                       packed[name + "_scales"])
        return packed

    def random_ids(self):
        from safetensors.torch import save_file
        save_file({"input_ids": torch.randint(0, 96, (8, 64))}, self.work / "ids.safetensors")
        return self.work / "ids.safetensors"

    def agrees(self, model, plugin, variant="", without=None):
        """A small random model of transformers: checked, and run by both. `without`: the end of the
        names of tensors that transformers is to ignore and the plugin not to see."""
        from safetensors.torch import load_file, save_file
        model = model.float().eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():  # norms get weights other than one
                weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.1) +
                             (1 if weight.dim() == 1 and "norm" in name else 0))
                if without and name.endswith(without):
                    weight.fill_(-1e9)
            for name, values in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    values.copy_(torch.randn_like(values) * 0.2)
        folder = self.work / f"{plugin}-{variant}-model"
        model.save_pretrained(folder)
        if without:
            tensors = load_file(folder / "model.safetensors")
            save_file({n: t for n, t in tensors.items() if not n.endswith(without)},
                      folder / "model.safetensors")
            config = json.loads((folder / "config.json").read_text())
            config.update(model_type=plugin, architectures=[])
            (folder / "config.json").write_text(json.dumps(config))
        open_rules = self.check(plugin, "--model", folder)
        self.assertEqual([l for l in open_rules if not l.endswith("no layer has a router")], [])
        ids = torch.arange(1, 65) * 37 % 96
        (self.work / "ids.txt").write_text(" ".join(map(str, ids.tolist())))
        out = self.work / f"{plugin}-{variant}-dump"
        run(BUILD / "bin/interop_dump", self.plugins, folder, self.work / "ids.txt", out,
            "float32")
        ours = load_file(out / "model.safetensors")["logits"]
        with torch.no_grad():
            theirs = model(ids[None]).logits[0]
        self.assertLess(((ours - theirs).norm() / theirs.norm()).item(), 1e-4)


if __name__ == "__main__":
    unittest.main()
