"""Runs the commands in README.md as they are printed there, in a folder that looks like the source tree.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
README = (ROOT / "README.md").read_text()


def code_blocks():
    """Returns the indented blocks of README.md without their indentation."""
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, flags=re.M)
    return ["\n".join(line[4:] for line in block.splitlines()).strip() for block in blocks]


class Readme(unittest.TestCase):
    def test_the_commands_work_as_typed(self):
        script, = [block for block in code_blocks() if block.startswith("aqhost=build/bin/aqhost")]
        with tempfile.TemporaryDirectory() as folder:
            work = pathlib.Path(folder)
            (work / "build").symlink_to(BUILD)
            for name in ("tests", "configs"):
                (work / name).symlink_to(ROOT / name)
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=work, text=True,
                                  capture_output=True, stdin=subprocess.DEVNULL)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue((work / "out/config.json").exists())
        for word in ("written to out", "family      olmoe", "becomes", "perplexity", "ok: olmoe"):
            self.assertIn(word, done.stdout)

    def test_every_command_is_shown(self):
        text = subprocess.run([BUILD / "bin/aqhost", "--help"], capture_output=True, text=True,
                              check=True).stdout
        commands = re.findall(r"^  (\w+) {2,}", text.split("Other commands")[1].split("\n\n")[0],
                              flags=re.M)
        self.assertIn("inspect", commands)
        for command in commands:
            self.assertRegex(README, rf"\$aqhost {command}\b")

    def test_paths_and_scripts_it_names_exist(self):
        for path in re.findall(r"\b(?:tools|tests|configs|sdk|plugins|core)/[\w./-]*\w", README):
            self.assertTrue((ROOT / path).exists(), path)


if __name__ == "__main__":
    unittest.main()
