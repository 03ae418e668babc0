"""These tests kill runs at any moment, and let system calls of runs fail. Each time, the finished layers must
stay, the next run must go on after them, and the export must be the same to the byte as that of a run
without a fault.

ctest runs this file with the build folder in AQ_BUILD. The file needs only the standard library of Python. The
random moments depend on AQ_SEED, which is 0 if it is not set, and which is printed if a test fails.
"""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
SEED = int(os.environ.get("AQ_SEED", 0))
FAMILIES = ("olmoe", "qwen2-moe", "mixtral", "deepseek-moe")
AGAIN = 75  # The exit status of a run that was interrupted and can be started again.
KILLS = 25  # The number of runs that are killed for each family.


def model_of(family):
    return TESTS / f"models/{family}-tiny"


def command(family, out, plugins=BUILD / "plugins", **options):
    """Returns the command line that quantizes the test model of a family and saves the export to `out`."""
    options = {"model": model_of(family), "calib": TESTS / "data/kjv_calib.txt", "nsamples": 8,
               "seqlen": 128, "threads": 1, "save": out, "plugin-dir": plugins, **options}
    return [str(BUILD / "bin/aqhost"), *(f"--{name}={value}" for name, value in options.items())]


def start(arguments, **keywords):
    """Starts a command whose text on stderr can be read."""
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            stdin=subprocess.DEVNULL, **keywords)


def run(arguments, **keywords):
    """Runs a command to its end. Returns its exit status and its text on stderr."""
    process = start(arguments, **keywords)
    errors = process.communicate(timeout=300)[1]
    return process.returncode, errors


def messages_in(errors):
    """Returns the lines on stderr without information and progress; a slow run shows progress."""
    return [line for line in errors.splitlines() if "info" not in line and not line.startswith("quantizing")]


def files_of(folder):
    """Returns the bytes of all files of an export by name, except the report, which contains times."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*"))
            if f.is_file() and f.name not in ("quantization_report.json", "report.html")}


class Faults(unittest.TestCase):
    whole = {}  # This maps a family to the files of a run without a fault and the seconds that it took.

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)
        self.out = self.work / "out"

    def undisturbed(self, family):
        """Returns the files of a run without a fault, and the seconds that it took."""
        if family not in self.whole:
            out = self.work / f"{family}-whole"
            begin = time.monotonic()
            status, errors = run(command(family, out))
            self.assertEqual(status, 0, errors)
            self.whole[family] = files_of(out), time.monotonic() - begin
        return self.whole[family]

    def check_done(self, family):
        """Checks that the export is that of a run without a fault, and removes it."""
        self.assertEqual(files_of(self.out), self.undisturbed(family)[0])
        self.assertFalse((self.work / "out.work").exists())
        shutil.rmtree(self.out)

    def stop_at_random(self, family, number, stops, statuses):
        """Stops `stops` runs at random moments by the signal `number`, each with one of `statuses` as its exit
        status. Checks the export of each run that ends before it is stopped, and that of the last run, which is
        not stopped.
        """
        chance = random.Random(f"{SEED} {family} {number}")
        seconds = self.undisturbed(family)[1]
        stopped = 0
        while stopped < stops:
            process = start(command(family, self.out))
            try:
                errors = process.communicate(timeout=chance.uniform(0.02, 1.1 * seconds))[1]
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                errors = process.communicate(timeout=60)[1]
            if process.returncode == 0:
                self.check_done(family)
                continue
            self.assertIn(process.returncode, statuses, f"seed {SEED}: {errors}")
            if process.returncode == AGAIN:
                self.assertIn("interrupted", errors)
                self.assertIn("aqhost: interrupted", errors.splitlines()[-1])
            stopped += 1
            if self.out.exists():  # The run was stopped after its commit.
                status, errors = run(command(family, self.out))
                self.assertEqual(status, 1, errors)
                self.assertIn("already exists", errors)
                self.check_done(family)
        status, errors = run(command(family, self.out))
        self.assertEqual(status, 0, f"seed {SEED}: {errors}")
        self.check_done(family)

    def test_killed_at_random_moments(self):
        for family in FAMILIES:
            with self.subTest(family):
                self.stop_at_random(family, signal.SIGKILL, KILLS, {-signal.SIGKILL})

    def test_terminated_at_random_moments(self):
        for family in FAMILIES:
            with self.subTest(family):
                # The signal kills a program that has not installed its handler yet.
                self.stop_at_random(family, signal.SIGTERM, 6, {AGAIN, -signal.SIGTERM})

    def fail_call(self, call, at, error, count=None):
        """Runs aqhost with the settings of fail_call.cc. Returns the exit status and the text on stderr."""
        environment = {**os.environ, "LD_PRELOAD": str(BUILD / "tests/fail_call.so"),
                       "AQ_FAIL_CALL": call, "AQ_FAIL_AT": str(at), "AQ_FAIL_ERRNO": str(error),
                       "AQ_FAIL_PATH": "/out.work/", "ASAN_OPTIONS": "verify_asan_link_order=0"}
        if count:
            environment["AQ_FAIL_COUNT"] = str(count)
        return run(command("olmoe", self.out), env=environment)

    def test_each_kind_of_call_failing_in_turn(self):
        no_space, io_error = 28, 5
        for call, error in (("pwrite", no_space), ("write", no_space), ("fsync", io_error),
                            ("rename", io_error), ("posix_fallocate", no_space),
                            ("open", no_space)):
            count = self.work / "count"
            status, errors = self.fail_call(call, 0, error, count)
            self.assertEqual(status, 0, errors)
            calls = int(count.read_text())
            self.assertGreater(calls, 3, call)
            self.check_done("olmoe")
            some = sorted({1, 2, calls // 3, calls // 2, calls - 1, calls} - {0})
            for at in some:
                with self.subTest(f"{call} {at} of {calls}"):
                    status, errors = self.fail_call(call, at, error)
                    self.assertEqual(status, 1, errors)
                    self.assertIn(os.strerror(error), errors)
                    self.assertEqual(errors.count("aqhost: error"), 0)
                    self.assertEqual(len(messages_in(errors)), 1, errors)
                    self.assertFalse(self.out.exists())
                    kept = (self.work / "out.work").exists()
                    self.assertEqual("kept in" in errors, kept, errors)
                    status, errors = run(command("olmoe", self.out))
                    self.assertEqual(status, 0, errors)
                    self.assertEqual("going on after" in errors, kept, errors)
                    self.check_done("olmoe")

    def test_a_disk_that_becomes_full_during_the_run(self):
        """The file system has enough room when the run begins, and then another program fills it."""
        whole = self.undisturbed("olmoe")[0]
        size = sum(map(len, whole.values()))
        disk = self.work / "disk"
        disk.mkdir()
        hog, out = disk / "hog", disk / "out"
        script = f"""
            mount -t tmpfs -o size={4 * size} none {disk} || exit 77
            "$@" & run=$!
            while ! ls {out}.work/progress/unit-00000.json > /dev/null 2>&1; do
              kill -0 $run 2> /dev/null || break; sleep 0.002; done
            head -c {16 * size} /dev/zero > {hog} 2> /dev/null
            wait $run; echo "status $?"; rm {hog}
            "$@" --resume=required && cp -r {out} {self.out}"""
        done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *command("olmoe", out)],
                              capture_output=True, text=True)
        if done.returncode == 77 or "unshare" in done.stderr:
            self.skipTest("no mount here")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("status 1\n", done.stdout)
        self.assertIn("No space left on device", done.stderr)
        self.assertIn("kept in", done.stderr)
        self.check_done("olmoe")

    def test_a_run_goes_on_on_a_disk_that_has_room_for_the_whole_run_only(self):
        disk = self.work / "disk"
        disk.mkdir()
        out = disk / "out"
        # The refusal on a small disk says how much the run takes.
        script = f"""
            mount -t tmpfs -o size=64k none {disk} || exit 77
            need=$("$@" 2>&1 | sed -n 's/.* takes 0.0*\\([0-9]*\\) GB.*/\\1/p')
            umount {disk} && mount -t tmpfs -o size=$((need + 1))000k none {disk}
            "$@" & run=$!
            while ! ls {out}.work/progress/unit-00000.json > /dev/null 2>&1; do
              kill -0 $run 2> /dev/null || break; sleep 0.002; done
            kill -9 $run; wait $run; echo "status $?, $need MB"
            "$@" --resume=required"""
        done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh",
                               *command("olmoe", out, nsamples=64)], capture_output=True, text=True)
        if done.returncode == 77 or "unshare" in done.stderr:
            self.skipTest("no mount here")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("status 137, ", done.stdout)
        self.assertIn("going on after", done.stderr)

    def interrupted(self, **options):
        """Kills a run after its first layer, so that its work folder contains a finished layer."""
        process = start(command("olmoe", self.out, **options))
        record = self.work / "out.work/progress/unit-00000.json"
        while not record.exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        self.assertTrue(record.exists())

    def test_a_work_folder_that_is_moved_during_the_run(self):
        process = start(command("olmoe", self.out, nsamples=96))
        work, moved = self.work / "out.work", self.work / "moved"
        while not (work / "progress/unit-00000.json").exists() and process.poll() is None:
            time.sleep(0.001)
        work.rename(moved)
        errors = process.communicate(timeout=300)[1]
        self.assertEqual(process.returncode, 1, errors)
        self.assertIn(f"{work}: this folder was removed, moved or replaced while", errors)
        self.assertEqual(len(messages_in(errors)), 1, errors)
        self.assertEqual([p.name for p in self.work.iterdir()], ["moved"])
        moved.rename(work)
        status, errors = run(command("olmoe", self.out, nsamples=96))
        self.assertEqual(status, 0, errors)
        self.assertIn("going on after", errors)

    def refused(self, message, **options):
        """Checks that a run with these options refuses the work folder of another run, with this message."""
        status, errors = run(command("olmoe", self.out, **options))
        self.assertEqual(status, 1, errors)
        self.assertIn("holds the unfinished work of another run", errors)
        self.assertIn(message, errors)

    def test_another_run_is_refused_and_names_what_differs(self):
        self.interrupted()
        self.refused("another run: --seqlen: 128 before, 64 now. Run", seqlen=64)
        self.refused("another run: --seed: 0 before, 3 now. Run", seed=3)
        before = json.loads((self.work / "out.work/manifest.json").read_text())["dtype"]
        other = "float32" if before == "bfloat16" else "bfloat16"
        self.refused(f"--dtype: {before} before, {other} now", dtype=other)
        self.refused("--export: compressed-tensors before, gptq now", export="gptq")
        recipe = self.work / "r.yaml"
        recipe.write_text("{default: {wq: int8}}")
        self.refused("int8", config=recipe)
        # A file of the model gets another content.
        model = self.work / "model"
        shutil.copytree(model_of("olmoe"), model)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
        self.refused("config.json (--model): changed", model=model)
        status, errors = run(command("olmoe", self.out))
        self.assertEqual(status, 0, errors)
        self.check_done("olmoe")

    def test_a_plugin_that_was_replaced_between_two_tries(self):
        plugins = self.work / "plugins"
        shutil.copytree(BUILD / "plugins", plugins)
        self.interrupted(plugins=plugins)
        with open(plugins / "int4.so", "ab") as file:  # The plugin works as before.
            file.write(b"\0")
        self.refused("the plugin int4 (--plugin-dir): changed", plugins=plugins)

    def test_status(self):
        self.interrupted()
        done = subprocess.run([BUILD / "bin/aqhost", "status", self.out], capture_output=True,
                              text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"out\.work: \d+ of \d+ layers are finished, \d+ of \d+ modules")
        done = subprocess.run([BUILD / "bin/aqhost", "status", self.work / "out.work", "--json"],
                              capture_output=True, text=True)
        status = json.loads(done.stdout)
        self.assertGreater(status["finished_layers"], 0)
        self.assertGreater(status["loss"], 0)
        self.assertIs(status["running"], False)
        record = self.work / "out.work/progress/unit-00000.json"
        record.write_text(record.read_text().replace("seconds", "second5", 1))
        done = subprocess.run([BUILD / "bin/aqhost", "status", self.out], capture_output=True,
                              text=True)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("unit-00000.json: its content is not what was written (SHA-256)", done.stderr)
        done = subprocess.run([BUILD / "bin/aqhost", "status", self.work], capture_output=True,
                              text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{self.work}: is no work folder of an unfinished run", done.stderr)


if __name__ == "__main__":
    unittest.main()
