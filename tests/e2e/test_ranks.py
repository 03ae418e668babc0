"""Tests of runs over several processes ("ranks") on one machine: what they write, what they refuse, and how they
end and go on if one of them is killed, stopped or interrupted.

ctest runs this file with the build folder in AQ_BUILD, and the Python of the interop tests, if there is one, in
AQ_INTEROP_PYTHON. The file needs only the standard library of Python. The random moments depend on AQ_SEED, which
is 0 if it is not set, and which is printed if a test fails.
"""
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
import unittest

from rank_runs import (AQHOST, BUILD, CALIB, SLOW, TESTS, RankTest, command, environment, errors_of, files_of,
                       free_port, model_of, quantize)

SEED = int(os.environ.get("AQ_SEED", 0))
FAMILIES = ("olmoe", "qwen2-moe", "mixtral", "deepseek-moe")
AGAIN = "start all ranks again with the same command to go on"
INTERRUPTED = 75  # The exit status of a run that was interrupted and can be started again.
KILLS = 20
TIMEOUT = 3 * SLOW  # After so many seconds without an answer, a rank is lost.
# The perplexities of exports over 1, 2 and 4 processes may differ by this part. The sums of the Hessians are
# rounded in another order, so that a few weights take the neighbouring code; from there on the runs differ as if
# they had another seed. With one process, 16 windows of 128 tokens and the seeds 0, 1 and 2, the largest
# perplexity exceeds the smallest by 1.0 % (olmoe), 0.1 % (qwen2-moe), 1.2 % (mixtral) and 2.7 % (deepseek-moe), in
# the mean by 1.25 %. The difference that was seen between the numbers of processes was at most 0.4 %.
SEED_NOISE = 0.0125
# With learned rounding, ranks also choose other windows for a step. With 30 steps of 8 windows, otherwise as above,
# the seeds 0, 1 and 2 of one process differ by up to 1.6 % (mixtral), 0.5 % (olmoe) and 1.2 % (deepseek-moe). With
# the seed 0, 2 processes differ from one by 0.05, 0.2 and 1.4 %, and 4 processes by 1.6, 1.4 and 1.4 %.
REFINE_STEPS = 30
REFINE_NOISE = 0.025


def report_of(folder):
    return json.loads((folder / "quantization_report.json").read_text())


class Exports(RankTest):
    def check_report(self, report, expected):
        """Compares a report with that of one process."""
        self.assertEqual(set(report["modules"]), set(expected["modules"]))
        for name, module in report["modules"].items():
            for field in ("format", "group_size", "bits_per_weight", "in_features", "out_features"):
                self.assertEqual(module[field], expected["modules"][name][field], name)
        for field in ("modules", "weights", "bits_per_weight", "bytes"):
            self.assertEqual(report["totals"][field], expected["totals"][field], field)
        # a loss is a sum over all tokens: it would be a fraction without the tokens of another rank
        for field in ("loss", "rtn_loss"):
            self.assertAlmostEqual(report["totals"][field] / expected["totals"][field], 1, delta=0.02)
            self.assertAlmostEqual(sum(m[field] for m in report["modules"].values()) / report["totals"][field], 1,
                                   delta=1e-9)
        rows = [(e["layer"], e["expert"]) for e in report["experts"]]
        self.assertEqual(rows, [(e["layer"], e["expert"]) for e in expected["experts"]])
        tokens = {}  # The routers' inputs differ by few codes, so a few tokens go to other experts.
        for mine, other in zip(report["experts"], expected["experts"]):
            sums = tokens.setdefault(mine["layer"], [0, 0, 0])
            for i, value in enumerate((mine["tokens"], other["tokens"], abs(mine["tokens"] - other["tokens"]))):
                sums[i] += value
        for mine, other, moved in tokens.values():
            self.assertEqual(mine, other)
            self.assertLess(moved, 0.05 * other)

    def check_family(self, family):
        outs = {name: self.work / name for name in ("1", "2", "4", "4-again")}
        self.run_together(*((int(name[0]), *quantize(family, out, nsamples=16)) for name, out in outs.items()))
        self.assertEqual(files_of(outs["4-again"]), files_of(outs["4"]))
        folders = [outs[name] for name in ("1", "2", "4")]
        text = self.work / "text.txt"
        text.write_text((TESTS / "data/kjv_eval.txt").read_text()[:20_000])
        compared, *_ = self.run_together((1, "compare", *folders, "--text", text, "--window", 128, "--json"),
                                         *((1, "verify", "--model", folder) for folder in folders))
        one, *more = [row["perplexity"] for row in json.loads(compared)]
        for value in more:
            self.assertLess(abs(value / one - 1), SEED_NOISE, compared)
        one, *more = map(report_of, folders)
        for report in more:
            self.check_report(report, one)

    def test_experts_see_the_same_tokens_as_in_one_process(self):
        # with one quantized module, behind the last router, no router sees anything else
        recipe = self.work / "recipe.yaml"
        recipe.write_text("default: {wq: bf16}\n"
                          'overrides: [{pattern: "*.layers.2.mlp.experts.*", wq: int4, group_size: 128}]\n')
        rows = {}
        for size in (1, 2, 4):
            self.run_together((size, *quantize("olmoe", self.work / str(size), config=recipe)))
            rows[size] = report_of(self.work / str(size))["experts"]
        self.assertGreater(sum(e["tokens"] for e in rows[1]), 0)
        for size in (2, 4):
            self.assertEqual([e["tokens"] for e in rows[size]], [e["tokens"] for e in rows[1]])
            for mine, other in zip(rows[size], rows[1]):
                self.assertAlmostEqual(mine["weight"], other["weight"], delta=1e-4 * other["weight"])

    def test_rounding_to_nearest_gives_the_bytes_of_one_process(self):
        options = {"calib": None, "nsamples": None, "seqlen": None, "algorithm": "rtn"}
        for family in FAMILIES:
            outs = [self.work / f"{family}-{size}" for size in ((1, 2, 3) if family == "mixtral" else (1, 2))]
            self.run_together(*((size, *quantize(family, out, **options)) for size, out in enumerate(outs, 1)))
            for out in outs[1:]:
                self.assertEqual(files_of(out), files_of(outs[0]))
                self.assertEqual(report_of(out)["modules"], report_of(outs[0])["modules"])

    def check_recipe(self, text, size=2, again=False, **options):
        """Quantizes olmoe by a recipe over several processes, twice if `again` is true. Returns the report, and
        that of one process."""
        recipe = self.work / "recipe.yaml"
        recipe.write_text(text)
        outs = {name: self.work / name for name in ("one", "several", *["again"] * again)}
        for out in outs.values():
            shutil.rmtree(out, ignore_errors=True)
        self.run_together(*((1 if name == "one" else size, *quantize("olmoe", out, config=recipe, **options))
                            for name, out in outs.items()))
        self.run_together((1, "verify", "--model", outs["several"]))
        if again:
            self.assertEqual(files_of(outs["again"]), files_of(outs["several"]))
        reports = report_of(outs["several"]), report_of(outs["one"])
        self.check_report(*reports)
        return reports

    def test_activations_with_one_scale_for_all_tokens(self):
        report, _ = self.check_recipe("default: {wq: nvfp4, aq: nvfp4}\n", again=True)
        self.assertEqual({m["activations"] for m in report["modules"].values()}, {"nvfp4"})
        # the largest value of an input is found over the tokens of all ranks
        self.assertEqual(self.input_scale(self.work / "several"), self.input_scale(self.work / "one"))

    @staticmethod
    def input_scale(folder):
        """Returns the bytes of the scale of the inputs of layer 0's q projection, which no module precedes."""
        name = "model.layers.0.self_attn.q_proj.input_global_scale"
        for file in folder.glob("*.safetensors"):
            data = file.read_bytes()
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8:8 + length])
            if name in header:
                begin, end = header[name]["data_offsets"]
                return data[8 + length + begin:8 + length + end]
        raise AssertionError(f"{folder} has no {name}")

    def test_a_quantized_lm_head(self):
        report, expected = self.check_recipe('default: {wq: int4, group_size: 128}\n'
                                             'overrides: [{pattern: "lm_head", wq: int8, group_size: 64}]\n')
        self.assertEqual(report["modules"]["lm_head"]["tokens"], 8 * 128)
        self.assertAlmostEqual(report["modules"]["lm_head"]["loss"] / expected["modules"]["lm_head"]["loss"], 1,
                               delta=0.02)

    def test_ranks_that_have_different_names_for_one_folder(self):
        self.out.mkdir()
        link = self.work / "link"
        link.symlink_to(self.out)
        self.succeed(self.start_ranks(*(command(*quantize("mixtral", out)) for out in (link, self.out))))
        self.run_together((1, "verify", "--model", self.out))

    def test_experts_calibrated_on_all_tokens(self):
        report, _ = self.check_recipe("default: {wq: int4, group_size: 128}\ncalibrate_all_experts: true\n")
        self.assertEqual({m["tokens"] for m in report["modules"].values()}, {8 * 128})

    def test_stages_that_are_not_sequential_and_starved_experts_on_few_tokens(self):
        for size, text, options in (
                (2, "default: {wq: int4, group_size: 128}\n", {"nsamples": 2, "seqlen": 16}),
                (2, "default: {wq: int4, group_size: 128}\nmin_tokens: 100000\n", {}),
                (3, "default: {wq: int4, group_size: 128}\nsequential: false\n", {"nsamples": 3, "seqlen": 64})):
            with self.subTest(text=text, **options):
                report, expected = self.check_recipe(text, size, **options)
                starved = [e["starved"] for e in report["experts"]]
                self.assertIn(True, starved)
                self.assertEqual(report["totals"]["starved_experts"], starved.count(True))
                self.assertAlmostEqual(starved.count(True), expected["totals"]["starved_experts"], delta=2)

    def check_refine(self, family, again):
        """Compares learned rounding over 2 processes with that of one process, and with itself if `again` is
        true."""
        recipe, text = self.work / "recipe.yaml", self.work / "text.txt"
        recipe.write_text(f"default: {{wq: int4, group_size: 128, refine: {{steps: {REFINE_STEPS}, batch: 7}}}}\n")
        text.write_text((TESTS / "data/kjv_eval.txt").read_text()[:20_000])
        outs = {name: self.work / family / name for name in ("1", "2", *["2-again"] * again)}
        outs["2"].parent.mkdir()
        self.run_together(*((int(name[0]), *quantize(family, out, config=recipe, nsamples=16))
                            for name, out in outs.items()))
        if again:
            self.assertEqual(files_of(outs["2-again"]), files_of(outs["2"]))
        compared, _ = self.run_together((1, "compare", outs["1"], outs["2"], "--text", text, "--window", 128, "--json"),
                                        (1, "verify", "--model", outs["2"]))
        one, several = [row["perplexity"] for row in json.loads(compared)]
        self.assertLess(abs(several / one - 1), REFINE_NOISE, compared)
        one, several = (report_of(outs[name]) for name in ("1", "2"))
        self.assertEqual(set(several["modules"]), set(one["modules"]))
        self.assertEqual([r["layer"] for r in several["refined"]], [0, 1, 2])  # each layer once
        # the errors are those of the windows of all ranks; codes that do not reduce them are not kept
        first, last = several["refined"][0], several["refined"][2]
        self.assertAlmostEqual(first["error_before"] / one["refined"][0]["error_before"], 1, delta=0.01)
        self.assertLess(last["error_after"], 0.9 * last["error_before"])
        self.assertAlmostEqual(last["error_after"] / one["refined"][2]["error_after"], 1, delta=0.4)
        # each step sends a gradient to the owner of a module, and then its new weights to the other rank
        weights = sum(m["in_features"] * m["out_features"] for m in several["modules"].values())
        small = 3 * 2 * (2 * 16 + 8) + 8 * 2 * len(several["modules"])  # errors, number of windows, owners
        self.assertEqual(sum(rank["traffic"]["refine"]["bytes"] for rank in several["totals"]["ranks"]),
                         4 * weights * (2 * REFINE_STEPS + 1) + small)

    def test_learned_rounding(self):
        for family, again in (("olmoe", True), ("mixtral", False)):
            self.check_refine(family, again)

    def test_hessians_and_new_weights_are_sent_once(self):
        sizes = (2, 4)
        self.run_together(*((size, *quantize("olmoe", self.work / str(size), dtype="float32")) for size in sizes))
        for size in sizes:
            report = report_of(self.work / str(size))
            # queries, keys and values share an input, and so do gate and up
            groups = {re.sub(r"[qkv]_proj$", "qkv", re.sub(r"(gate|up)_proj$", "gate_up", name)): m["in_features"]
                      for name, m in report["modules"].items()}
            self.assertEqual(len(groups), 3 * (2 + 2 * 16))
            hessians = sum(2 * 4 * n * n for n in groups.values())  # each with its shift, in float32
            weights = sum(4 * m["in_features"] * m["out_features"] for m in report["modules"].values())
            counts = 8 * 3 * len(groups) * size * (size - 1)  # the tokens of each group, from each rank to each
            ranks = report["totals"]["ranks"]
            self.assertEqual(len(ranks), size)
            sent = {station: sum(rank["traffic"][station]["bytes"] for rank in ranks)
                    for station in ("reduce", "share")}
            self.assertEqual(sent, {"reduce": hessians * (size - 1) + counts, "share": weights * (size - 1)})

    def test_eval_and_compare_give_the_numbers_of_one_process(self):
        out, text = self.work / "out", self.work / "text.txt"
        self.run_together((1, *quantize("olmoe", out, nsamples=4)))
        text.write_text((TESTS / "data/kjv_eval.txt").read_text()[:12_000])
        options = ("--text", text, "--window", 96, "--json")
        for arguments in (("eval", "--model", out, *options),
                          ("eval", "--model", out, "--against", model_of("olmoe"), *options),
                          ("compare", out, model_of("olmoe"), "--against", model_of("olmoe"), *options),
                          ("compare", model_of("olmoe"), out, *options)):
            one, two = map(json.loads, self.run_together((1, *arguments), (2, *arguments)))
            self.assert_near(two, one, arguments[0])

    def assert_near(self, value, expected, path):
        """Compares two JSON values; numbers may differ by rounding."""
        self.assertIs(type(value), type(expected), path)
        if isinstance(value, dict):
            self.assertEqual(list(value), list(expected), path)
            for key in value:
                self.assert_near(value[key], expected[key], f"{path}.{key}")
        elif isinstance(value, list):
            self.assertEqual(len(value), len(expected), path)
            for i, (a, b) in enumerate(zip(value, expected)):
                self.assert_near(a, b, f"{path}[{i}]")
        elif isinstance(value, float):
            self.assertAlmostEqual(value, expected, delta=1e-6 * abs(expected), msg=path)
        else:
            self.assertEqual(value, expected, path)


for family_name in FAMILIES:
    def test(self, family=family_name):
        self.check_family(family)
    setattr(Exports, "test_a_run_over_2_and_4_processes_of_" + family_name.replace("-", "_"), test)


class Refusals(RankTest):
    def refused(self, message, lines, **more):
        """Starts ranks with these command lines. Checks that all fail with this message, and write nothing."""
        before = sorted(self.work.rglob("*"))
        statuses, outs, errs = self.end(self.start_ranks(*lines, **more), seconds=30)
        self.assertEqual((statuses, outs), ([1] * len(lines), [""] * len(lines)), errs)
        for rank, err in enumerate(errs):
            self.assertRegex(errors_of(err), rf"\Aaqhost: .*{message}.*\n\Z", f"rank {rank}")
        self.assertEqual(sorted(self.work.rglob("*")), before)

    def differs(self, message, other, **more):
        """Checks that rank 1 with the command line `other` is refused."""
        self.refused(f"the processes of a run must be started alike, but rank 1 differs from rank 0: .*{message}",
                     [command(*quantize("olmoe", self.out)), other], **more)

    def test_fewer_windows_than_processes(self):
        self.refused("2 calibration windows cannot be dealt to 3 processes; use more --nsamples, or fewer processes",
                     [command(*quantize("olmoe", self.out, nsamples=2))] * 3)

    def test_eval_of_something_else(self):
        def line(model="olmoe", window=512):
            return command("eval", "--model", model_of(model), "--text", TESTS / "data/kjv_eval.txt", "--window",
                           window)

        for other in (line(window=256), line(model="mixtral")):
            self.refused("the processes of a run must be started alike, but rank 1 runs another model, or on other "
                         "windows, than rank 0", [line(), other])

    def test_another_recipe(self):
        recipe = self.work / "recipe.yaml"
        recipe.write_text("default: {wq: int8, group_size: 128}\n")
        self.differs(r"model.layers.*\(--config or --algorithm\).*int4.* on rank 0, .*int8.* on rank 1",
                     command(*quantize("olmoe", self.out, config=recipe)))
        recipe.write_text("default: {wq: int4, group_size: 128}\npercdamp: 0.2\n")
        self.differs(r"percdamp \(--config\): 0.1 on rank 0, 0.2 on rank 1",
                     command(*quantize("olmoe", self.out, config=recipe)))

    def test_another_option(self):
        self.differs("--seed: 0 on rank 0, 1 on rank 1", command(*quantize("olmoe", self.out, seed=1)))
        self.differs("--nsamples: 8 on rank 0, 9 on rank 1", command(*quantize("olmoe", self.out, nsamples=9)))
        for calib in (CALIB, None):  # ranks that run other calls of the comm
            self.differs(r"calibration \(--calib, --config or --algorithm\): only on rank 0; model.layers.*",
                         command(*quantize("olmoe", self.out, algorithm="rtn", calib=calib)))
        self.differs(f"--save: {re.escape(str(self.out))} on rank 0, {re.escape(str(self.work))}/other on rank 1",
                     command(*quantize("olmoe", self.work / "other")))

    def test_a_rank_that_cannot_open_its_device_says_so_to_the_others(self):
        lines = [command(*quantize("olmoe", self.out, device=d)) for d in (None, "cuda:99")]
        self.refused("--device cuda:99: ", lines)
        self.refused("--device cuda:99: ", lines[::-1])

    def test_a_work_folder_on_a_disk_of_its_own(self):
        mounts = ["unshare", "-m", "sh", "-c"]
        if subprocess.run([*mounts, "mount -t tmpfs none /mnt"], capture_output=True).returncode != 0:
            self.skipTest("this user cannot mount a file system")
        lines = [command(*quantize("olmoe", self.out))] * 2
        lines[1] = [*mounts, f'mount -t tmpfs none "{self.work}" && mkdir -p "{self.out}".work/export '
                    f'"{self.out}".work/progress && exec "$@"', "sh", *lines[1]]
        self.refused(f"{self.out}.work: this process sees another folder of this name than rank 0 does; the processes "
                     "of a run need one folder on a file system that they share", lines)

    def test_another_plugin_file(self):
        plugins = self.work / "plugins"
        shutil.copytree(BUILD / "plugins", plugins, ignore=lambda *_: ("CMakeFiles", "formats", "models"))
        with open(plugins / "int4.so", "ab") as file:  # The plugin works as before.
            file.write(b"\0")
        self.differs(r"the plugin int4 \(--plugin-dir\): not the same",
                     command(*quantize("olmoe", self.out), plugins=plugins))

    def test_another_model_file(self):
        model = self.work / "model"
        shutil.copytree(model_of("olmoe"), model)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
        self.differs(r"config.json \(--model\): not the same", command(*quantize("olmoe", self.out, model=model)))
        shutil.copyfile(model_of("olmoe") / "config.json", model / "config.json")
        with open(model / "model.safetensors", "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(bytes(1000))
        self.differs(r"model.safetensors.*\(--model\): not the same",
                     command(*quantize("olmoe", self.out, model=model)))

    def test_another_world_size(self):
        port = free_port()
        line = command(*quantize("olmoe", self.out))
        processes = [self.start(line, env=environment(rank, size, port)) for rank, size in ((0, 2), (1, 3))]
        statuses, _, errs = self.end(processes, seconds=30)
        self.assertEqual(statuses, [1, 1])
        for err in errs:
            self.assertRegex(errors_of(err), r"\Aaqhost: rank \d was started as one of \d processes, but another one "
                             r"as one of \d: expected the same WORLD_SIZE for all\n\Z")
        self.assertEqual(list(self.work.iterdir()), [])

    def test_a_rank_that_cannot_read_its_recipe_says_so_to_the_others(self):
        missing = self.work / "missing.yaml"
        lines = [command(*quantize("olmoe", self.out, config=c)) for c in (None, missing)]
        self.refused(f"{missing}", lines)


class Faults(RankTest):
    family = "mixtral"
    undisturbed = {}  # The files of a run over so many processes without a fault, and its seconds.

    def start_run(self, size=2, out=None, **options):
        line = command(*quantize(self.family, out or self.out, **options))
        return self.start_ranks(*[line] * size, AQHOST_RANK_TIMEOUT=TIMEOUT, AQHOST_JOIN_TIMEOUT=TIMEOUT)

    def whole(self, **options):
        key = str(options)
        if key not in self.undisturbed:
            out = self.work / "whole"
            begin = time.monotonic()
            self.succeed(self.start_run(out=out, **options))
            self.undisturbed[key] = files_of(out), time.monotonic() - begin
            shutil.rmtree(out)
        return self.undisturbed[key]

    def records(self, out=None):
        out = out or self.out
        return sorted(p.name for p in out.with_name("out.work").glob("progress/unit-*.json"))

    def check_goes_on(self, what, out=None, **options):
        """The same command goes on after all finished layers, and gives the bytes of a run without a fault."""
        kept = self.records(out)
        statuses, _, errs = self.end(self.start_run(out=out, **options))
        self.assertEqual(statuses, [0, 0], f"{what}: {errs}")
        self.assertNotIn("done again", errs[0], what)  # no file of the work folder is damaged
        self.assertEqual("going on after" in errs[0], bool(kept), f"{what}: {kept}: {errs[0]}")
        self.check_done(what, out, **options)

    def check_done(self, what, out=None, **options):
        out = out or self.out
        whole = self.whole(**options)[0]
        self.assertEqual(files_of(out), whole, what)
        self.assertEqual([p.name for p in out.parent.iterdir()], ["out"], what)
        shutil.rmtree(out)

    def wait_for_record(self, processes):
        while not self.records() and all(p.poll() is None for p in processes):
            time.sleep(0.002)

    def end_survivor(self, process, message, what, seconds=4 * TIMEOUT):
        """Checks that the other rank ends by itself in time with status 1 and this message. Returns the text."""
        begin = time.monotonic()
        _, err = process.communicate(timeout=60 * SLOW)
        self.assertLess(time.monotonic() - begin, seconds, what)
        self.assertEqual(process.returncode, 1, f"{what}: {err}")
        self.assertRegex(errors_of(err), rf"\Aaqhost: {message}", what)
        self.assertEqual(errors_of(err).count("\n"), 1, f"{what}: {err}")
        return err

    def kill_once(self, number):
        """Kills one of two ranks at a random moment. Returns whether finished layers were kept."""
        victim, moment = number % 2, random.Random(f"{SEED} {number}").uniform(0.02, 1.5 * self.whole()[1])
        what = f"seed {SEED}, kill {number}, rank {victim} after {moment:.3f} s"
        out = self.work / str(number) / "out"
        processes = self.start_run(out=out)
        time.sleep(moment)
        processes[victim].kill()
        other = processes[1 - victim]
        err = other.communicate(timeout=60 * SLOW)[1]
        if out.exists():  # The run has ended, or at least rank 0 has put the export in place.
            # The next run says so, and removes what rank 0 has left of the work folder.
            statuses, _, errs = self.end(self.start_run(out=out))
            self.assertEqual(statuses, [1, 1], f"{what}: {errs}")
            self.assertIn("already exists", errs[0], what)
            self.check_done(what, out)
            return False
        lost = (rf"rank {victim} of 2 (has ended without a message, as if it was killed|has not answered for "
                rf"{TIMEOUT} s) \(it was last in: [^)]+\); {AGAIN}")
        # before the processes have met
        absent = (rf"of 2 processes, these did not start within {TIMEOUT} s: rank {victim}; .*|"
                  rf"rank 1 of 2 does not reach rank 0 .*|rank 0 at .* has ended or does not answer; {AGAIN}")
        kept = r"(\. \d finished layers? (is|are) kept in .*)?"
        self.assertRegex(errors_of(err), rf"\Aaqhost: (rank {1 - victim}: )?({lost}|{absent}){kept}\n\Z", what)
        self.assertEqual(other.returncode, 1, what)
        has_layers = bool(self.records(out))
        if has_layers:
            self.assertEqual("kept in" in err, victim == 1, f"{what}: {err}")  # rank 0 says it
            status = self.end([self.start([str(AQHOST), "status", str(out)])])
            self.assertRegex(status[1][0], r"out\.work: [1-9]\d* of \d+ layers are finished")
        self.check_goes_on(what, out)
        return has_layers

    def test_killed_at_random_moments(self):
        self.whole()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            had_layers = list(pool.map(self.kill_once, range(KILLS)))
        self.assertGreater(had_layers.count(True), 0)

    def kill_after_a_layer(self):
        """Kills both ranks of a run when its work folder contains a finished layer."""
        processes = self.start_run(nsamples=64)
        self.wait_for_record(processes)
        for process in processes:
            process.kill()
        self.end(processes)

    def test_a_run_that_was_killed_while_it_wrote_its_first_record(self):
        self.kill_after_a_layer()
        for name in self.records()[1:]:
            (self.work / "out.work/progress" / name).unlink()
        record = self.work / "out.work/progress/unit-00000.json"
        record.rename(f"{record}.part")
        self.check_goes_on("the first record", nsamples=64)

    def test_killed_during_learned_rounding(self):
        recipe = self.work / "recipes" / "recipe.yaml"
        recipe.parent.mkdir()
        # The steps begin soon after layer 0, and take longer than all that comes before them.
        recipe.write_text('default: {wq: int4, group_size: 128}\n'
                          'overrides: [{pattern: "*.layers.1.*", refine: {steps: 150, batch: 2}}]\n')
        out = self.work / "run" / "out"
        out.parent.mkdir()
        begin = time.monotonic()
        processes = self.start_run(out=out, config=recipe)
        while not self.records(out) and all(p.poll() is None for p in processes):
            time.sleep(0.002)
        time.sleep((time.monotonic() - begin) / 2)
        processes[1].kill()
        self.end_survivor(processes[0], r"(rank 0: )?rank 1 of 2 has ended without a message, as if it was killed "
                          rf"\(it was last in: layer 1: refine\); {AGAIN}", "killed")
        self.check_goes_on("killed", out, config=recipe)

    def test_a_file_that_a_rank_cannot_write(self):
        # The message of the rank is shown by both, even if rank 0 has failed and waits for that file.
        work = self.work / "out.work"
        blocked = work / "progress/states-00001.rank-0001.json.part"
        for others in ([], [work / "export/model-00003-of-00004.safetensors.part"]):
            processes = self.start_run(nsamples=64)
            self.wait_for_record(processes)
            for folder in (blocked, *others):
                folder.mkdir()
            statuses, _, errs = self.end(processes, seconds=30)
            self.assertEqual(statuses, [1, 1], errs)
            for err in errs:
                self.assertRegex(errors_of(err), rf"\Aaqhost: rank \d: (rank \d of 2 failed: )?({blocked}|"
                                 rf"{''.join(map(str, others)) or blocked}): ")
            shutil.rmtree(work)

    def test_a_stopped_rank(self):
        processes = self.start_run(nsamples=64)
        self.wait_for_record(processes)
        processes[0].send_signal(signal.SIGSTOP)  # it serves the store as well
        self.end_survivor(processes[1], rf"rank 1: rank 0 of 2 has not answered for {TIMEOUT} s "
                          rf"\(it was last in: [^)]+\); {AGAIN}", "stopped")
        processes[0].kill()
        processes[0].wait()
        self.assertTrue(self.records())
        self.check_goes_on("stopped", nsamples=64)

    def test_a_signal_to_all_ranks(self):
        options = {"nsamples": 64}
        self.whole(**options)
        for number in (signal.SIGTERM, signal.SIGINT):
            processes = self.start_run(**options)
            self.wait_for_record(processes)
            for process in processes:
                process.send_signal(number)
            statuses, _, errs = self.end(processes, seconds=30)
            self.assertEqual(statuses, [INTERRUPTED] * 2, errs)
            self.assertRegex(errors_of(errs[0]), r"\Aaqhost: interrupted: \d finished layers? (is|are) kept in .*\n\Z")
            self.assertRegex(errors_of(errs[1]), r"\Aaqhost: interrupted.*\n\Z")
            self.check_goes_on(number.name, **options)

    def test_a_signal_to_all_ranks_before_the_first_layer_leaves_nothing(self):
        chance = random.Random(SEED)
        for _ in range(4):
            processes = self.start_run(nsamples=256)
            while not (self.work / "out.work/progress").exists() and processes[0].poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.2))
            for process in processes:
                process.send_signal(signal.SIGTERM)
            statuses, _, errs = self.end(processes, seconds=30)
            self.assertEqual(statuses, [INTERRUPTED] * 2, errs)
            if "kept in" in errs[0]:
                shutil.rmtree(self.work / "out.work")
                continue
            for err in errs:
                self.assertEqual(errors_of(err), "aqhost: interrupted, nothing was written\n")
            self.assertEqual(list(self.work.iterdir()), [])

    def test_another_number_of_ranks_is_refused(self):
        self.kill_after_a_layer()
        self.assertTrue(self.records())
        for size, now in ((4, 4), (1, 1)):
            statuses, _, errs = self.end(self.start_run(size, nsamples=64) if size > 1 else
                                         [self.start(command(*quantize(self.family, self.out, nsamples=64)))])
            self.assertEqual(statuses, [1] * size, errs)
            for err in errs:
                self.assertIn("holds the unfinished work of another run: the number of processes: 2 before, "
                              f"{now} now. Run it as before to go on", errors_of(err))
        self.check_goes_on("2 processes", nsamples=64)


class Places(RankTest):
    """Ranks on hosts of their own, and ranks that torchrun starts."""

    def ip(self, *arguments):
        try:
            done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        except FileNotFoundError:
            self.skipTest("there is no ip (iproute2)")
        if done.returncode != 0:
            self.skipTest(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def make_hosts(self):
        """Makes two network namespaces that a cable connects, 10.187.61.1 and .2. Returns their names."""
        names = [f"aqhost-{os.getpid()}-{i}" for i in range(2)]
        cable = [f"aqh{os.getpid()}{end}" for end in "ab"]
        for name in names:
            self.ip("netns", "add", name)
            self.addCleanup(subprocess.run, ["ip", "netns", "del", name])
        self.ip("link", "add", cable[0], "netns", names[0], "type", "veth", "peer", "name", cable[1], "netns",
                names[1])
        for i, name in enumerate(names):
            self.ip("-n", name, "addr", "add", f"10.187.61.{i + 1}/24", "dev", cable[i])
            self.ip("-n", name, "link", "set", cable[i], "up")
            self.ip("-n", name, "link", "set", "lo", "up")
        return names

    def test_two_hosts(self):
        names = self.make_hosts()
        expected = self.work / "loopback"
        self.run_together((2, *quantize("mixtral", expected)))
        line = command(*quantize("mixtral", self.out))
        processes = [self.start(["ip", "netns", "exec", name, *line],
                                env=environment(rank, 2, 29500, MASTER_ADDR="10.187.61.1", LOCAL_RANK=0))
                     for rank, name in enumerate(names)]
        statuses, _, errs = self.end(processes)
        self.assertEqual(statuses, [0, 0], errs)
        self.assertEqual(files_of(self.out), files_of(expected))

    def torchrun(self):
        python = os.environ.get("AQ_INTEROP_PYTHON", "")
        program = pathlib.Path(python).parent / "torchrun"
        if not python or not program.exists():
            self.skipTest("there is no torchrun (AQHOST_INTEROP_PYTHON)")
        return [str(program), "--no-python", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port",
                str(free_port())]

    def test_torchrun(self):
        launcher = self.torchrun()
        expected = self.work / "loopback"
        self.run_together((2, *quantize("mixtral", expected)))
        statuses, _, errs = self.end([self.start([*launcher, *command(*quantize("mixtral", self.out))])])
        self.assertEqual(statuses, [0], errs)
        self.assertEqual(files_of(self.out), files_of(expected))
        shutil.rmtree(self.out)

        line = command(*quantize("mixtral", self.out, nsamples=64))
        launched = self.start([*launcher, *line])
        record = self.work / "out.work/progress/unit-00000.json"
        while not record.exists() and launched.poll() is None:
            time.sleep(0.002)
        workers = subprocess.run(["pgrep", "-P", str(launched.pid)], capture_output=True, text=True).stdout.split()
        self.assertEqual(len(workers), 2)
        os.kill(int(workers[1]), signal.SIGKILL)
        statuses, _, _ = self.end([launched], seconds=60)
        self.assertEqual(statuses, [1])
        for worker in workers:
            self.assertFalse(pathlib.Path(f"/proc/{worker}").exists(), worker)
        statuses, _, errs = self.end([self.start([*launcher, *line])])
        self.assertEqual(statuses, [0], errs)
        self.assertIn("going on after", errs[0])


if __name__ == "__main__":
    unittest.main()
