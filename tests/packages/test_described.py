"""Tests of what aqhost writes about itself: the manual page, and completion in bash and zsh, which complete
in a terminal here.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import fcntl
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/e2e"))
from terminal import open_terminal  # noqa: E402

BUILD = pathlib.Path(os.environ["AQ_BUILD"]).resolve()
DESCRIBED = BUILD / "described"
COMMANDS = ("quantize", "inspect", "plan", "allocate", "eval", "compare", "convert", "report", "status", "tokenize",
            "verify", "plugins")
OF_EVERY_COMMAND = {"--help", "--version", "--log-level"}


def aqhost(*arguments, **keywords):
    return subprocess.run([BUILD / "bin/aqhost", *arguments], capture_output=True, text=True, check=True,
                          stdin=subprocess.DEVNULL, **keywords).stdout


def options_of(command):
    text = aqhost(command, "--help")
    return set(re.findall(r"(?m)^  (?:-\w \[ )?(--[a-z-]+)", text[text.index("\nOptions of"):]))


class ManualPage(unittest.TestCase):
    page = (DESCRIBED / "aqhost.1").read_text()

    @unittest.skipUnless(shutil.which("groff"), "groff is not installed")
    def test_groff_reads_it_without_a_warning(self):
        done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", DESCRIBED / "aqhost.1"], capture_output=True,
                              text=True, check=True)
        self.assertEqual(done.stderr, "")
        text = re.sub(r".\x08|\x1b\[[\d;]*m", "", done.stdout)
        for line in ("aqhost tokenize --model MODEL --jsonl FILE [--no-special-tokens]", "--max-shard-size MB"):
            self.assertIn(line, text)

    def test_it_has_every_option_of_every_command(self):
        sections = re.split(r"(?m)^\.S[SH] ", self.page.replace("\\-", "-"))
        for command in COMMANDS:
            section, = (s for s in sections if s.startswith(f"\\fB{command}\\fR\n"))
            described = set(re.findall(r"(?m)^\.TP\n(?:\\fB-\w\\fR, )?\\fB(--[a-z-]+)", section))
            self.assertGreater(len(described), 1)
            self.assertEqual(described, options_of(command) - OF_EVERY_COMMAND, command)
        section, = (s for s in sections if s.startswith("OPTIONS OF EVERY COMMAND"))
        for option in OF_EVERY_COMMAND:
            self.assertIn(f"\\fB{option}\\fR", section)

    def test_it_depends_on_neither_folder_nor_terminal_nor_language(self):
        for kind, file in (("man", "aqhost.1"), ("bash", "aqhost"), ("zsh", "_aqhost")):
            text = aqhost("--describe", kind, cwd="/", env={"LC_ALL": "de_DE.UTF-8", "COLUMNS": "200"})
            self.assertEqual(text, (DESCRIBED / file).read_text())

    def test_another_kind_is_wrong_usage(self):
        done = subprocess.run([BUILD / "bin/aqhost", "--describe", "html"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn('--describe "html": expected man, bash or zsh', done.stderr)


class Completion(unittest.TestCase):
    """Types a line into a shell, has its last word completed, and lets the shell print the words of the line."""

    shell = prepare = None
    key = "\t"

    def setUp(self):
        if self.shell is None:
            self.skipTest("the tests of a shell are in the classes below")
        if not shutil.which(self.shell[0]):
            self.skipTest(f"{self.shell[0]} is not installed")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)
        for name in ("model", "plugins"):
            (self.work / name).mkdir()
        for name in ("recipe.yaml", "recipe.txt", "text.txt", "my.so"):
            (self.work / name).touch()
        self.ours, theirs = open_terminal(self)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 5000, 0, 0))  # no line is scrolled
        environment = {"PATH": f"{BUILD}/bin:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(self.work)}
        self.process = subprocess.Popen(self.shell, stdin=theirs, stdout=theirs, stderr=theirs, cwd=self.work,
                                        env=environment, start_new_session=True)
        os.close(theirs)
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)
        self.send(f"{self.prepare.format(DESCRIBED)}; echo rea''dy\n")
        self.wait_for("ready")

    def send(self, text):
        os.write(self.ours, text.encode())

    def wait_for(self, pattern):
        """Returns the match of the pattern in what the shell prints from now on."""
        text, end = "", time.monotonic() + 60
        while time.monotonic() < end:
            text += os.read(self.ours, 65536).decode(errors="replace")
            if found := re.search(pattern, text):
                return found
        self.fail(f"not in a minute: {pattern} in {text!r}")

    def completed(self, line):
        """Returns the words of the line after completion."""
        self.send(f"{line}{self.key}\x01printf '\\074%s\\076' \nprintf '%s\\n' en''d\n")
        return re.findall(r"<([^<>]*)>", self.wait_for(r"(?s)((?:<[^<>\n]*>)+)\S*.*end")[1])[1:]


class Bash(Completion):
    shell = ("bash", "--norc", "--noprofile", "-i")
    prepare = "PS1=; bind 'set enable-bracketed-paste off'; . {}/aqhost"
    key = "\x1b*"  # inserts all possible completions

    def test_commands(self):
        self.assertEqual(self.completed("aqhost "), sorted(COMMANDS))
        self.assertEqual(self.completed("aqhost in"), ["inspect"])

    def test_options_of_the_command(self):
        for command in ("quantize", "tokenize"):
            self.assertEqual(set(self.completed(f"aqhost {command} --")[1:]), options_of(command))
        self.assertEqual(set(self.completed("aqhost --")), options_of("quantize"))

    def test_words_formats_and_engines(self):
        self.assertEqual(self.completed("aqhost --export g"), ["--export", "gguf", "gptq"])
        self.assertEqual(self.completed("aqhost plan --target "),
                         ["plan", "--target", "any", "llamacpp", "sglang", "transformers", "vllm"])
        self.assertEqual(self.completed("aqhost convert x --to "), ["convert", "x", "--to", "gguf"])
        self.assertEqual(self.completed("aqhost --algorithm=r"), ["--algorithm=rtn"])

    def test_files_and_folders(self):
        self.assertEqual(self.completed("aqhost --model "), ["--model", "model", "plugins"])
        self.assertEqual(self.completed("aqhost --config r"), ["--config", "recipe.yaml"])
        self.assertEqual(self.completed("aqhost plugins --check m"), ["plugins", "--check", "model", "my.so"])
        self.assertEqual(self.completed("aqhost --calib t"), ["--calib", "text.txt"])
        self.assertEqual(self.completed("aqhost compare mod"), ["compare", "model"])

    def test_families_of_the_plugins(self):
        families = self.completed("aqhost inspect --model-type ")[2:]
        self.assertLessEqual({"auto", "olmoe", "mixtral"}, set(families))
        self.assertNotIn("int4", families)


class Zsh(Completion):
    shell = ("zsh", "-f", "-i")
    prepare = "PS1=; unset zle_bracketed_paste; fpath=({} $fpath); autoload -Uz compinit; compinit -u; bindkey -e"

    def test_commands_options_words_and_files(self):
        for line, words in (("aqhost insp", ["inspect"]), ("aqhost plan --targ", ["plan", "--target"]),
                            ("aqhost --export gg", ["--export", "gguf"]),
                            ("aqhost plan --target=ll", ["plan", "--target=llamacpp"]),
                            ("aqhost tokenize --no-sp", ["tokenize", "--no-special-tokens"]),
                            ("aqhost --config r", ["--config", "recipe.yaml"]),
                            ("aqhost --model mod", ["--model", "model"]),
                            ("aqhost inspect --model-type olm", ["inspect", "--model-type", "olmoe"])):
            self.assertEqual(self.completed(line), words)


if __name__ == "__main__":
    unittest.main()
