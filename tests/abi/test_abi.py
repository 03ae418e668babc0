"""Tests of the promises of sdk/ABI.md: the headers compile everywhere, and the layout only grows.

ctest runs this file with AQ_BUILD set to the build folder. It needs gcc, and also tests clang if it is
installed.
"""
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import unittest

import grow
import layout

BUILD = pathlib.Path(os.environ["AQ_BUILD"])
HOST = pathlib.Path(__file__).with_name("old_host.c")
TERNARY = layout.ROOT / "tests/third_party/plugins/ternary.c"
MODEL = pathlib.Path(__file__).with_name("old_model.c")
SANITIZE = [f"-fsanitize={s}" for s in filter(None, [os.environ.get("AQ_SANITIZE")])]
CLANG = next((c for c in ("clang", "clang-16") if shutil.which(c)), None)


def write_checkpoint(folder):
    """Writes the checkpoint of old_model.c, whose weights are all 0."""
    shapes = {"embed": [6, 4], "norm": [4], "head": [6, 4]}
    for name in ("attn_norm", "ffn_norm"):
        shapes[f"layer.0.{name}"] = [4]
    for name, out, features in (*((n, 4, 4) for n in "qkvo"), ("gate", 5, 4), ("up", 5, 4), ("down", 4, 5)):
        shapes[f"layer.0.{name}"] = [out, features]
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name + ".weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    (folder / "config.json").write_text(json.dumps({"model_type": "old_model"}))


def compilers():
    """Yields (compiler, language, standard)."""
    for cc in filter(None, ("gcc", CLANG)):
        for language, standards in (("c", ("c11", "c17")), ("c++", ("c++17", "c++20"))):
            for standard in standards:
                yield cc, language, standard


class Headers(unittest.TestCase):
    def compile(self, compiler, language, standard, text, include=layout.INCLUDE, warnings=()):
        return subprocess.run(
            [compiler, "-x", language, f"-std={standard}", "-fsyntax-only", "-Wall", "-Wextra",
             "-pedantic", "-Werror", *warnings, "-I", include, "-"],
            input=text, capture_output=True, text=True)

    def test_each_header_alone_in_every_language(self):
        for compiler, language, standard in compilers():
            for header in layout.HEADERS:
                with self.subTest(header=header, compiler=compiler, standard=standard):
                    done = self.compile(compiler, language, standard,
                                        f"#include <{header}>\nint main(void) {{ return 0; }}\n",
                                        warnings=("-Wconversion", "-Wshadow"))
                    self.assertEqual(done.returncode, 0, done.stderr)

    @unittest.skipUnless(CLANG, "clang is not installed")
    def test_the_cpp_side_compiles_by_clang_too(self):
        headers = sorted((layout.INCLUDE / "aq/sdk").glob("*.hpp"))
        text = "".join(f"#include <aq/sdk/{h.name}>\n" for h in headers) + "int main() {}\n"
        done = self.compile(CLANG, "c++", "c++20", text)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_header_that_does_not_compile_is_noticed(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(layout.INCLUDE / "aq", pathlib.Path(folder) / "aq")
            header = pathlib.Path(folder) / "aq/abi.h"
            header.write_text(header.read_text().replace("int32_t aq_status", "int32_t class"))
            self.assertNotEqual(self.compile("gcc", "c++", "c++17", "#include <aq/abi.h>", folder)
                                .returncode, 0)


class Versions(unittest.TestCase):
    """Tests hosts with plugins that are built with the headers of the baseline, of today, and of a later
    version, whose structs have grown."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.work = pathlib.Path(folder.name)
        grow.grow(cls.work)
        cls.headers = {"baseline": layout.BASELINE, "today": layout.INCLUDE, "tomorrow": cls.work}
        cls.hosts, cls.plugins, cls.models = {}, {}, {}
        for version, include in cls.headers.items():
            cls.hosts[version] = cls.work / f"{version}-host"
            subprocess.run(["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror",
                            "-Wno-missing-field-initializers", "-I", include, *SANITIZE,
                            HOST, "-o", cls.hosts[version]], check=True)
            cls.plugins[version] = cls.build(version, TERNARY.read_text())
            cls.models[version] = cls.build(version, MODEL.read_text(), "old_model")
        cls.checkpoint = cls.work / "checkpoint"
        cls.checkpoint.mkdir()
        write_checkpoint(cls.checkpoint)

    @classmethod
    def build(cls, version, text, name="ternary"):
        source = cls.work / f"{version}-{name}.c"
        source.write_text(text)
        plugin = source.with_suffix(".so")
        subprocess.run(["gcc", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", "-I",
                        cls.headers[version], source, "-o", plugin], check=True)
        return plugin

    @classmethod
    def filling(cls, value):
        """Builds a plugin with the later headers that sets the new field to this value."""
        text = TERNARY.read_text()
        old = "  desc.n_packed = 3;"
        assert text.count(old) == 1
        return cls.build("tomorrow", text.replace(old, f"{old}\n  desc.later = {value};"), "later")

    def run_host(self, version, *arguments):
        return subprocess.run([self.hosts[version], *arguments], capture_output=True, text=True)

    def test_every_plugin_loads_in_every_host(self):
        for host in self.hosts:
            for version, plugin in self.plugins.items():
                with self.subTest(host=host, plugin=version):
                    done = self.run_host(host, plugin)
                    self.assertEqual(done.stdout, "format ternary: 2 bits, first weight_packed\n",
                                     done.stderr)
            for version, plugin in self.models.items():
                with self.subTest(host=host, model=version):
                    done = self.run_host(host, plugin, self.checkpoint / "config.json")
                    self.assertEqual(done.stdout, "model old_model: score 100, 1 layers, first layer.0.q\n",
                                     done.stderr)

    @staticmethod
    def formats():
        """Returns the format plugins of today, each of which offers one format of its own name."""
        models = {p.name for p in (layout.ROOT / "plugins/models").iterdir()}
        return [p for p in sorted((BUILD / "plugins").glob("*.so")) if p.stem not in models]

    def grown_host(self, plugins, *models):
        """Returns what the host's plugin layer, compiled with the later headers, reports about plugins."""
        done = subprocess.run([BUILD / "bin/grown_host", plugins, *models], capture_output=True,
                              text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_todays_plugins_load_in_the_host_of_tomorrow(self):
        plugins = BUILD / "plugins"
        models = sorted(layout.ROOT.glob("tests/models/*-tiny"))
        self.assertEqual(len(models), 4)
        output = self.grown_host(plugins, *models)
        self.assertNotIn("refused", output)
        self.assertEqual(output.count("model "), len(models), output)
        self.assertEqual(output.count("format "), len(self.formats()), output)
        self.assertIn("format int4: 4 bits, first weight_packed\n", output)

    def test_a_plugin_of_the_baseline_loads_in_the_host_of_tomorrow(self):
        folder = self.work / "baseline-plugins"
        folder.mkdir()
        shutil.copy(self.plugins["baseline"], folder)
        shutil.copy(self.models["baseline"], folder)
        self.assertEqual(self.grown_host(folder, self.checkpoint),
                         "format ternary: 2 bits, first weight_packed\n"
                         "model old_model: 1 layers, 8 modules\n")

    def test_plugins_of_tomorrow_load_in_todays_host(self):
        folder = BUILD / "tests/plugins-grown"
        model = layout.ROOT / "tests/models/olmoe-tiny"
        for plugin in sorted(folder.glob("*.so")):
            with self.subTest(plugin.name):
                done = self.check(plugin, *(["--model", model] if plugin.stem == "olmoe" else []))
                self.assertEqual(done.returncode, 0, done.stdout)
                self.assertNotIn("skipped", done.stdout)
        self.assertEqual(self.grown_host(folder, model).count("\n"), 3)

    def test_todays_plugins_load_in_a_host_of_the_baseline(self):
        config = layout.ROOT / "tests/models/olmoe-tiny/config.json"
        self.assertGreater(len(self.formats()), 10)
        for plugin in self.formats():
            with self.subTest(plugin.name):
                done = self.run_host("baseline", plugin)
                if re.fullmatch(r"q\d_k", plugin.stem):  # with two-level scales, a field of today
                    self.assertEqual(done.returncode, 1)
                    self.assertEqual(done.stderr, "describe: the host is older than this plugin needs: a "
                                                  "field it would fill is not there (status 3)\n")
                    continue
                self.assertRegex(done.stdout, rf"^format {plugin.stem}: \d+ bits", done.stderr)
        done = self.run_host("baseline", BUILD / "plugins/olmoe.so", config)
        self.assertEqual(done.stdout, "model olmoe: score 100, 3 layers, first "
                                      "model.layers.0.self_attn.q_proj\n", done.stderr)

    def test_a_plugin_of_the_baseline_holds_to_every_rule_in_todays_host(self):
        done = self.check(self.plugins["baseline"])
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertNotIn("BROKEN", done.stdout)
        for version, plugin in self.models.items():
            with self.subTest(model=version):
                done = self.check(plugin, "--model", self.checkpoint)
                self.assertEqual(done.returncode, 0, done.stdout)
                self.assertGreater(done.stdout.count("holds "), 10)
                self.assertNotIn("BROKEN", done.stdout)

    def test_a_model_of_the_baseline_runs_in_todays_host(self):
        plugins, recipe, out = (self.work / name for name in ("old-models", "recipe.yaml", "out"))
        plugins.mkdir()
        shutil.copy(self.models["baseline"], plugins)
        recipe.write_text("default: {wq: int8, group_size: -1, algorithm: rtn}\n")
        for options in (["--model", self.checkpoint, "--config", recipe, "--save", out],
                        ["verify", "--model", out]):
            done = subprocess.run([BUILD / "bin/aqhost", *options, "--plugin-dir", plugins],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("old_model", done.stdout)

    def test_a_model_that_needs_todays_fields_is_refused_by_a_host_of_the_baseline(self):
        config = self.work / "qwen3_next.json"
        config.write_text(json.dumps({
            "model_type": "qwen3_next", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
            "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "full_attention_interval": 1, "rms_norm_eps": 1e-6}))
        plugin = BUILD / "plugins/qwen3_next.so"
        self.assertEqual(self.run_host("today", plugin, config).returncode, 0)
        done = self.run_host("baseline", plugin, config)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr, "describe: the host is older than this plugin needs: a field it would "
                                      "fill is not there (status 3)\n")

    def check(self, plugin, *options):
        return subprocess.run([BUILD / "bin/aq-check", plugin, *options], capture_output=True,
                              text=True)

    def test_a_later_field_that_is_not_0_is_refused_by_a_sentence(self):
        plugin = self.filling(5)
        done = self.check(plugin)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertRegex(done.stdout,
                         r"BROKEN +format ternary: it can be made .*later\.so.*: describe: "
                         "ternary: the host is older than this plugin needs")
        for host in ("baseline", "today"):
            done = self.run_host(host, plugin)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(done.stderr, "describe: ternary: the host is older than this plugin "
                                          "needs (status 3)\n")
        self.assertEqual(self.run_host("tomorrow", plugin).returncode, 0)

    def test_a_later_field_of_0_means_as_before(self):
        done = self.check(self.filling(0))
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("entry is of this ABI", done.stdout)


class Layout(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.today = layout.layout()

    def test_what_the_baseline_has_is_as_it_was(self):
        self.assertEqual(layout.broken_promises(layout.layout(layout.BASELINE), self.today), [])

    def test_the_table_has_every_struct_and_enumerator(self):
        text = "".join((layout.INCLUDE / h).read_text() for h in layout.HEADERS)
        text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
        structs = set(re.findall(r"\bstruct (aq_\w+) *\{", text))
        self.assertEqual({l.split()[1] for l in self.today if l.startswith("struct ")}, structs)
        enumerators = set(re.findall(r"\b(AQ_\w+) = ", text))
        constants = {l.split()[1] for l in self.today if l.startswith("const ")}
        self.assertEqual(enumerators - constants, set())
        self.assertIn("AQ_MODEL_FACTORY_ID", constants)

    @unittest.skipUnless(CLANG, "clang is not installed")
    def test_clang_lays_out_as_gcc(self):
        self.assertEqual(layout.layout(compiler=CLANG), self.today)

    def changed(self, header, before, after, *more):
        """Returns the promises that are broken if a later `header` has `after` in place of `before`."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(layout.INCLUDE / "aq", pathlib.Path(folder) / "aq")
            for name, old, new in ((header, before, after), *more):
                path = pathlib.Path(folder) / name
                self.assertEqual(path.read_text().count(old), 1, old)
                path.write_text(path.read_text().replace(old, new))
            return layout.broken_promises(self.today, layout.layout(pathlib.Path(folder)))

    MINOR = ("aq/abi.h", *(f"#define AQ_ABI_MINOR {layout.minor() + n}" for n in (0, 1)))

    def test_a_field_at_the_end_is_allowed_if_the_minor_version_grows(self):
        field = ("aq/model.h", "  const char* label;  ", "  const char* label; int64_t more;  ")
        self.assertEqual(self.changed(*field, self.MINOR), [])
        self.assertEqual(self.changed(*field), ["something was added, and AQ_ABI_MINOR is as before"])

    def test_a_field_in_the_middle_or_gone_is_not(self):
        broken = self.changed("aq/model.h", "  const char* label;  ", "", self.MINOR)
        self.assertRegex(" ".join(broken), "aq_module.label was .*, and there is nothing")
        broken = self.changed("aq/abi.h", "  void* host_data;", "  void* new_data; void* host_data;",
                              self.MINOR)
        self.assertRegex(" ".join(broken), "aq_host.host_data was .*, and there is new_data")

    def test_a_changed_type_signature_or_constant_is_not(self):
        broken = self.changed("aq/model.h", "float norm_eps;", "int32_t norm_eps;")
        self.assertRegex(" ".join(broken), "aq_model_desc.norm_eps was")
        broken = self.changed("aq/quantizer.h", "int64_t rows, int64_t cols, uint32_t i,",
                              "int32_t rows, int64_t cols, uint32_t i,")
        self.assertRegex(" ".join(broken), "aq_quantizer.get_packed was")
        self.assertEqual(self.changed("aq/model.h", "AQ_ROLE_ATTN_K = 18", "AQ_ROLE_ATTN_K = 118"),
                         ["AQ_ROLE_ATTN_K was 18 and is 118"])
        self.assertEqual(self.changed("aq/model.h", '"aq.model-factory/1"', '"aq.model-factory/2"'),
                         ["AQ_MODEL_FACTORY_ID was aq.model-factory/1 and is aq.model-factory/2"])

    def test_a_frozen_struct_does_not_grow(self):
        broken = self.changed("aq/model.h", "  int32_t part;   /*", "  int32_t part; int32_t more; /*",
                              self.MINOR)
        self.assertEqual(broken[0], "aq_tensor_key is frozen (it has no struct_size), but changed")

    def test_a_field_in_old_padding_is_refused(self):
        before = ["const AQ_ABI_MINOR 0", "struct aq_s 16", "field aq_s.struct_size 0 4 uint32_t",
                  "field aq_s.p 8 4 int32_t p"]
        after = ["const AQ_ABI_MINOR 1", *before[1:], "field aq_s.q 12 4 int32_t q"]
        self.assertRegex(layout.broken_promises(before, after)[0], "lies in what was padding")

    def test_a_field_that_cannot_be_read_is_an_error(self):
        with self.assertRaisesRegex(SystemExit, "cannot read the field"):
            self.changed("aq/model.h", "float norm_eps;", "unsigned norm_eps : 4;")


if __name__ == "__main__":
    unittest.main()
