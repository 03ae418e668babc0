"""Tests of the installation: the target `installable`, which tools/quickstart builds, has everything that
is installed, and the program works in the folder where it is installed.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import os
import pathlib
import re
import tempfile
import unittest

from run_command import programs_that_name, run

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ["AQ_BUILD"]).resolve()
OLMOE = ROOT / "tests/models/olmoe-tiny"


def installed_from_build():
    """Returns the files of the build folder that `cmake --install` copies, relative to that folder.

    Only the scripts that `cmake --install` itself would read count, because the folder also contains
    builds of other tests (fuzz/) with install scripts of their own.
    """
    files = set()
    scripts = [BUILD / "cmake_install.cmake"]
    for script in scripts:
        text = script.read_text()
        scripts += [pathlib.Path(p) for p in re.findall(r'include\("([^"]+)"\)', text)]
        for copied in re.findall(r"file\(INSTALL [^)]*? FILES ([^)]*)\)", text):
            files.update(pathlib.Path(p) for p in re.findall(r'"([^"]+)"', copied))
    return {str(f.relative_to(BUILD)) for f in files if f.is_relative_to(BUILD)}


class Installable(unittest.TestCase):
    """Asks Ninja what it would build, and builds nothing."""

    def test_the_target_has_everything_that_is_installed_and_no_test(self):
        files = installed_from_build()
        rules = (BUILD / "build.ninja").read_text()
        of_a_rule = {f for f in files if re.search(rf"(?m)^build {re.escape(f)}[ :|]", rules)}
        for file in ("bin/aqhost", "bin/aq-check", "plugins/int4.so"):
            self.assertIn(file, of_a_rule)
        inputs = re.findall(r"(?m)^    (\S+)$", run("ninja", "-C", BUILD, "-t", "query", "installable"))
        self.assertEqual(set(inputs), of_a_rule)
        for file in files - of_a_rule:  # CMake itself has written it
            self.assertTrue((BUILD / file).exists(), file)

    def test_quickstart_builds_it(self):
        self.assertRegex((ROOT / "tools/quickstart").read_text(), r"(?m)^compile installable$")


class Installed(unittest.TestCase):
    def test_it_quantizes_with_the_installed_plugins_and_without_the_build(self):
        with tempfile.TemporaryDirectory() as folder:
            work = pathlib.Path(folder)
            prefix = work / "prefix"
            run("cmake", "--install", BUILD, "--prefix", prefix)
            for file in installed_from_build():
                if file.startswith("bin/") or file.startswith("plugins/"):
                    name = pathlib.Path(file).name
                    self.assertTrue(list(prefix.rglob(name)), f"{name} is not installed")
            headers = re.search(r"(?m)^LIBTORCH_ROOT:\w+=(.*)$", (BUILD / "CMakeCache.txt").read_text())[1] + "/include"
            self.assertEqual(programs_that_name([BUILD, ROOT / "core", ROOT / "sdk", headers], prefix), [])
            environment = {k: v for k, v in os.environ.items() if k != "AQ_PLUGIN_PATH"}
            aqhost = prefix / "bin/aqhost"
            listed = json.loads(run(aqhost, "plugins", "--json", env=environment, cwd=work))
            self.assertEqual({pathlib.Path(p["path"]).resolve().parent for p in listed},
                             {(prefix / "lib/aqhost/plugins").resolve()})
            run(aqhost, "--model", OLMOE, "--config", ROOT / "configs/olmoe_int4.yaml",
                "--calib", ROOT / "tests/data/kjv_calib.txt", "--nsamples", "2", "--seqlen", "64",
                "--save", work / "out", env=environment, cwd=work)
            self.assertIn("ok: olmoe", run(aqhost, "verify", "--model", work / "out",
                                           env=environment, cwd=work))


if __name__ == "__main__":
    unittest.main()
