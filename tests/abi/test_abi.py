"""The promise of sdk/ABI.md, held: headers that compile everywhere, and a layout that only grows.

Run by ctest with AQ_BUILD (the build folder) set; needs gcc, and tests clang where it is installed.
"""
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import layout

BUILD = pathlib.Path(os.environ["AQ_BUILD"])
TERNARY = layout.ROOT / "tests/third_party/plugins/ternary.c"
CLANG = next((c for c in ("clang", "clang-16") if shutil.which(c)), None)


def compilers():
    """(compiler, language, standard)"""
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
    """A plugin of tomorrow's headers in today's host."""

    def check(self, value):
        """aq-check's lines of a plugin that fills a field, `later`, which this host does not have."""
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            shutil.copytree(layout.INCLUDE / "aq", folder / "aq")
            for header, old, new in (
                    ("aq/abi.h", "#define AQ_ABI_MINOR 0", "#define AQ_ABI_MINOR 1"),
                    ("aq/quantizer.h", "} aq_format_desc;", "  int64_t later;\n} aq_format_desc;"),
                    ("ternary.c", "  desc.n_packed = 3;",
                     f"  desc.n_packed = 3;\n  desc.later = {value};")):
                path = folder / header
                text = (path if path.exists() else TERNARY).read_text()
                self.assertEqual(text.count(old), 1, old)
                path.write_text(text.replace(old, new))
            subprocess.run(["gcc", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", "-I", folder,
                            folder / "ternary.c", "-o", folder / "ternary.so"], check=True)
            done = subprocess.run([BUILD / "bin/aq-check", folder / "ternary.so"],
                                  capture_output=True, text=True)
            return done.returncode, done.stdout

    def test_a_later_field_that_is_not_0_is_refused_by_a_sentence(self):
        status, told = self.check(5)
        self.assertEqual(status, 1, told)
        self.assertRegex(told, r"BROKEN +format ternary: it can be made .*ternary\.so.*: describe: "
                               "ternary: the host is older than this plugin needs")

    def test_a_later_field_of_0_means_as_before(self):
        status, told = self.check(0)
        self.assertEqual(status, 0, told)
        self.assertIn("entry is of this ABI", told)


class Layout(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.baseline = layout.BASELINE.read_text().splitlines()

    def test_what_the_baseline_has_is_as_it_was(self):
        self.assertEqual(layout.broken_promises(self.baseline, layout.layout()), [])

    def test_the_table_has_every_struct_and_enumerator(self):
        text = "".join((layout.INCLUDE / h).read_text() for h in layout.HEADERS)
        text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
        structs = set(re.findall(r"\bstruct (aq_\w+) *\{", text))
        self.assertEqual({l.split()[1] for l in self.baseline if l.startswith("struct ")}, structs)
        enumerators = set(re.findall(r"\b(AQ_\w+) = ", text))
        constants = {l.split()[1] for l in self.baseline if l.startswith("const ")}
        self.assertEqual(enumerators - constants, set())
        self.assertIn("AQ_MODEL_FACTORY_ID", constants)

    @unittest.skipUnless(CLANG, "clang is not installed")
    def test_clang_lays_out_as_gcc(self):
        self.assertEqual(layout.layout(compiler=CLANG), layout.layout())

    def changed(self, header, before, after, *more):
        """What is broken by headers in which `header` says `after` instead of `before`."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(layout.INCLUDE / "aq", pathlib.Path(folder) / "aq")
            for name, old, new in ((header, before, after), *more):
                path = pathlib.Path(folder) / name
                self.assertEqual(path.read_text().count(old), 1, old)
                path.write_text(path.read_text().replace(old, new))
            return layout.broken_promises(self.baseline, layout.layout(pathlib.Path(folder)))

    MINOR = ("aq/abi.h", "#define AQ_ABI_MINOR 0", "#define AQ_ABI_MINOR 1")

    def test_a_field_at_the_end_is_growth_if_the_minor_version_tells(self):
        field = ("aq/model.h", "  const char* label;  ", "  const char* label; int64_t more;  ")
        self.assertEqual(self.changed(*field, self.MINOR), [])
        self.assertEqual(self.changed(*field), ["something was added, and AQ_ABI_MINOR is as before"])

    def test_a_field_in_the_middle_or_gone_is_not(self):
        broken = self.changed("aq/model.h", "  int32_t route_hidden; ", "", self.MINOR)
        self.assertRegex(" ".join(broken), "aq_ffn_desc.route_hidden was .*, and there is nothing")
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
