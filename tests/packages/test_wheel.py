"""Tests of the Python package: the wheel is installed in a fresh virtual environment, which takes torch from
the environment of the interop tests. There, the program works and a plugin is built.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates.
"""
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import unittest
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/e2e"))
from run_command import programs_that_name, run  # noqa: E402

BUILD = pathlib.Path(os.environ["AQ_BUILD"]).resolve()
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SYSTEM = r"lib(c|m|dl|pthread|rt|util|stdc\+\+|gcc_s)\.so.*|ld-linux-x86-64\.so\.2"  # what every Linux has
try:
    TORCH = importlib.metadata.version("torch")
except importlib.metadata.PackageNotFoundError:
    TORCH = None


@unittest.skipUnless(TORCH, "needs torch (tests/interop/requirements.txt)")
class Wheel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.work = pathlib.Path(folder.name)
        cls.wheel = pathlib.Path(run(ROOT / "tools/make_wheel", "--of", BUILD, cls.work / "wheels").strip())
        cls.venv = cls.work / "venv"
        run(sys.executable, "-m", "venv", cls.venv)
        run(cls.venv / "bin/pip", "install", "--no-deps", "--no-index", cls.wheel)
        cls.site = cls.venv / "lib" / PYTHON / "site-packages"
        cls.package = cls.site / "aqhost"
        left_out = ("LD_LIBRARY_PATH", "AQ_PLUGIN_PATH", "PYTHONPATH")
        cls.environment = {**{k: v for k, v in os.environ.items() if k not in left_out},
                           "PATH": f"{cls.venv}/bin:{os.environ['PATH']}"}
        cls.without_torch = subprocess.run(["aqhost", "--version"], capture_output=True, text=True,
                                           env=cls.environment)
        (cls.site / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def installed(self, *command):
        """Runs a command as a user of the virtual environment."""
        return run(*command, env=self.environment, cwd=self.work)

    def test_the_metadata_ask_for_the_torch_that_it_was_built_with(self):
        with zipfile.ZipFile(self.wheel) as file:
            name, = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = file.read(name).decode()
            copyrights = {n.rpartition("/")[2] for n in file.namelist() if "/licenses/" in n}
        self.assertIn(f"\nRequires-Dist: torch ~={TORCH.partition('+')[0]}\n", metadata)
        self.assertRegex(self.wheel.name, r"^aqhost-[\d.]+-py3-none-manylinux_2_\d+_x86_64\.whl$")
        self.assertLessEqual({"LICENSE", "libicu72", "libjemalloc2", "nlohmann-json3-dev"}, copyrights)

    def test_without_the_right_torch_one_sentence_says_what_to_install(self):
        self.assertEqual(self.without_torch.returncode, 1)
        self.assertRegex(self.without_torch.stderr, r"^aqhost: torch is not installed; pip install 'torch ~=.*'.*\n$")
        older = self.work / "older"
        (older / "torch").mkdir(parents=True)
        (older / "torch/__init__.py").touch()
        (older / "torch-2.1.0.dist-info").mkdir()
        (older / "torch-2.1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n")
        done = subprocess.run(["aqhost", "--version"], capture_output=True, text=True,
                              env={**self.environment, "PYTHONPATH": str(older)})
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^aqhost: torch 2\.1\.0; pip install 'torch ~=.*\n$")

    def test_libraries_are_in_the_wheel_or_in_torch_or_on_every_system(self):
        environment = {**self.environment, "LD_LIBRARY_PATH": sysconfig.get_path("purelib") + "/torch/lib"}
        found = re.findall(r"(\S+) => (\S+)", run("ldd", self.package / "bin/aqhost", env=environment))
        self.assertGreater(len(found), 15)
        for name, path in found:
            inside = pathlib.Path(path).resolve().is_relative_to(self.site.resolve())
            self.assertTrue(inside or "/site-packages/" in path or re.fullmatch(SYSTEM, name), f"{name} => {path}")
        self.assertEqual(sum("libgomp" in name for name, _ in found), 1)  # LibTorch's

    def test_no_program_names_the_folders_in_which_it_was_built(self):
        libtorch = re.search(r"(?m)^LIBTORCH_ROOT:\w+=(.*)$", (BUILD / "CMakeCache.txt").read_text())[1]
        self.assertGreater(len(programs_that_name(["/lib64"], self.package)), 1)  # the programs are found
        self.assertEqual(programs_that_name([BUILD, ROOT / "core", ROOT / "sdk", libtorch], self.package), [])

    def test_it_quantizes_with_its_plugins(self):
        self.assertIn("\nLibTorch ", self.installed("aqhost", "--version"))
        listed = {p["id"]: p for p in json.loads(self.installed("aqhost", "plugins", "--json"))}
        self.assertEqual(pathlib.Path(listed["olmoe"]["path"]).resolve(),
                         (self.package / "lib/aqhost/plugins/olmoe.so").resolve())
        self.assertEqual(set(listed), {p["id"] for p in json.loads(run(BUILD / "bin/aqhost", "plugins", "--json"))})
        (self.work / "tests").symlink_to(ROOT / "tests")
        block = re.search(r"(?m)^    tools/make_wheel .*\n((?:    .*\n)+)", (ROOT / "README.md").read_text())[1]
        self.installed("bash", "-c", block.splitlines()[-1].strip())
        self.assertIn("ok: olmoe", self.installed(PYTHON, "-m", "aqhost", "verify", "--model", "out"))

    def test_a_plugin_is_built_with_what_is_in_the_wheel(self):
        cmake = self.installed(PYTHON, "-m", "aqhost", "--cmake-dir").strip()
        self.installed("aq-new-plugin", "quantizer", "from_wheel", "from_wheel")
        self.installed("cmake", "-S", "from_wheel", "-B", "from_wheel/build", "-G", "Ninja", f"-Daqsdk_DIR={cmake}")
        self.installed("cmake", "--build", "from_wheel/build")
        headers = self.installed("ninja", "-C", "from_wheel/build", "-t", "deps")
        for header in ("aq/abi.h", "dlpack/dlpack.h", "nlohmann/json.hpp"):
            self.assertRegex(headers, rf"site-packages/aqhost/.*/{header}")
        self.installed("ctest", "--test-dir", "from_wheel/build")
        self.assertIn("from_wheel", self.installed("aqhost", "plugins", "--plugin-dir", "from_wheel/build"))
        self.assertIn("holds", self.installed("aq-check", "from_wheel/build/from_wheel.so"))

    def test_the_manual_page_and_the_completions_are_where_programs_look(self):
        for name in ("man/man1/aqhost.1", "bash-completion/completions/aqhost", "zsh/vendor-completions/_aqhost"):
            self.assertEqual((self.venv / "share" / name).read_bytes(),
                             (BUILD / "described" / pathlib.Path(name).name).read_bytes())


if __name__ == "__main__":
    unittest.main()
