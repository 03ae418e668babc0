"""Starts aqhost several times as the processes (ranks) of one run on this machine."""
import itertools
import os
import pathlib
import random
import re
import socket
import subprocess
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
AQHOST = BUILD / "bin/aqhost"
CALIB = TESTS / "data/kjv_calib.txt"
# No test has a port that another had, or from the range in which the kernel chooses ports of connections.
PORTS = itertools.count(random.randrange(15_000, 30_000))
SLOW = 10 if os.environ.get("AQ_SANITIZE") else 1


def model_of(family):
    return TESTS / f"models/{family}-tiny"


def quantize(family, out, **options):
    """Returns the arguments that quantize the test model of a family and save the export to `out`. An option
    that is None is left out."""
    options = {"model": model_of(family), "calib": CALIB, "nsamples": 8, "seqlen": 128, "save": out, **options}
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]


def command(*arguments, plugins=BUILD / "plugins"):
    line = [str(AQHOST), *map(str, arguments), f"--plugin-dir={plugins}"]
    return line if arguments[0] == "verify" else [*line, "--threads=1"]


def free_port(address="127.0.0.1"):
    for port in PORTS:
        with socket.socket() as s:
            try:
                s.bind((address, port))
            except OSError:
                continue
        return port


def environment(rank, size, port, **more):
    """Returns the environment of one rank. `more` replaces or adds variables."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))}
    return {**clean, "AQHOST_JOIN_TIMEOUT": str(60 * SLOW), "RANK": str(rank), "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            **{name: str(value) for name, value in more.items()}}


def files_of(folder):
    """Returns the bytes of all files of an export by name, except the report, which contains times."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*"))
            if f.is_file() and f.name not in ("quantization_report.json", "report.html")}


def errors_of(text):
    """Returns the text on stderr without warnings and without notes on progress."""
    return "".join(line for line in text.splitlines(keepends=True)
                   if not line.startswith(("aqhost: warning", "aqhost: info")))


class RankTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)
        self.out = self.work / "out"

    def start(self, command_line, **keywords):
        process = subprocess.Popen(command_line, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, **keywords)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def start_ranks(self, *command_lines, **more):
        """Starts one rank for each command line. `more` are variables of all environments."""
        port = free_port()
        return [self.start(line, env=environment(rank, len(command_lines), port, **more))
                for rank, line in enumerate(command_lines)]

    def end(self, processes, seconds=120):
        """Waits for the processes. Returns their exit statuses, and their texts on stdout and stderr."""
        texts = [p.communicate(timeout=seconds * SLOW) for p in processes]
        return [p.returncode for p in processes], [out for out, _ in texts], [err for _, err in texts]

    def begin(self, size, *arguments):
        """Starts a command over `size` processes, or without the environment of ranks if `size` is 1."""
        line = command(*arguments)
        return [self.start(line)] if size == 1 else self.start_ranks(*[line] * size)

    def succeed(self, processes):
        """Waits for the processes of one command. Checks that all succeed and that only rank 0 prints something,
        unless another has to wait for it. Returns its text on stdout."""
        statuses, outs, errs = self.end(processes)
        self.assertEqual(statuses, [0] * len(processes), errs)
        errs = [re.sub(r"aqhost: info: .*\bwait.*\n", "", err) for err in errs]
        self.assertEqual(outs[1:] + errs[1:], [""] * 2 * (len(processes) - 1))
        return outs[0]

    def run_together(self, *commands):
        """Runs commands at the same time, each given as (processes, argument, ...). Returns their texts on stdout."""
        return [self.succeed(processes) for processes in [self.begin(*c) for c in commands]]
