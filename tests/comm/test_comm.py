"""Tests of runs over several processes on one machine: what the calls of core/run/comm.h give, and how the
other ranks end if one of them dies, hangs, fails or does not come.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library. With
AQ_TEST_GPUS=2 (a number of GPUs), the tensors are on GPUs, and there are never more ranks than GPUs. Because
the processes wait most of the time, several tests run at once.
"""
import concurrent.futures
import itertools
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

BUILD = pathlib.Path(os.environ["AQ_BUILD"])
GPUS = int(os.environ.get("AQ_TEST_GPUS", 0))
SIZES = [size for size in (1, 2, 4) if not GPUS or size <= GPUS]
SILENCE = 3  # seconds after which a rank counts as lost, in the tests that wait for it
SLOW = 10 if os.environ.get("AQ_SANITIZE") else 3 if GPUS else 1
# Seconds that the ranks have to start, in the tests in which one does not. Opening a GPU takes several.
JOIN = 20 if GPUS else 2
# No test has a port that another had, or from the range in which the kernel chooses ports of connections.
PORTS = itertools.count(random.randrange(15_000, 30_000))
AGAIN = "start all ranks again with the same command to go on"


def free_port():
    for port in PORTS:
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def connections(port):
    """The number of connections to a port of this machine."""
    rows = [row.split() for file in pathlib.Path("/proc/net").glob("tcp*")
            for row in file.read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def environment(rank, size, port, **more):
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))}
    return {**clean, "OMP_NUM_THREADS": "1", "AQHOST_JOIN_TIMEOUT": str(60 * SLOW),
            "AQHOST_RANK_TIMEOUT": str(30 * SLOW), "RANK": str(rank), "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank % GPUS if GPUS else rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            **{name: str(value) for name, value in more.items()}}


class CommTest(unittest.TestCase):
    def start(self, ranks, size, *arguments, port=None, **more):
        """Starts these ranks of `size`, and returns their processes by rank."""
        port = port or free_port()
        processes = {}
        for rank in ranks:
            processes[rank] = subprocess.Popen(
                [BUILD / "bin/comm_rank", *map(str, arguments)], text=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(rank, size, port, **more))
            self.addCleanup(self.stop, processes[rank])
        return processes

    @staticmethod
    def stop(process):
        process.kill()
        process.communicate()

    def end(self, process, status, seconds):
        """Waits for a process; returns what it printed to stdout and stderr."""
        out, err = process.communicate(timeout=seconds * SLOW)
        self.assertEqual(process.returncode, status, out + err)
        return out, err

    def run_all(self, size, *arguments, **more):
        ended = [self.end(p, 0, 60) for p in self.start(range(size), size, *arguments, **more).values()]
        for _, err in ended:
            self.assertEqual(err, "")  # neither Gloo nor LibTorch prints anything
        return [out for out, _ in ended]

    def await_ready(self, processes):
        for process in processes.values():
            self.assertEqual(process.stdout.readline(), "ready\n")

    def assert_all_end(self, processes, message, seconds):
        """The processes end with status 1 and this message, within the time."""
        begin = time.monotonic()
        for process in processes.values():
            out, err = self.end(process, 1, seconds)
            self.assertRegex(err, f"\\A(aqhost|comm_rank): {message}\n\\Z")
        self.assertLess(time.monotonic() - begin, seconds * SLOW)


class Calls(CommTest):
    def test_the_results_are_those_of_one_process_in_rank_order_with_the_fewest_bytes(self):
        for size in SIZES:
            with self.subTest(size=size):
                self.assertEqual(self.run_all(size, "calls"), ["ok\n"] * size)

    def test_a_world_size_always_gives_the_same_bytes(self):
        size = SIZES[-1]
        digests = {text for _ in range(2) for text in self.run_all(size, "digest")}
        self.assertEqual(len(digests), 1, digests)

    def test_ranks_that_end_later_than_rank_0_end_well(self):
        self.assertEqual(self.run_all(SIZES[-1], "late", AQHOST_RANK_TIMEOUT=SILENCE), ["ok\n"] * SIZES[-1])

    def test_ranks_that_meet_at_a_store_of_torchrun(self):
        # rank 0 of another run serves the store; a restart meets at the same store
        port = free_port()
        host = self.start([0], 2, "calls", port=port)
        for restart in range(2):
            outs = self.run_all(2, "calls", port=port, TORCHELASTIC_USE_AGENT_STORE="True",
                                TORCHELASTIC_RUN_ID="r", TORCHELASTIC_RESTART_COUNT=restart)
            self.assertEqual(outs, ["ok\n"] * 2)
        host[0].kill()


class Lost(CommTest):
    size = min(SIZES[-1], 3)
    last = size - 1

    def test_a_killed_rank_is_named_with_its_station(self):
        for victim in (self.last, 0):
            with self.subTest(victim=victim):
                ranks = self.start(range(self.size), self.size, "stuck", victim)
                self.await_ready(ranks)
                ranks.pop(victim).kill()
                self.assert_all_end(
                    ranks, f"rank {victim} of {self.size} has ended without a message, as if it was killed "
                    rf"\(it was last in: layer 5, solve\); {AGAIN}", 10)

    def test_a_rank_that_is_killed_while_it_sends(self):
        ranks = self.start(range(self.size), self.size, "transfer")
        self.await_ready(ranks)
        time.sleep(1)
        ranks.pop(1).kill()
        self.assert_all_end(ranks, f"rank 1 of {self.size} has ended without a message, as if it was killed "
                            rf"\(it was last in: layer 7, reduce\); {AGAIN}", 10)

    def test_a_stopped_rank_is_named_with_its_station(self):
        for victim in (self.last, 0):
            with self.subTest(victim=victim):
                ranks = self.start(range(self.size), self.size, "stuck", victim, AQHOST_RANK_TIMEOUT=SILENCE * SLOW)
                self.await_ready(ranks)
                stopped = ranks.pop(victim)
                stopped.send_signal(signal.SIGSTOP)
                self.assert_all_end(ranks, f"rank {victim} of {self.size} has not answered for {SILENCE * SLOW} s "
                                    rf"\(it was last in: layer 5, solve\); {AGAIN}", 12)
                stopped.send_signal(signal.SIGCONT)
                if victim != 0:  # it learns that the others have gone
                    self.assert_all_end({victim: stopped}, "rank .*", 12)

    def test_ranks_that_make_no_call_end_as_well(self):
        ranks = self.start(range(self.size), self.size, "busy", AQHOST_RANK_TIMEOUT=SILENCE * SLOW)
        self.await_ready(ranks)
        ranks.pop(self.last).kill()
        self.assert_all_end(ranks, f"rank {self.last} of {self.size} has ended without a message, as if it was "
                            rf"killed \(it was last in: layer 5, solve\); {AGAIN}", 15)

    def test_a_stopped_run_that_goes_on_is_not_lost(self):
        ranks = self.start(range(self.size), self.size, "stuck", self.last, AQHOST_RANK_TIMEOUT=SILENCE)
        self.await_ready(ranks)
        for process in ranks.values():
            process.send_signal(signal.SIGSTOP)
        time.sleep(SILENCE + 1)
        for process in ranks.values():
            process.send_signal(signal.SIGCONT)
        time.sleep(SILENCE + 1)
        for process in ranks.values():
            self.assertIsNone(process.poll())

    def test_a_call_may_take_longer_than_the_start_of_the_ranks(self):
        ranks = self.start(range(self.size), self.size, "stuck", self.last, AQHOST_JOIN_TIMEOUT=SILENCE * SLOW)
        self.await_ready(ranks)
        time.sleep(2 * SILENCE * SLOW)
        for process in ranks.values():
            self.assertIsNone(process.poll())

    def test_a_rank_that_fails_tells_the_others_why(self):
        for victim in (self.last, 0):
            with self.subTest(victim=victim):
                ranks = self.start(range(self.size), self.size, "failing", victim)
                failed = ranks.pop(victim)
                self.assert_all_end({victim: failed}, "the disk is full", 20)
                self.assert_all_end(ranks, f"rank {victim} of {self.size} failed: the disk is full", 10)


class Start(CommTest):
    def test_missing_ranks_are_named(self):
        for ranks, missing in (([0, 2], "1, 3"), ([0], "1, 2, 3")):
            with self.subTest(ranks=ranks):
                started = self.start(ranks, 4, "calls", AQHOST_JOIN_TIMEOUT=JOIN)
                self.assert_all_end(
                    started, f"of 4 processes, these did not start within {JOIN} s: rank {missing}; start one for "
                    "each rank, all with the same MASTER_ADDR and MASTER_PORT", 15)

    def test_a_rank_that_waits_says_for_what(self):
        port, seconds = free_port(), max(JOIN, 7)
        several = self.start([0, 2], 4, "waits", AQHOST_JOIN_TIMEOUT=seconds)
        alone = self.start([1], 2, "waits", port=port, AQHOST_JOIN_TIMEOUT=seconds)
        ended = [self.end(p, 1, 15)[1] for p in (*several.values(), *alone.values())]
        for err, note in zip(ended, ("waiting for ranks 1 and 3 of 4 to start", "",
                                     f"rank 1 of 2 waits for rank 0: nobody listens at 127.0.0.1:{port}")):
            *notes, _ = err.splitlines()
            self.assertEqual(set(notes), {f"comm_rank: {note}"} if note else set())
            self.assertLess(len(notes), 4)

    def test_a_rank_that_fails_before_it_joins_tells_the_others_why(self):
        for victim in (2, 0):
            with self.subTest(victim=victim):
                port = free_port()
                started = self.start({0, 1, 2} - {victim}, 3, "calls", port=port)
                failed = self.start([victim], 3, "absent", "there is no GPU", port=port)
                self.assert_all_end(failed, "there is no GPU", 15)
                self.assert_all_end(started, f"rank {victim} of 3 failed: there is no GPU", 10)

    def test_a_missing_rank_0_is_named(self):
        port = free_port()
        started = self.start([1], 2, "calls", port=port, AQHOST_JOIN_TIMEOUT=2)
        self.assert_all_end(started, "rank 1 of 2 does not reach rank 0 within 2 s: nobody listens at "
                            f"127.0.0.1:{port}; check that rank 0 runs and that MASTER_ADDR and MASTER_PORT are the "
                            "same for all ranks", 15)

    def test_a_host_that_is_unknown(self):
        started = self.start([0, 1], 2, "calls", AQHOST_JOIN_TIMEOUT=2, MASTER_ADDR="no-such-host.invalid")
        self.assert_all_end(started, r"rank (0 of 2 does not reach itself|1 of 2 does not reach rank 0) within 2 s: "
                            r'the host name "no-such-host.invalid" is unknown here \(.*\); set MASTER_ADDR to a name '
                            "or an address of the machine on which rank 0 runs", 20)

    def test_another_program_on_the_port(self):
        for answer in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None):
            with self.subTest(answer=answer), socket.socket() as s:
                s.bind(("127.0.0.1", free_port()))
                s.listen(50)
                threading.Thread(target=self.answer_all, args=(s, answer), daemon=True).start()
                place = f"127.0.0.1:{s.getsockname()[1]}"
                started = self.start([1], 2, "calls", port=s.getsockname()[1], AQHOST_JOIN_TIMEOUT=2)
                self.assert_all_end(started, "rank 1 of 2 does not reach rank 0 within 2 s: the program that listens "
                                    f"at {place} does not answer as rank 0 does; set MASTER_PORT to a port that no "
                                    "other program uses, on all ranks", 15)
                s.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def answer_all(server, answer):
        """Gives all connections this answer and closes them, or keeps them open without one if it is None."""
        connections = []
        try:
            while True:
                connections.append(server.accept()[0])
                if answer is not None:
                    connections[-1].sendall(answer)
                    connections.pop().close()
        except OSError:  # the server, or a connection, was closed
            pass

    def test_a_rank_0_that_dies_before_all_have_started(self):
        port = free_port()
        started = self.start([0, 1], 3, "calls", port=port)
        for _ in range(300 * SLOW):
            if connections(port) >= 2:
                break
            time.sleep(0.1)
        time.sleep(0.5)
        started.pop(0).kill()
        self.assert_all_end(started, "rank 0 has ended before all of the 3 ranks had started", 15)

    def test_a_signal_ends_a_rank_that_waits_for_others(self):
        for ranks in ([0], [1]):
            with self.subTest(ranks=ranks):
                started = self.start(ranks, 2, "waits")
                self.await_ready(started)
                time.sleep(0.5)
                started[ranks[0]].send_signal(signal.SIGINT)
                self.assert_all_end(started, "interrupted", 10)

    def test_different_world_sizes(self):
        port = free_port()
        started = {**self.start([0], 2, "calls", port=port), **self.start([1], 4, "calls", port=port)}
        self.assert_all_end(started, r"rank \d was started as one of \d processes, but another one as one of \d: "
                            "expected the same WORLD_SIZE for all", 15)

    def test_two_processes_of_one_rank(self):
        port = free_port()
        started = {"first": self.start([1], 3, "calls", port=port)[1],
                   **self.start([0, 1], 3, "calls", port=port)}
        self.assert_all_end(started, "two processes were started as rank 1 of 3: expected a different RANK for "
                            "each", 15)

    def test_a_process_of_another_run_does_not_end_a_run_that_has_begun(self):
        port = free_port()
        started = self.start(range(2), 2, "stuck", 1, port=port)
        self.await_ready(started)
        for rank, size in ((1, 2), (2, 3)):
            with self.subTest(rank=rank, size=size):
                self.assert_all_end(self.start([rank], size, "calls", port=port),
                                    f"a run whose processes have all started uses 127.0.0.1:{port}; to begin another "
                                    "one beside it, set MASTER_PORT to another port; to replace one of its processes, "
                                    "start all of them again", 15)
        time.sleep(2)  # the ranks read each other's pulses every second
        for process in started.values():
            self.assertIsNone(process.poll())

    def test_a_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            started = self.start([0], 2, "calls", port=s.getsockname()[1], AQHOST_JOIN_TIMEOUT=5)
            self.assert_all_end(started, rf"rank 0 cannot listen on port {s.getsockname()[1]} of 127.0.0.1 \(.*\); "
                                "set MASTER_PORT to a free port", 15)

    def test_a_wrong_timeout(self):
        started = self.start([0], 2, "calls", AQHOST_RANK_TIMEOUT="soon")
        self.assert_all_end(started, 'the environment variable AQHOST_RANK_TIMEOUT is "soon": expected a number '
                            "of seconds from 0.1 to 1000000", 15)


def run(test):
    result = unittest.TestResult()
    begin = time.monotonic()
    test.run(result)
    print(f"{time.monotonic() - begin:5.1f} s {test.id()} {'ok' if result.wasSuccessful() else 'FAILED'}")
    return [text for _, text in result.failures + result.errors]


if __name__ == "__main__":
    cases = [case for group in unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
             for case in group
             if len(sys.argv) < 3 or any(word in case.id() for word in sys.argv[2:])]  # -v WORD...
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        failures = sum(pool.map(run, cases), [])
    sys.exit("\n".join(failures) or 0)
