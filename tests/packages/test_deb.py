"""Tests of the Debian packages: what they contain, what they depend on, and that they work where they are
unpacked, with the LibTorch of the build.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/e2e"))
from run_command import programs_that_name, run  # noqa: E402

BUILD = pathlib.Path(os.environ["AQ_BUILD"]).resolve()
OLMOE = ROOT / "tests/models/olmoe-tiny"


def installed_command():
    """Returns the last command of README.md for this package, which quantizes a model."""
    block = re.search(r"(?m)^    tools/make_deb .*\n((?:    .*\n)+)", (ROOT / "README.md").read_text())[1]
    return block.splitlines()[-1].strip()


def version():
    return re.search(r"project\(aqhost VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]


def libtorch_root():
    return re.search(r"(?m)^LIBTORCH_ROOT:\w+=(.*)$", (BUILD / "CMakeCache.txt").read_text())[1]


@unittest.skipUnless(shutil.which("dpkg-shlibdeps") and shutil.which("file"), "dpkg-dev or file is not installed")
class Packages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.work = pathlib.Path(folder.name)
        files = run(ROOT / "tools/make_deb", "--of", BUILD, cls.work / "packages").split()
        cls.files = {pathlib.Path(f).name.split("_")[0]: pathlib.Path(f) for f in files}
        for file in files:
            run("dpkg-deb", "-x", file, cls.work / "root")
        cls.usr = cls.work / "root/usr"
        libtorch, = re.findall(r"libtorch-\d[\d.]*\d", (cls.usr / "bin/aqhost").read_text())
        cls.libtorch = libtorch
        (cls.work / "cache" / libtorch).mkdir(parents=True)
        (cls.work / "cache" / libtorch / "torch").symlink_to(libtorch_root())
        cls.environment = {"PATH": f"{cls.usr}/bin:{os.environ['PATH']}", "HOME": str(cls.work / "home"),
                           "AQHOST_CACHE": str(cls.work / "cache")}

    def aqhost(self, *arguments):
        return run("aqhost", *arguments, env=self.environment, cwd=self.work)

    def field(self, package, name):
        return run("dpkg-deb", "-f", self.files[package], name).strip()

    def depends(self, package):
        return re.findall(r"[a-z][\w.+-]+", re.sub(r"\([^)]*\)", "", self.field(package, "Depends")))

    def test_the_control_files_name_version_and_dependencies_and_no_script_downloads(self):
        self.assertEqual(set(self.files), {"aqhost", "aqhost-dev"})
        for package in self.files:
            self.assertEqual(self.field(package, "Version"), version())
        for name in ("libdlpack-dev", "nlohmann-json3-dev", "cmake"):
            self.assertIn(name, self.depends("aqhost-dev"))
        control = run("dpkg-deb", "--ctrl-tarfile", self.files["aqhost"], env={**os.environ, "LC_ALL": "C"},
                      errors="replace")
        members = set(re.findall(r"\./(control|md5sums|\w+inst|\w+rm|conffiles)\0", control))
        self.assertEqual(members, {"control", "md5sums", "postrm"})

    def test_every_shared_library_but_libtorch_comes_from_a_package_that_it_depends_on(self):
        needed = set()
        programs = [self.usr / "lib/aqhost/bin/aqhost", *(self.usr / "lib/aqhost/plugins").iterdir()]
        for file in programs:
            needed.update(re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", file)))
        self.assertGreater(len(needed), 10)
        for library in needed:
            if not library.startswith(("libtorch", "libc10")):
                owners = set(re.findall(r"(?m)^([\w.+-]+)", run("dpkg", "-S", f"*/{library}")))
                self.assertTrue(owners & {d.removesuffix("-fmt9") for d in self.depends("aqhost")}, library)

    def test_no_program_looks_for_libraries_where_it_was_built(self):
        for file in (self.usr / "lib/aqhost/bin/aqhost", self.usr / "bin/aq-check"):
            paths = re.findall(r"R(?:UN)?PATH.*\[(.*)\]", run("readelf", "-d", file))
            self.assertNotIn(str(pathlib.Path(libtorch_root()).parent), "".join(paths))

    def test_no_program_names_the_folders_in_which_it_was_built(self):
        self.assertGreater(len(programs_that_name(["/lib64"], self.usr)), 1)  # the programs are found
        self.assertEqual(programs_that_name([BUILD, ROOT / "core", ROOT / "sdk", libtorch_root()], self.usr), [])

    def test_without_libtorch_one_sentence_says_what_to_run(self):
        environment = {"PATH": self.environment["PATH"], "HOME": str(self.work)}
        done = subprocess.run(["aqhost", "--version"], capture_output=True, text=True, env=environment)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"^aqhost: LibTorch [\d.]+ is not there yet; run aqhost-fetch-libtorch .*\n$")

    def test_it_quantizes_with_its_plugins(self):
        self.assertIn(f"aqhost {version()} ", self.aqhost("--version"))
        listed = {p["id"]: p for p in json.loads(self.aqhost("plugins", "--json"))}
        self.assertEqual(pathlib.Path(listed["olmoe"]["path"]).resolve(),
                         (self.usr / "lib/aqhost/plugins/olmoe.so").resolve())
        (self.work / "tests").symlink_to(ROOT / "tests")
        run("bash", "-c", installed_command(), env=self.environment, cwd=self.work)
        self.assertIn("ok: olmoe", self.aqhost("verify", "--model", "out"))
        self.aqhost("plan", "--model", OLMOE, "--config", self.usr / "share/aqhost/configs/olmoe_int4.yaml")

    def test_libtorch_goes_to_the_package_or_to_the_users_cache(self):
        own = self.usr / "lib/aqhost" / self.libtorch
        own.mkdir()
        self.addCleanup(own.rmdir)
        fetch = self.usr / "bin/aqhost-fetch-libtorch"
        printed = run(fetch, env=self.environment).strip()
        if os.access(own.parent, os.W_OK):
            self.assertEqual(pathlib.Path(printed).resolve(), own.resolve() / "torch")
        self.assertEqual(run(fetch, self.work / "cache", env=self.environment).strip(),
                         f"{self.work}/cache/{self.libtorch}/torch")
        wrong = subprocess.run([fetch, "--gpu"], capture_output=True, text=True)
        self.assertEqual(wrong.returncode, 2)
        self.assertIn("usage: aqhost-fetch-libtorch", wrong.stderr)

    def test_manual_page_completions_and_copyright_are_in_their_places(self):
        for name in ("man/man1/aqhost.1", "bash-completion/completions/aqhost", "zsh/vendor-completions/_aqhost",
                     "doc/aqhost/copyright", "doc/aqhost-dev/copyright"):
            self.assertGreater((self.usr / "share" / name).stat().st_size, 1000, name)

    def test_the_package_for_authors_builds_a_plugin(self):
        project = self.work / "from_deb"
        run("aq-new-plugin", "quantizer", "from_deb", project, env=self.environment)
        run("cmake", "-S", project, "-B", project / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={self.usr}")
        run("cmake", "--build", project / "build")
        run("ctest", "--test-dir", project / "build")
        self.assertIn("from_deb", self.aqhost("plugins", "--plugin-dir", project / "build"))


if __name__ == "__main__":
    unittest.main()
