"""Plugins as files: what they export, where they are looked for, what is said of them, and a format
in plain C that goes the whole way through aqhost.

Run by ctest with AQ_BUILD (the build folder) set; needs binutils and a C compiler.
"""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
MODEL = TESTS / "models/olmoe-tiny"


def run(*command, **keywords):
    # what a plugin says of itself may be no UTF-8
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
                self.assertEqual([l for l in libraries if not l.startswith(known)], [])
                self.assertNotIn("TEXTREL", needed)


class Rules(WithFolder):
    def test_every_plugin_holds_to_every_rule(self):
        for plugin in sorted((BUILD / "plugins").glob("*.so")):
            model = TESTS / "models" / (plugin.stem.replace("_", "-") + "-tiny")
            with self.subTest(plugin.name):
                lines = self.ok(BUILD / "bin/aq-check", plugin,
                                *(["--model", model] if model.exists() else [])).splitlines()
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
        self.assertIn("plugin ABI 2.0", mine["other-major"]["refused"])
        self.assertEqual(mine["other-major"]["abi"], "2.0")
        self.assertIn("taken by", mine["twin-2"]["refused"])
        text = self.ok(BUILD / "bin/aqhost", "plugins", "--plugin-dir", folder)
        self.assertIn(f"refused  {folder / 'not-elf.so'}", text)
        self.assertIn("not a plugin of aqhost", text)
        # the built ones come too, after all that
        self.assertIn("olmoe", [p["id"] for p in listed])

    def test_refused_plugins_are_warned_of_and_do_not_stop_the_others(self):
        done = run(BUILD / "bin/aqhost", "inspect", "--model", MODEL, "--json", "--plugin-dir",
                   BUILD / "tests/plugins-bad")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("other-major.so refused: it is built for plugin ABI 2.0", done.stderr)
        self.assertIn("probe let an exception out", done.stderr)
        self.assertEqual(json.loads(done.stdout)["family"], "olmoe")


class SearchOrder(WithFolder):
    def paths(self, *options, environment=None):
        """Where each id was found, as aqhost copied into work/bin sees it."""
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


class PlainC(WithFolder):
    """tests/third_party/plugins/ternary.c: C11, built by each compiler there is, from the headers alone."""

    def through_aqhost(self, compiler):
        plugins = self.work / "plugins"
        plugins.mkdir()
        self.ok(compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion",
                "-Werror", "-fPIC", "-fvisibility=hidden", "-shared", "-I", ROOT / "sdk/include",
                TESTS / "third_party/plugins/ternary.c", "-o", plugins / "ternary.so")
        recipe = self.work / "ternary.yaml"
        recipe.write_text("default:\n  wq: ternary\n  group_size: -1\n")
        loss = {}
        for algorithm in ("rtn", "gptq"):
            out = self.work / algorithm
            self.ok(BUILD / "bin/aqhost", "--plugin-dir", plugins, "--model", MODEL, "--config",
                    recipe, "--algorithm", algorithm, "--calib", TESTS / "data/kjv_calib.txt",
                    "--nsamples", 4, "--seqlen", 64, "--save", out)
            verified = json.loads(self.ok(BUILD / "bin/aqhost", "verify", "--plugin-dir", plugins,
                                          "--model", out, "--json"))
            self.assertEqual(verified["formats"], {"ternary": 3 * (4 + 16 * 3)})
            report = json.loads((out / "quantization_report.json").read_text())
            module = report["modules"]["model.layers.1.self_attn.q_proj"]
            self.assertEqual((module["format"], module["algorithm"]), ("ternary", algorithm))
            loss[algorithm] = module["loss"]
            config = json.loads((out / "config.json").read_text())["quantization_config"]
            self.assertEqual(config["quant_method"], "ternary")
        self.assertLess(loss["gptq"], loss["rtn"])

    def test_built_by_gcc(self):
        self.through_aqhost("gcc")

    @unittest.skipUnless(shutil.which("clang") or shutil.which("clang-16"), "clang is not installed")
    def test_built_by_clang(self):
        self.through_aqhost("clang" if shutil.which("clang") else "clang-16")


if __name__ == "__main__":
    unittest.main()
