"""Tests of plugins as files: the symbols that they export, the folders where aqhost looks for them, the
messages about them, and a format in plain C that is used in a whole run.

ctest runs this file with AQ_BUILD set to the build folder. It needs binutils and a C compiler.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
MODEL = TESTS / "models/olmoe-tiny"
OTHER_ABI = "2." + re.search(r"#define AQ_ABI_MINOR (\d+)", (ROOT / "sdk/include/aq/abi.h").read_text())[1]


def run(*command, **keywords):
    # the strings of a plugin need not be UTF-8
    return subprocess.run([str(c) for c in command], capture_output=True, text=True,
                          errors="replace", stdin=subprocess.DEVNULL, **keywords)


class WithFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)

    def ok(self, *command, **keywords):
        done = run(*command, **keywords)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout


class Exports(WithFolder):
    def test_every_plugin_exports_one_symbol_and_links_no_libtorch(self):
        plugins = sorted((BUILD / "plugins").glob("*.so"))
        self.assertGreaterEqual(len(plugins), 2)
        for plugin in plugins:
            with self.subTest(plugin.name):
                symbols = [line.split() for line in
                           self.ok("nm", "-D", "--defined-only", plugin).splitlines()]
                self.assertEqual([(s[-2] in "DR", s[-1]) for s in symbols],
                                 [(True, "aq_plugin_entry")])
                undefined = self.ok("nm", "-D", "--undefined-only", plugin)
                self.assertNotRegex(undefined, "c10|ATen|_ZN2at|torch|boost")
                needed = self.ok("readelf", "-d", plugin)
                libraries = [line.split("[")[1].rstrip("]") for line in needed.splitlines()
                             if "(NEEDED)" in line]
                known = ("libc.so", "libm.so", "libstdc++.so", "libgcc_s.so", "ld-linux")
                if os.environ.get("AQ_SANITIZE"):
                    known += ("libasan.so", "libubsan.so", "libtsan.so")
                self.assertEqual([l for l in libraries if not l.startswith(known)], [])
                self.assertNotIn("TEXTREL", needed)


class Rules(WithFolder):
    def test_every_plugin_holds_to_every_rule(self):
        for plugin in sorted((BUILD / "plugins").glob("*.so")):
            model = TESTS / "models" / (plugin.stem.replace("_", "-") + "-tiny")
            with self.subTest(plugin.name):
                lines = self.ok(BUILD / "bin/aq-check", plugin,
                                *(["--model", model] if model.exists() else [])).splitlines()
                if (ROOT / "plugins/models" / plugin.stem).exists() and not model.exists():
                    # tests/interop/test_conformance.py checks the other rules
                    lines = [l for l in lines if not l.startswith("skipped ")]
                    self.assertGreater(len(lines), 5)
                else:
                    self.assertGreater(len(lines), 14)
                self.assertEqual([l for l in lines if not l.startswith("holds ")], [])


class Listing(WithFolder):
    def test_json_says_what_was_found_and_what_was_refused_and_why(self):
        folder = BUILD / "tests/plugins-bad"
        listed = json.loads(self.ok(BUILD / "bin/aqhost", "plugins", "--json", "--plugin-dir", folder))
        mine = {pathlib.Path(p["path"]).stem: p for p in listed
                if pathlib.Path(p["path"]).parent == folder}
        self.assertEqual({p.stem for p in folder.glob("*.so")}, set(mine))
        good = dict(mine["newer-minor"])
        self.assertEqual(good.pop("path"), str(folder / "newer-minor.so"))
        self.assertRegex(good.pop("sha256"), "^[0-9a-f]{64}$")
        self.assertEqual(good.pop("description"), "bytes \ufffd of no UTF-8")
        self.assertEqual(good, {"id": "newer-minor", "kind": "model", "name": "Name",
                                "version": "2.3.4", "vendor": "Vendor", "abi": "1.999"})
        self.assertIn(f"plugin ABI {OTHER_ABI}", mine["other-major"]["refused"])
        self.assertEqual(mine["other-major"]["abi"], OTHER_ABI)
        self.assertIn("taken by", mine["twin-2"]["refused"])
        text = self.ok(BUILD / "bin/aqhost", "plugins", "--plugin-dir", folder)
        self.assertIn(f"refused  {folder / 'not-elf.so'}", text)
        self.assertIn("not a plugin of aqhost", text)
        # the plugins of the build are also found, after these
        self.assertIn("olmoe", [p["id"] for p in listed])

    def test_refused_plugins_are_warned_of_and_do_not_stop_the_others(self):
        done = run(BUILD / "bin/aqhost", "inspect", "--model", MODEL, "--json", "--plugin-dir",
                   BUILD / "tests/plugins-bad")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"other-major.so refused: it is built for plugin ABI {OTHER_ABI}", done.stderr)
        self.assertIn("probe let an exception out", done.stderr)
        self.assertEqual(json.loads(done.stdout)["family"], "olmoe")


class Nothing(WithFolder):
    """Tests a program that was copied without its plugins."""

    def test_every_command_says_that_no_plugin_was_found_and_where(self):
        (self.work / "bin").mkdir()
        shutil.copy(BUILD / "bin/aqhost", self.work / "bin")
        aqhost = (self.work / "bin/aqhost").resolve()
        environment = {**os.environ, "AQ_PLUGIN_PATH": "/no/such/folder"}
        where = (f"no plugin was found in /no/such/folder (no such folder), "
                 f"{aqhost.parent.parent}/lib/aqhost/plugins (no such folder), "
                 f"{aqhost.parent.parent}/plugins (no such folder); give --plugin-dir")
        done = run(aqhost, "plugins", env=environment)
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        self.assertIn(where, done.stderr)
        done = run(aqhost, "plugins", "--json", env=environment)
        self.assertEqual((done.returncode, json.loads(done.stdout)), (0, []))
        self.assertIn(where, done.stderr)
        for command in (["inspect"], ["plan"], ["inspect", "--model-type", "olmoe"]):
            with self.subTest(command):
                done = run(aqhost, *command, "--model", MODEL, env=environment)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertIn(where.replace("no plugin", "no model plugin"), done.stderr)


class UnknownKeys(WithFolder):
    """Tests keys of config.json that a family does not know."""

    def model(self, name, changes):
        folder = self.work / name
        shutil.copytree(TESTS / "models" / name, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    def warnings(self, folder, command="inspect"):
        done = run(BUILD / "bin/aqhost", command, "--model", folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [line for line in done.stderr.splitlines() if "does not know" in line]

    def test_they_are_named_in_one_warning(self):
        for name, family in (("olmoe-tiny", "olmoe"), ("mixtral-tiny", "mixtral"),
                             ("qwen2-moe-tiny", "qwen2_moe"), ("deepseek-moe-tiny", "deepseek_moe")):
            with self.subTest(name):
                self.assertEqual(self.warnings(TESTS / "models" / name), [])
                folder = self.model(name, {"embedding_multiplier": 12, "logits_scaling": 7,
                                           "some_new_switch": True, "not_set": None})
                for command in ("inspect", "plan"):
                    [line] = self.warnings(folder, command)
                    self.assertTrue(line.endswith(
                        f'{folder}/config.json: model "{family}" does not know these keys and runs '
                        "as if they were not set: embedding_multiplier, logits_scaling, "
                        "some_new_switch"), line)

    def test_what_published_configurations_set_gives_no_warning(self):
        """The published checkpoints have keys that the small models do not have."""
        common = {"_name_or_path": "x", "transformers_version": "4.40.0", "pad_token_id": None,
                  "dtype": "bfloat16", "rope_parameters": {"rope_type": "default",
                                                           "rope_theta": 10000.0}}
        published = {
            "olmoe-tiny": {"eos_token_id": 50279, "layer_types": ["full_attention"] * 3,
                           "num_local_experts": 16},
            "mixtral-tiny": {"head_dim": None, "router_jitter_noise": 0.0, "num_experts": 8,
                             "layer_types": ["full_attention"] * 3},
            "qwen2-moe-tiny": {"qkv_bias": True, "num_local_experts": 12,
                               "layer_types": ["full_attention"] * 3},
            "deepseek-moe-tiny": {"auto_map": {"AutoConfig": "x.Y"}, "ep_size": 1,
                                  "layer_types": ["full_attention"] * 4}}
        for name, keys in published.items():
            with self.subTest(name):
                self.assertEqual(self.warnings(self.model(name, {**common, **keys})), [])

    def test_an_alias_of_the_number_of_experts_stands_for_it(self):
        for name, key, alias in (("mixtral-tiny", "num_local_experts", "num_experts"),
                                 ("olmoe-tiny", "num_experts", "num_local_experts"),
                                 ("qwen2-moe-tiny", "num_experts", "num_local_experts")):
            with self.subTest(name):
                count = json.loads((TESTS / "models" / name / "config.json").read_text())[key]
                folder = self.model(name, {key: None, alias: count})
                shown = json.loads(self.ok(BUILD / "bin/aqhost", "inspect", "--model", folder, "--json"))
                self.assertEqual(shown["experts"], count)
                config = json.loads((folder / "config.json").read_text())
                (folder / "config.json").write_text(json.dumps({**config, key: count + 1}))
                done = run(BUILD / "bin/aqhost", "inspect", "--model", folder)
                self.assertEqual(done.returncode, 1)
                self.assertIn(f"config.json: {alias} is {count}, expected {count + 1}", done.stderr)


class SearchOrder(WithFolder):
    def paths(self, *options, environment=None):
        """Returns {id: path} of the plugins that the copy of aqhost in work/bin finds."""
        environ = {**os.environ, "AQ_PLUGIN_PATH": environment or ""}
        listed = json.loads(self.ok(self.work / "bin/aqhost", "plugins", "--json", *options,
                                    env=environ))
        return {p["id"]: str(pathlib.Path(p["path"]).resolve().parent.relative_to(self.work))
                for p in listed if "refused" not in p}

    def test_given_folders_then_environment_then_installed_then_built(self):
        (self.work / "bin").mkdir()
        shutil.copy(BUILD / "bin/aqhost", self.work / "bin")
        folders = ["first", "second", "env1", "env2", "lib/aqhost/plugins", "plugins"]
        for folder in folders:
            (self.work / folder).mkdir(parents=True)
            shutil.copy(BUILD / "plugins/int4.so", self.work / folder)
        given = ["--plugin-dir", "first", "--plugin-dir", "second"]
        options = [str(self.work / o) if not o.startswith("-") else o for o in given]
        environment = f"{self.work}/env1::{self.work}/missing:{self.work}/env2"
        for folder in folders:
            with self.subTest(folder):
                self.assertEqual(self.paths(*options, environment=environment), {"int4": folder})
            (self.work / folder / "int4.so").unlink()
        self.assertEqual(self.paths(*options, environment=environment), {})


CALIBRATION = ("--calib", TESTS / "data/kjv_calib.txt", "--nsamples", 4, "--seqlen", 64)


class PlainC(WithFolder):
    """tests/third_party/plugins/ternary.c is C11; each installed compiler builds it with only the headers."""

    def through_aqhost(self, compiler):
        plugins = self.work / "plugins"
        plugins.mkdir()
        self.ok(compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion",
                "-Werror", "-fPIC", "-fvisibility=hidden", "-shared", "-I", ROOT / "sdk/include",
                TESTS / "third_party/plugins/ternary.c", "-o", plugins / "ternary.so")
        recipe = self.work / "ternary.yaml"
        recipe.write_text("default:\n  wq: ternary\n  group_size: -1\n")
        for algorithm in ("rtn", "gptq"):
            out = self.work / algorithm
            self.ok(BUILD / "bin/aqhost", "--plugin-dir", plugins, "--model", MODEL, "--config",
                    recipe, "--algorithm", algorithm, "--save", out,
                    *({"gptq": CALIBRATION}.get(algorithm, ())))
            verified = json.loads(self.ok(BUILD / "bin/aqhost", "verify", "--plugin-dir", plugins,
                                          "--model", out, "--json"))
            self.assertEqual(verified["formats"], {"ternary": 3 * (4 + 16 * 3)})
            report = json.loads((out / "quantization_report.json").read_text())
            module = report["modules"]["model.layers.1.self_attn.q_proj"]
            self.assertEqual((module["format"], module["algorithm"]), ("ternary", algorithm))
            config = json.loads((out / "config.json").read_text())["quantization_config"]
            self.assertEqual(config["quant_method"], "ternary")
        self.assertLess(module["loss"], module["rtn_loss"])  # the last run used GPTQ

    def test_built_by_gcc(self):
        self.through_aqhost("gcc")

    @unittest.skipUnless(shutil.which("clang") or shutil.which("clang-16"), "clang is not installed")
    def test_built_by_clang(self):
        self.through_aqhost("clang" if shutil.which("clang") else "clang-16")


if __name__ == "__main__":
    unittest.main()
