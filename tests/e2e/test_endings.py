"""Tests of how aqhost shows progress, and of how it ends if the system causes a failure: a full disk, a
target that cannot be written, a reader that goes away, a closed terminal, a signal.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import os
import pathlib
import re
import resource
import shutil
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

    def test_a_file_that_is_too_large_for_the_disk(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        done = self.run_aqhost(*RTN, "--save", self.out, preexec_fn=limit)
        self.one_line(done, 1, "out.work/export/", "File too large")

    def test_a_target_that_cannot_be_created(self):
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

    def test_a_reader_of_the_result_that_goes_away_causes_no_message(self):
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
        while not list(self.work.iterdir()) and process.poll() is None:  # until the run writes a file
            time.sleep(0.005)
        process.send_signal(signal.SIGHUP)
        errors = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 75, errors)
        self.assertIn("interrupted, nothing was written", errors)
        self.assertEqual(list(self.work.iterdir()), [])

    def start(self, *arguments, samples=200, model=MODEL, **keywords):
        """Starts a run, and returns it when it has begun to write. The run takes a few more seconds."""
        process = subprocess.Popen(
            command("--model", model, *GPTQ[2:], "--nsamples", samples, "--save", self.out,
                    *arguments),
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **keywords)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        while not self.writes() and process.poll() is None:
            time.sleep(0.005)
        return process

    def writes(self):
        """Whether the run has begun to write a shard. Folders may disappear while they are listed."""
        try:
            return any(name.endswith(".safetensors.part") for name in os.listdir(self.work / "out.work/export"))
        except FileNotFoundError:
            return False

    def wait_for_handler(self, process, number):
        """Waits until the program has its own handler of the signal, soon after its start."""
        status = pathlib.Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            caught = [line for line in status.read_text().splitlines() if line.startswith("SigCgt")]
            if caught and int(caught[0].split()[1], 16) >> (number - 1) & 1:
                return
            time.sleep(0.005)

    def test_a_signal_ends_quantize_with_75_and_other_commands_with_its_number(self):
        process = self.start()
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 75, errors)
        self.assertIn("interrupted, nothing was written", errors)
        self.assertEqual(list(self.work.iterdir()), [])

        process = subprocess.Popen(
            command("eval", "--model", MODEL, "--text", TESTS / "data/kjv_calib.txt"),
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.wait_for_handler(process, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 128 + signal.SIGINT, errors)
        self.assertTrue(errors.endswith("aqhost: interrupted\n"), errors)

    def signalled_at_start(self, arguments, number, status, message):
        """Checks how a command ends if a signal comes before its libraries start."""
        clean = {k: v for k, v in os.environ.items()
                 if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, env=clean)
        environment = pathlib.Path(f"/proc/{process.pid}/environ")
        # the program has started itself again, and its libraries have not started yet
        while process.poll() is None and b"GOMP_SPINCOUNT=" not in environment.read_bytes():
            pass
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, output), (status, ""), errors)
        self.assertTrue(errors.startswith(f"aqhost: {message}"), errors)
        self.assertEqual(errors.count("\n"), 1, errors)

    def test_a_signal_while_the_libraries_start_is_handled_like_a_later_one(self):
        cases = (((*GPTQ, "--save", self.out), signal.SIGINT, 75, "interrupted, nothing was written"),
                 (("eval", "--model", MODEL, "--text", TESTS / "data/kjv_calib.txt"),
                  signal.SIGTERM, 128 + signal.SIGTERM, "interrupted"),
                 (("--help",), signal.SIGHUP, 75, "interrupted"))
        for arguments, number, status, message in cases:
            self.signalled_at_start(arguments, number, status, message)
        self.assertEqual(list(self.work.iterdir()), [])

    def test_a_signal_before_a_run_continues_keeps_the_finished_layers_and_says_so(self):
        process = self.start()
        record = self.work / "out.work/progress/unit-00000.json"
        while not record.exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        self.signalled_at_start((*GPTQ, "--nsamples", 200, "--save", self.out), signal.SIGTERM, 75,
                                "interrupted; the finished layers are kept in "
                                f"{self.out}.work\n")
        self.assertTrue(record.exists())
        done = self.run_aqhost(*GPTQ, "--nsamples", 200, "--save", self.out)
        self.assertRegex(done.stdout,
                         r"\n(1 layer was|[23] layers were) finished before the run was continued\n")

    def test_a_signal_that_is_ignored_stays_ignored_as_under_nohup(self):
        process = self.start(samples=8,
                             preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        process.send_signal(signal.SIGHUP)
        errors = process.communicate(timeout=120)[1]
        self.assertEqual(process.returncode, 0, errors)
        self.assertTrue((self.out / "config.json").exists())

    def test_the_process_has_the_name_of_the_program(self):
        process = self.start()
        self.assertEqual(pathlib.Path(f"/proc/{process.pid}/comm").read_text(), "aqhost\n")

    def test_a_start_through_the_dynamic_linker(self):
        linker = next(pathlib.Path("/lib64").glob("ld-linux*"), None)
        if linker is None:
            self.skipTest("no ld-linux in /lib64")
        done = subprocess.run([linker, BUILD / "bin/aqhost", "--version"], capture_output=True,
                              text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("plugin ABI", done.stdout)

    def test_the_peak_of_memory_is_the_programs_own_not_that_of_its_parent(self):
        block = bytearray(1_500_000_000)
        block[::4096] = b"x" * len(block[::4096])  # the kernel allocates a page when it is written
        self.assertEqual(len(block), 1_500_000_000)
        done = self.run_aqhost(*RTN, "--save", self.out, "--json", preexec_fn=lambda: None)
        peak = json.loads(done.stdout)["peak_memory_bytes"]
        self.assertGreater(peak, 20_000_000)
        self.assertLess(peak, 1_000_000_000)

    def test_a_current_folder_that_is_gone(self):
        gone = self.work / "gone"
        gone.mkdir()
        shell = f'cd {gone} && rmdir {gone} && exec "$@"'
        done = subprocess.run(["sh", "-c", shell, "sh", *command(*RTN, "--save", self.out)],
                              capture_output=True, text=True)
        self.one_line(done, 1, "the current folder has been deleted")

    def test_names_that_are_not_utf8_are_printed_and_reported(self):
        name = os.fsencode(self.work) + b"/caf\xe9"
        text = name + b".txt"
        with open(text, "wb") as file:
            file.write((TESTS / "data/kjv_calib.txt").read_bytes()[:20_000])
        done = subprocess.run(
            [*command("--model", MODEL, "--nsamples", 2, "--seqlen", 64, "--json"),
             b"--calib", text, b"--save", name], capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(name + b"/quantization_report.json", encoding="utf-8") as file:
            self.assertIn("caf\ufffd", json.dumps(json.load(file)["calibration"],
                                                  ensure_ascii=False))
        done = subprocess.run([*command("compare", "--json"), name], capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("caf\ufffd", json.loads(done.stdout)[0]["folder"])

    def test_a_shard_that_is_truncated_during_the_run(self):
        model = self.work / "model"
        shutil.copytree(MODEL, model)
        self.out = self.work / "out"
        process = self.start(model=model)
        time.sleep(0.1)
        os.truncate(model / "model.safetensors", 3000)
        errors = process.communicate(timeout=120)[1]
        self.assertEqual(process.returncode, 1, errors)
        self.assertRegex(errors,
                         r"model/model\.safetensors: tensor \S+, offset \d+: the file ends here")
        self.assertEqual([p.name for p in self.work.iterdir()], ["model"])

    def test_a_second_run_to_the_same_target_and_what_a_killed_one_left(self):
        process = self.start()
        done = self.run_aqhost(*RTN, "--save", self.out)
        self.assertEqual(done.returncode, 1)
        self.assertIn("another run of aqhost is writing to it", done.stderr)
        process.kill()
        process.wait()
        self.assertEqual([p.name for p in self.work.iterdir()], ["out.work"])
        done = self.run_aqhost(*RTN, "--save", self.out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([p.name for p in self.work.iterdir()], ["out"])

    def test_a_target_that_appears_during_the_run_is_left_alone_and_the_export_kept(self):
        process = self.start("--overwrite", samples=16)
        self.out.mkdir()
        (self.out / "thesis.tex").write_text("mine")
        errors = process.communicate(timeout=120)[1]
        self.assertEqual(process.returncode, 1, errors)
        self.assertIn("out: appeared during the run and is not replaced", errors)
        kept = self.work / "out.work/export"
        self.assertIn(f"kept in {kept}", errors)
        self.assertEqual([p.name for p in self.out.iterdir()], ["thesis.tex"])
        done = self.run_aqhost("verify", "--model", kept)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_targets_that_exist(self):
        link, folder = self.work / "link", self.work / "folder"
        folder.mkdir()
        link.symlink_to("folder")
        done = self.run_aqhost(*RTN, "--save", link)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(link.is_symlink())
        self.assertTrue((folder / "config.json").exists())
        (folder / "notes.md").write_text("mine")
        done = self.run_aqhost(*RTN, "--save", ".", "--overwrite", cwd=folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((folder / "notes.md").read_text(), "mine")
        self.assertEqual(self.run_aqhost("verify", "--model", folder).returncode, 0)
        link.unlink()
        link.symlink_to("nowhere")
        shutil.rmtree(folder)
        done = self.run_aqhost(*RTN, "--save", link)
        self.assertEqual(done.returncode, 1)
        self.assertIn("link: is a link to nowhere, which does not exist", done.stderr)

    def test_a_mounted_volume_is_written_into_and_a_small_one_refused_at_the_start(self):
        self.out.mkdir()
        for size, status, message in ((64, 0, ""), (2, 1, "No space left on device")):
            script = (f'mount -t tmpfs -o size={size}M none {self.out} 2>/dev/null || exit 77; '
                      'for i in 1 2; do "$@" || exit $?; done; ls -A ' + str(self.out))
            done = subprocess.run(
                ["unshare", "-rm", "sh", "-c", script, "sh",
                 *command(*RTN, "--save", self.out, "--overwrite")], capture_output=True, text=True)
            if done.returncode == 77 or "unshare" in done.stderr:
                self.skipTest("no mount here")
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertIn(message, done.stderr)
            if status == 0:
                self.assertIn("config.json\n", done.stdout)
                self.assertNotIn(".work", done.stdout)

    def on_a_volume(self, size, *arguments):
        """Runs aqhost with self.out on a disk of so many bytes."""
        self.out.mkdir(exist_ok=True)
        script = f'mount -t tmpfs -o size={size} none {self.out} 2>/dev/null || exit 77; "$@"'
        done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *command(*arguments)],
                              capture_output=True, text=True)
        if done.returncode == 77 or "unshare" in done.stderr:
            self.skipTest("no mount here")
        return done

    def test_a_disk_that_has_room_for_the_export_but_not_for_its_gguf_file(self):
        recipe = self.work / "recipe.yaml"
        recipe.write_text("{default: {wq: int8, group_size: 32}}")
        arguments = (*RTN, "--config", recipe, "--export", "gguf", "--save", self.out)
        self.assertEqual(self.run_aqhost(*arguments).returncode, 0)
        sizes = {f.name: f.stat().st_size for f in self.out.iterdir()}
        shutil.rmtree(self.out)
        file = sizes.pop("model.gguf")
        spare = 200_000
        done = self.on_a_volume(sum(sizes.values()) + file // 2 + spare, *arguments)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("No space left on device: the export takes", done.stderr)
        self.assertIn("with the file that is made of it", done.stderr)
        done = self.on_a_volume(sum(sizes.values()) + file + spare, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)

    def on_terminal(self, *arguments, **environment):
        """Runs aqhost with stderr on a terminal, and returns what that received."""
        ours, theirs = open_terminal(self)
        plain = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
        process = subprocess.Popen(command(*arguments), stderr=theirs, stdout=subprocess.PIPE, text=True,
                                   env={**plain, "TERM": "xterm", **environment})
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # the other end is closed
            pass
        result = process.communicate()[0]
        self.assertEqual(process.returncode, 0, seen)
        self.assertIn("written to", result)
        return seen

    def test_progress_is_one_line_on_a_terminal_and_plain_elsewhere(self):
        seen = self.on_terminal(*GPTQ, "--nsamples", 48, "--save", self.out)
        lines = seen.split(b"\r\x1b[K")
        self.assertGreater(len(lines), 2)
        self.assertRegex(lines[1], rb"^quantizing +\d+ %")
        self.assertTrue(any(re.search(rb"  layer [1-3] of 3, (calibrate|solve)", line) for line in lines), lines)
        self.assertTrue(any(b" left  layer 3 of 3" in line for line in lines), lines)
        self.assertEqual(lines[-1], b"")  # the line is cleared at the end
        self.assertFalse(any(len(line) > 80 for line in lines))

        done = self.run_aqhost(*GPTQ, "--nsamples", 1, "--save", self.work / "plain")
        self.assertNotIn("\x1b", done.stderr)

    def test_a_terminal_has_no_colours_with_no_color_and_no_control_sequences_in_ci(self):
        warns = ("--model", MODEL, "--algorithm", "rtn", "--seed", 3)  # the option has no effect
        self.assertIn(b"\x1b[33m", self.on_terminal(*warns, "--save", self.work / "a"))
        seen = self.on_terminal(*warns, "--save", self.work / "b", NO_COLOR="1")
        self.assertIn(b"aqhost: warning: --seed has no effect", seen)
        self.assertNotIn(b"\x1b[33m", seen)
        for name, value in (("CI", "true"), ("TERM", "dumb")):
            self.assertNotIn(b"\x1b", self.on_terminal(*warns, "--save", self.work / name, **{name: value}))


if __name__ == "__main__":
    unittest.main()
