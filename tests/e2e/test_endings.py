"""How aqhost shows what it does and how it ends where the machine says no: a full disk, a target that
cannot be written, a reader that goes away, a closed terminal.

Run by ctest with AQ_BUILD (the build folder) set; needs nothing but Python's own library.
"""
import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import time
import unittest

from terminal import open_terminal

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
MODEL = TESTS / "models/olmoe-tiny"
RTN = ("--model", MODEL, "--algorithm", "rtn")
GPTQ = ("--model", MODEL, "--calib", TESTS / "data/kjv_calib.txt", "--seqlen", 256)


def command(*arguments):
    return [str(a) for a in (BUILD / "bin/aqhost", *arguments, "--plugin-dir", BUILD / "plugins")]


class Endings(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)
        self.out = self.work / "out"

    def run_aqhost(self, *arguments, **keywords):
        keywords = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **keywords}
        return subprocess.run(command(*arguments), text=True, stdin=subprocess.DEVNULL, **keywords)

    def one_line(self, done, status, *words):
        self.assertEqual(done.returncode, status, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertEqual(list(self.work.iterdir()), [])

    def test_a_file_larger_than_the_disk_takes(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        done = self.run_aqhost(*RTN, "--save", self.out, preexec_fn=limit)
        self.one_line(done, 1, "model.safetensors: cannot reserve", "File too large")

    def test_a_target_that_cannot_be_made(self):
        done = self.run_aqhost(*RTN, "--save", MODEL / "config.json/out")
        self.one_line(done, 1, "config.json/out: cannot be made: Not a directory")
        done = self.run_aqhost(*RTN, "--save", "/proc/out")
        self.one_line(done, 1, "/proc/out: cannot be made: ")

    def test_overwrite_never_takes_the_model_or_a_folder_of_another_kind(self):
        with tempfile.TemporaryDirectory() as folder:
            mine = pathlib.Path(folder) / "thesis.tex"
            mine.write_text("")
            for target in (MODEL, folder):
                done = self.run_aqhost(*RTN, "--save", target, "--overwrite")
                self.one_line(done, 1, "is no earlier export of aqhost")
            self.assertTrue(mine.exists())
        self.assertTrue((MODEL / "model.safetensors").exists())

    def test_a_result_that_cannot_be_printed(self):
        with open("/dev/full", "w") as full:
            done = self.run_aqhost("plan", "--model", MODEL, stdout=full)
        self.one_line(done, 1, "the result cannot be printed: No space left on device")

    def test_a_reader_of_the_result_that_goes_away_is_no_news(self):
        reader, writer = os.pipe()
        os.close(reader)
        done = self.run_aqhost("plan", "--model", MODEL, "--json", stdout=writer)
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr), (128 + signal.SIGPIPE, ""))

    def test_a_reader_of_the_messages_that_goes_away_does_not_stop_a_run(self):
        reader, writer = os.pipe()
        os.close(reader)
        done = self.run_aqhost(*GPTQ, "--nsamples", 1, "--save", self.out, stderr=writer)
        os.close(writer)
        self.assertEqual(done.returncode, 0)
        self.assertTrue((self.out / "config.json").exists())

    def test_a_closed_terminal_leaves_nothing(self):
        process = subprocess.Popen(command(*GPTQ, "--nsamples", 200, "--save", self.out),
                                   stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while not list(self.work.iterdir()) and process.poll() is None:  # until it writes
            time.sleep(0.005)
        process.send_signal(signal.SIGHUP)
        errors = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 130, errors)
        self.assertEqual(list(self.work.iterdir()), [])

    def test_progress_is_one_line_on_a_terminal_and_plain_elsewhere(self):
        ours, theirs = open_terminal(self)
        process = subprocess.Popen(command(*GPTQ, "--nsamples", 48, "--save", self.out),
                                   stderr=theirs, stdout=subprocess.PIPE, text=True)
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # the other side is closed
            pass
        result = process.communicate()[0]
        self.assertEqual(process.returncode, 0, seen)
        self.assertIn("written to", result)
        lines = seen.split(b"\r\x1b[K")
        self.assertGreater(len(lines), 2)
        self.assertRegex(lines[1], rb"^quantizing +\d+ %")
        self.assertTrue(any(b"model.layers." in line for line in lines))
        self.assertEqual(lines[-1], b"")  # cleared at the end
        self.assertFalse(any(len(line) > 80 for line in lines))

        done = self.run_aqhost(*GPTQ, "--nsamples", 1, "--save", self.work / "plain")
        self.assertNotIn("\x1b", done.stderr)


if __name__ == "__main__":
    unittest.main()
