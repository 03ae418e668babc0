"""Tests of aqhost as its users see it: the real program, from the command line to the files it writes.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import contextlib
import fcntl
import gzip
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest
from unittest import mock

from terminal import open_terminal

TESTS = pathlib.Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
AQHOST = BUILD / "bin/aqhost"
MODEL = TESTS / "models/olmoe-tiny"
CALIB = TESTS / "data/kjv_calib.txt"
EVAL = TESTS / "data/kjv_eval.txt"
RECIPE = ROOT / "configs/olmoe_int4.yaml"
COMMANDS = ("inspect", "plan", "allocate", "eval", "compare", "convert", "report", "status", "tokenize", "verify",
            "plugins")


def aqhost(*arguments, plugins=BUILD / "plugins"):
    command = [str(AQHOST), *map(str, arguments)]
    if plugins:
        command += ["--plugin-dir", str(plugins)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def read_safetensors(path):
    """Returns ({name: entry}, data)."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:8 + size]), raw[8 + size:]


def shards(folder):
    """Returns {name: content} of the safetensors files in a folder."""
    return {file.name: file.read_bytes() for file in pathlib.Path(folder).glob("*.safetensors")}


def shard_of(folder, tensor):
    """Returns the path of the file that contains a tensor of an export."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][tensor]


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class WorkFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)

    def ok(self, *arguments, **keywords):
        done = aqhost(*arguments, **keywords)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def fails(self, code, message, *arguments, **keywords):
        """Checks that the command exits with `code`, prints `message` in one line, and prints no result."""
        done = aqhost(*arguments, **keywords)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(message, done.stderr)
        self.assertEqual(done.stdout, "")
        errors = [l for l in done.stderr.splitlines() if not l.startswith("aqhost: warning")]
        self.assertLessEqual(len(errors), 2 if code == 2 else 1, done.stderr)
        return done.stderr

    def copy_model(self):
        target = self.work / "model"
        shutil.copytree(MODEL, target)
        return target


class Usage(WorkFolder):
    def test_help_of_every_command_and_version(self):
        self.assertIn("--calib", self.ok("--help"))
        self.assertEqual(self.ok(plugins=None), self.ok("--help"))
        for command in COMMANDS:
            self.assertIn(f"aqhost {command}", self.ok(command, "--help", plugins=None))
        self.assertIn("plugin ABI 1.", self.ok("--version"))

    def test_help_is_80_columns_wide_and_as_wide_as_a_terminal_up_to_100(self):
        for command in ("quantize", *COMMANDS):
            lines = self.ok(command, "--help", plugins=None).splitlines()
            self.assertLessEqual(max(map(len, lines)), 80, command)
        for columns, width in ((90, 90), (200, 100)):
            ours, theirs = open_terminal(self)
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            process = subprocess.Popen([AQHOST, "--help"], stdout=theirs)
            os.close(theirs)
            text = b""
            with contextlib.suppress(OSError):  # the other end is closed
                while chunk := os.read(ours, 65536):
                    text += chunk
            self.assertEqual(process.wait(), 0)
            longest = max(map(len, text.decode().splitlines()))
            self.assertTrue(width - 10 < longest <= width, longest)

    def test_wrong_usage_exits_with_2_and_names_the_most_similar_word(self):
        self.fails(2, "unknown option --nsample, did you mean --nsamples?", "--nsample", 3)
        self.fails(2, 'unknown command "inspekt", did you mean "inspect"?', "inspekt")
        self.fails(2, "--model is missing", "inspect")
        self.fails(2, "--save is missing", "--model", MODEL)
        self.fails(2, "--nsamples 0: expected 1 to", "--model", MODEL, "--save", self.work / "o",
                   "--calib", CALIB, "--nsamples", 0)
        self.fails(2, "expected gptq or rtn", "--model", MODEL, "--save", self.work / "o",
                   "--algorithm", "awq")
        self.fails(2, "Try aqhost eval --help.", "eval", "--model", MODEL)
        self.fails(2, "whole number", "--model", MODEL, "--nsamples", "ten")
        self.fails(2, "--seed -1: expected 0 to", "--model", MODEL, "--save", self.work / "o",
                   "--calib", CALIB, "--seed", -1)
        for command in (("eval", "--text", EVAL), ("--algorithm", "rtn", "--save", self.work / "o")):
            self.fails(2, '--dtype "half": expected auto, float32 or bfloat16', *command, "--model", MODEL,
                       "--dtype", "half")
        self.fails(2, "--log-level", "inspect", "--model", MODEL, "--log-level", "loud")
        self.fails(2, "--to: expected gguf", "convert", MODEL, "--out", self.work / "m.gguf")
        self.fails(2, '--to "gptq": expected gguf', "convert", MODEL, "--to", "gptq", "--out", self.work / "m.gguf")
        self.fails(2, "--out is missing", "convert", MODEL, "--to", "gguf")


class OptionsThatApply(WorkFolder):
    """An option that has no effect is unknown to the command, is refused, or causes a warning."""

    CALIBRATION = {"--calib": CALIB, "--nsamples": 2, "--seqlen": 64, "--random-percent": 25,
                   "--seed": 3, "--memory-limit": 1000, "--dtype": "float32", "--device": "cpu"}

    def test_rounding_to_nearest_warns_about_each_option_of_calibration(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("default: {wq: int4, algorithm: rtn}\n")
        plain = self.work / "plain"
        self.ok("--model", MODEL, "--algorithm", "rtn", "--save", plain)
        for number, (option, value) in enumerate(self.CALIBRATION.items()):
            with self.subTest(option):
                out = self.work / str(number)
                how = ("--algorithm", "rtn") if number % 2 else ("--config", recipe)
                done = aqhost("--model", MODEL, *how, "--save", out, option, value)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn(f"warning: {option} has no effect: every module is rounded to nearest",
                              done.stderr)
                self.assertNotIn("calibrated", done.stdout)
                self.assertEqual(shards(out), shards(plain))
                report = json.loads((out / "quantization_report.json").read_text())
                self.assertNotIn("calibration", report)
        done = aqhost("--model", MODEL, "--algorithm", "rtn", "--save", self.work / "all",
                      *(x for pair in self.CALIBRATION.items() for x in pair), "--balance-experts")
        self.assertIn("--calib, --nsamples, --seqlen, --random-percent, --seed, --balance-experts, "
                      "--dtype, --device, --memory-limit have no effect", done.stderr)

    def test_activations_under_one_scale_are_measured_even_if_weights_are_rounded(self):
        recipe, out = self.work / "r.yaml", self.work / "out"
        recipe.write_text("default: {wq: nvfp4, aq: nvfp4, algorithm: rtn}\n")
        done = aqhost("--model", MODEL, "--config", recipe, "--calib", CALIB, "--nsamples", 2,
                      "--seqlen", 64, "--save", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("no effect", done.stderr)
        self.assertIn("calibrated on", done.stdout)

    def test_only_quantize_has_the_options_of_its_run(self):
        commands = {"inspect": ("--model", MODEL), "plan": ("--model", MODEL),
                    "eval": ("--model", MODEL, "--text", EVAL), "compare": (MODEL,),
                    "convert": (MODEL, "--to", "gguf", "--out", self.work / "m.gguf"),
                    "tokenize": ("--model", MODEL, "--jsonl", "-"), "verify": ("--model", MODEL),
                    "plugins": ()}
        has = {"plan": {"--nsamples", "--seqlen", "--device"}, "eval": {"--dtype", "--device"},
               "compare": {"--device"}}
        for command, arguments in commands.items():
            for option, value in self.CALIBRATION.items():
                if option in has.get(command, ()):
                    continue
                with self.subTest(command, option=option):
                    self.fails(2, f"unknown option {option}", command, *arguments, option, value,
                               plugins=None)

    def test_an_option_of_all_commands_is_unknown_to_those_that_ignore_it(self):
        for command in ("inspect", "plan", "convert", "report", "status", "tokenize", "verify", "plugins"):
            self.fails(2, "unknown option --threads", command, "--threads", 1, plugins=None)
        self.fails(2, "unknown option --json", "tokenize", "--json", plugins=None)

    def test_an_option_has_one_meaning_and_its_old_name_leads_to_the_new_one(self):
        self.fails(2, "--export is now called --folder", "compare", "--export", MODEL)
        self.ok("compare", "--folder", MODEL)

    def test_compare_without_text_warns_about_options_for_text(self):
        for option, value in (("--window", 64), ("--device", "cpu"), ("--threads", 1)):
            done = aqhost("compare", MODEL, option, value)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"warning: {option} has no effect: without --text nothing is run",
                          done.stderr)
        self.fails(2, "--against needs --text", "compare", MODEL, "--against", MODEL)

    def test_an_unknown_device_is_refused_even_if_nothing_is_run(self):
        for command in (("--algorithm", "rtn", "--model", MODEL, "--save", self.work / "o"),
                        ("eval", "--model", MODEL, "--text", EVAL), ("compare", MODEL)):
            self.fails(2, '--device "gpu": expected auto, cpu, cuda or cuda:NUMBER', *command,
                       "--device", "gpu")

    def test_verify_takes_the_model_plugin_to_use(self):
        out = self.work / "out"
        self.ok("--model", MODEL, "--algorithm", "rtn", "--save", out)
        self.ok("verify", "--model", out, "--model-type", "olmoe")
        self.fails(1, "no/such", "verify", "--model", out, "--model-type", "no/such")


class CalibrationFiles(WorkFolder):
    def test_every_document_is_used_and_messages_say_how(self):
        text = CALIB.read_text()
        documents = [text[at:at + 600] for at in range(0, 499 * 600, 600)] + [text[-40000:]]
        lines = self.work / "chats"
        lines.write_text("".join(json.dumps({"messages": [{"role": "user", "content": d}]}) + "\n"
                                 for d in documents))
        out = self.work / "out"
        done = aqhost("--model", MODEL, "--calib", lines, "--nsamples", 4, "--seqlen", 512, "--save",
                      out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("the 500 documents have", done.stderr)
        self.assertIn("joined with token 0 in between", done.stderr)
        self.assertIn("the turns of the chats (500 of its documents)", done.stderr)
        report = json.loads((out / "quantization_report.json").read_text())["calibration"]["files"][0]
        self.assertEqual((report["documents"], report["separator"]), (500, 0))
        self.assertGreaterEqual(report["available"] * 512, report["tokens"] - 512)
        result = json.loads(self.ok("eval", "--model", MODEL, "--text", lines, "--json"))
        self.assertEqual(result["tokens"], report["available"] * 511)

    def test_chats_are_read_as_the_chat_template_of_the_model_writes_them(self):
        model = self.work / "model"
        shutil.copytree(MODEL, model)
        (model / "chat_template.jinja").write_text(
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m['content'] | trim }}\n{% endfor %}")
        said = EVAL.read_text()[:3000]
        chat = [{"role": "user", "content": said + "\n"}, {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}]
        files = {"chat.jsonl": json.dumps({"messages": chat}) + "\n", "array.json": json.dumps([{"messages": chat}], indent=1),
                 "sharegpt.json": json.dumps({"conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": "Yes"}]}),
                 "text.txt": f"<|user|>\n{said.strip()}\n<|assistant|>\nYes\n"}
        results = []
        for name, text in files.items():
            (self.work / name).write_text(text)
            done = aqhost("eval", "--model", model, "--text", self.work / name, "--window", 16, "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            results.append(json.loads(done.stdout))
        self.assertEqual(results[:-1], results[-1:] * 3)
        self.fails(1, "chat_template.jinja, line 1: the filter shout is not supported", "eval", "--model",
                   self.broken_template(model), "--text", self.work / "chat.jsonl")

    @staticmethod
    def broken_template(model):
        (model / "chat_template.jinja").write_text("{{ messages[0].content | shout }}")
        return model

    def test_one_window_is_called_a_window(self):
        text = self.work / "text.txt"
        text.write_text("In the beginning God created the heaven and the earth.\n" * 4)
        self.assertRegex(self.ok("eval", "--model", MODEL, "--text", text, "--window", 40),
                         r"perplexity [\d.]+ over 39 tokens \(1 window of 40\)\n")

    def test_files_that_are_not_text_are_refused_with_advice(self):
        packed = self.work / "text.jsonl.gz"
        packed.write_bytes(gzip.compress(b'{"text": "In the beginning"}\n'))
        for command in (("--calib", packed, "--save", self.work / "out"), ("eval", "--text", packed)):
            arguments = command if command[0] != "eval" else command[1:]
            first = ("eval",) if command[0] == "eval" else ()
            self.fails(1, "text.jsonl.gz: is compressed by gzip; expected text, JSON lines or token "
                       "ids: unpack it first", *first, "--model", MODEL, *arguments)
        self.assertFalse((self.work / "out").exists())

    def test_a_pipe_is_read(self):
        text = EVAL.read_text()[:20000]
        file = self.work / "text"
        file.write_text(text)
        command = [str(AQHOST), "eval", "--model", str(MODEL), "--window", "64", "--json", "--text"]
        piped = subprocess.run(command + ["/dev/stdin"], input=text, capture_output=True, text=True)
        self.assertEqual(piped.returncode, 0, piped.stderr)
        self.assertEqual(piped.stdout, self.ok(*command[1:], file))

    def test_a_tokenizer_in_another_form_is_named(self):
        model = self.copy_model()
        (model / "tokenizer.json").unlink()
        (model / "tokenizer.model").write_bytes(b"x")
        message = self.fails(1, "only a tokenizer as tokenizer.model (SentencePiece", "--model", model,
                             "--calib", CALIB, "--save", self.work / "out")
        self.assertIn("need no tokenizer, nor does --algorithm rtn", message)
        self.ok("--model", model, "--algorithm", "rtn", "--save", self.work / "out")


class Inspecting(WorkFolder):
    def test_plugins_lists_model_and_format_with_their_paths(self):
        listed = {p["id"]: p for p in json.loads(self.ok("plugins", "--json"))}
        self.assertEqual(listed["olmoe"]["kind"], "model")
        self.assertEqual(listed["int4"]["kind"], "quantizer")
        self.assertTrue(listed["int4"]["path"].endswith("int4.so"))
        headers = (ROOT / "sdk/include/aq/abi.h").read_text()
        version = [re.search(rf"#define AQ_ABI_{part} (\d+)", headers)[1] for part in ("MAJOR", "MINOR")]
        self.assertEqual(listed["int4"]["abi"], ".".join(version))

    def test_plugins_describes_each_format(self):
        formats = {p["id"]: p["format"] for p in json.loads(self.ok("plugins", "--json"))
                   if p["kind"] == "quantizer"}
        self.assertEqual({i: f["bits"] for i, f in formats.items()}, {
            "int2": 2, "int3": 3, "int4": 4, "int5": 5, "int6": 6, "int8": 8, "fp4": 4, "fp6": 6,
            "fp8": 8, "mxfp4": 4, "mxfp6": 6, "mxfp8": 8, "nvfp4": 4, "nf4": 4,
            "q2_k": 2, "q3_k": 3, "q4_k": 4, "q5_k": 5, "q6_k": 6})
        mxfp4 = formats["mxfp4"]
        self.assertEqual((mxfp4["grid"], mxfp4["group_sizes"], mxfp4["scale"]),
                         ("15 values from -6 to 6", ["32"], "E8M0"))
        self.assertEqual(formats["int4"]["grid"], "integers -8 to 7")
        self.assertTrue(formats["nvfp4"]["global_scale"])
        self.assertEqual((formats["int4"]["super_group"], formats["q4_k"]["super_group"]), (0, 256))
        for better, worse in (("int8", "int6"), ("int6", "int5"), ("int5", "int4"), ("int4", "int3"),
                              ("int3", "int2"), ("nvfp4", "mxfp4"), ("mxfp6", "mxfp4"),
                              ("q4_k", "int4"), ("q3_k", "int3"), ("q2_k", "int2")):
            self.assertLess(formats[better]["rms_error"], formats[worse]["rms_error"])
        # an independent computation for blocks of 32 gives a mean squared error of 0.0124
        self.assertAlmostEqual(mxfp4["rms_error"] ** 2, 0.0124, delta=0.001)
        self.assertIn("15 values from -6 to 6", self.ok("plugins"))

    def test_plugins_are_found_beside_the_binary_and_by_the_environment(self):
        def found(**variables):
            with mock.patch.dict(os.environ, variables):
                listed = json.loads(self.ok("plugins", "--json", plugins=None))
            return {p["id"]: pathlib.Path(p["path"]).resolve() for p in listed if "refused" not in p}

        beside = found(AQ_PLUGIN_PATH="")
        self.assertEqual(beside["olmoe"], (BUILD / "plugins/olmoe.so").resolve())
        folders = [self.work / "first", self.work / "second"]
        for folder, name in zip(folders, ("olmoe.so", "int4.so")):
            folder.mkdir()
            shutil.copy(BUILD / "plugins" / name, folder)
        by_environment = found(AQ_PLUGIN_PATH=":".join(map(str, folders)))
        self.assertEqual(by_environment["olmoe"], (folders[0] / "olmoe.so").resolve())
        self.assertEqual(by_environment["int4"], (folders[1] / "int4.so").resolve())
        self.assertEqual(by_environment["int8"], beside["int8"])
        self.fails(1, "no/such/folder", "plugins", plugins="no/such/folder")

    def test_a_refused_plugin_is_named_and_the_others_still_load(self):
        shutil.copy(BUILD / "plugins/olmoe.so", self.work)
        (self.work / "broken.so").write_text("not a library")
        listed = json.loads(self.ok("plugins", "--json", plugins=self.work))
        refused = [p for p in listed if "refused" in p]
        self.assertIn("broken.so", [pathlib.Path(p["path"]).name for p in refused])
        self.assertIn("id \"olmoe\" is taken by", " ".join(p["refused"] for p in refused))
        self.assertIn("olmoe", [p["id"] for p in listed])

    def test_inspect_shows_the_family_and_its_sizes(self):
        shown = json.loads(self.ok("inspect", "--model", MODEL, "--json"))
        expected = {"family": "olmoe", "layers": 3, "experts": 16, "top_k": 4, "hidden_size": 128,
                    "modules": 3 * (4 + 1 + 16 * 3) + 1, "quantized": False}
        self.assertEqual({k: shown[k] for k in expected}, expected)
        self.assertIn("model_type", shown["why"])
        self.assertIn("olmoe", self.ok("inspect", "--model", MODEL))

    def test_plan_says_what_each_module_becomes(self):
        plan = json.loads(self.ok("plan", "--model", MODEL, "--config", RECIPE, "--json"))
        by_name = {m["name"]: m for m in plan["modules"]}
        self.assertEqual(by_name["model.layers.0.mlp.experts.3.up_proj"]["format"], "int4")
        self.assertIsNone(by_name["model.layers.0.mlp.gate"]["format"])
        self.assertIsNone(by_name["lm_head"]["format"])
        self.assertAlmostEqual(plan["bits_per_weight"], 4 + 16 / 128)
        self.assertIn("int4 g128", self.ok("plan", "--model", MODEL, "--config", RECIPE))

    def test_plan_shows_sizes_by_layer_and_which_engines_load_the_export(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("overrides: [{pattern: '*.experts.*.down_proj', group_size: 64}]\n")
        plan = json.loads(self.ok("plan", "--model", MODEL, "--config", recipe, "--json"))
        self.assertEqual([l["layer"] for l in plan["layers"]], [0, 1, 2])
        saved = sum(l["bytes_before"] - l["bytes_after"] for l in plan["layers"])
        self.assertEqual(saved, plan["bytes_before"] - plan["bytes_after"])
        self.assertEqual(set(plan["problems_in"]), {"vllm", "sglang", "transformers", "llamacpp"})
        self.assertIn("the experts of a layer must be of one format", plan["problems_in"]["vllm"][0])
        text = self.ok("plan", "--model", MODEL, "--config", recipe)
        self.assertIn("loads in vLLM 0.33          no", text)
        self.assertIn("  group_size: 128 for all modules in int4 would make it loadable\n", text)
        self.assertIn("group_size: 128", plan["engines"]["vllm"]["remedy"])
        self.assertNotIn("remedy", plan["engines"]["llamacpp"])
        self.assertIn("0-2 each", text)

    def test_plan_is_about_the_container_that_is_asked_for(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("default: {wq: int4}\n")
        for container, loads in (("compressed-tensors", True), ("gptq", False)):
            plan = self.ok("plan", "--model", MODEL, "--config", recipe, "--export", container, "--json")
            self.assertEqual(json.loads(plan)["problems_in"]["transformers"] == [], loads)
            self.assertEqual(json.loads(plan)["problems_in"]["vllm"], [])
        recipe.write_text("default: {wq: mxfp4}\n")
        self.fails(1, "holds symmetric integers of 2, 3, 4 or 8 bits with float16 scales, not mxfp4",
                   "plan", "--model", MODEL, "--config", recipe, "--export", "gptq")
        self.fails(2, '--export "awq": expected', "plan", "--model", MODEL, "--export", "awq")

    def test_a_target_that_will_not_load_the_result_is_refused_before_any_work(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("overrides: [{pattern: '*.experts.*.down_proj', group_size: 64}]\n")
        out = self.work / "out"
        for command in (("plan",), ("--algorithm", "rtn", "--save", out)):
            self.fails(1, "vLLM 0.33 will not load the result", *command, "--model", MODEL,
                       "--config", recipe, "--target", "vllm")
            self.fails(1, "each of 4 GPUs has 32 inputs, which are no whole groups of 128; groups of 32 "
                       "fit", *command, "--model", MODEL, "--target", "vllm", "--tensor-parallel", "4")
        self.fails(2, '--target "vlm", did you mean "vllm"?', "plan", "--model", MODEL, "--target",
                   "vlm")
        done = aqhost("--model", MODEL, "--config", recipe, "--algorithm", "rtn", "--save", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("warning: vLLM 0.33 will not load the result", done.stderr)
        self.assertIn("warning: vLLM 0.33: group_size: 128 for all modules in int4 would make it loadable\n",
                      done.stderr)
        self.assertNotIn("llama.cpp", done.stderr)
        self.assertIn("loads in nothing but aqhost", done.stdout)
        self.ok("--model", MODEL, "--algorithm", "rtn", "--save", self.work / "two", "--target", "vllm")

    def test_tokenize_line_by_line(self):
        cases = json.loads((TESTS / "golden/tokenizer_cases.json").read_text())
        lines = self.work / "lines.jsonl"
        lines.write_text("".join(json.dumps(c["text"]) + "\n" for c in cases))
        out = self.ok("tokenize", "--model", MODEL, "--jsonl", lines, plugins=None)
        self.assertEqual([json.loads(l) for l in out.splitlines()],
                         [c["olmoe-tiny"][0] for c in cases])
        lines.write_text('"a"\n{}\n')
        done = aqhost("tokenize", "--model", MODEL, "--jsonl", lines, plugins=None)
        self.assertEqual(done.returncode, 1)
        self.assertIn("lines.jsonl:2: expected a JSON string, found object", done.stderr)


class Quantizing(WorkFolder):
    def quantize(self, out, *more, model=MODEL):
        return self.ok("--model", model, "--config", RECIPE, "--calib", CALIB, "--save", out, *more)

    def perplexity(self, model):
        return json.loads(self.ok("eval", "--model", model, "--text", EVAL, "--window", 512, "--json"))

    def quick_perplexity(self, model):
        text = self.work / "text"
        text.write_text(EVAL.read_text()[:20000])
        printed = self.ok("eval", "--model", model, "--text", text, "--window", 256, "--json")
        return json.loads(printed)["perplexity"]

    def test_formats_that_only_aqhost_reads_are_marked_and_read_back(self):
        recipe, out = self.work / "recipe.yaml", self.work / "out"
        rows = ["0.self_attn.*: nf4", "1.self_attn.*: fp4", "2.self_attn.*: fp6, element: e3m2",
                "0.mlp.experts.*: mxfp6, element: e3m2", "1.mlp.experts.*: mxfp8, element: e5m2",
                "2.mlp.experts.*: fp8, element: e5m2"]
        recipe.write_text("default: {wq: fp6, group_size: 32}\noverrides:\n" + "".join(
            '  - {pattern: "*.layers.%s", wq: %s}\n' % tuple(r.split(": ", 1)) for r in rows))
        self.ok("--model", MODEL, "--config", recipe, "--algorithm", "rtn", "--save", out)
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        self.assertEqual(config["quant_method"], "alphaquant")
        verified = json.loads(self.ok("verify", "--model", out, "--json"))
        self.assertEqual(verified["formats"], {"nf4": 4, "fp4": 4, "fp6": 4, "mxfp6": 48,
                                               "mxfp8": 48, "fp8": 48})
        self.assertLess(self.quick_perplexity(out), 1.06 * self.quick_perplexity(MODEL))

    def test_scales_of_every_type_are_read_back(self):
        recipe, out = self.work / "recipe.yaml", self.work / "out"
        recipe.write_text(
            "default: {wq: int4, scale_dtype: float16}\noverrides:\n"
            '  - {pattern: "*.0.self_attn.*", wq: fp8, scale_dtype: bfloat16}\n'
            '  - {pattern: "*.1.self_attn.*", wq: fp6, group_size: 32, scale_dtype: float32}\n'
            '  - {pattern: "*.2.self_attn.*", wq: mxfp4}\n')
        self.ok("--model", MODEL, "--config", recipe, "--algorithm", "rtn", "--save", out)
        self.ok("verify", "--model", out)
        config = out / "config.json"  # other programs do not write the types
        config.write_text(re.sub(r'"scale_dtype": "torch.(float16|bfloat16|float32)"',
                                 '"scale_dtype": null', config.read_text()))
        verified = json.loads(self.ok("verify", "--model", out, "--json"))
        self.assertEqual(verified["formats"], {"int4": 144, "fp8": 4, "fp6": 4, "mxfp4": 4})

    def test_rounded_activations_count_in_eval(self):
        perplexities = {}
        for aq in ("bf16", "int8", "fp8", "mxfp8", "mxfp6", "mxfp4"):
            recipe, out = self.work / "recipe.yaml", self.work / aq
            recipe.write_text("default: {wq: int8, group_size: -1, aq: %s}\n" % aq)
            self.ok("--model", MODEL, "--config", recipe, "--algorithm", "rtn", "--save", out)
            perplexities[aq] = self.quick_perplexity(out)
        for aq in ("int8", "fp8", "mxfp8", "mxfp6"):
            self.assertNotEqual(perplexities[aq], perplexities["bf16"])
            self.assertAlmostEqual(perplexities[aq], perplexities["bf16"], delta=0.6, msg=aq)
        self.assertGreater(perplexities["mxfp4"], perplexities["mxfp6"] + 0.3)
        recipe.write_text("default: {wq: nvfp4, aq: nvfp4}\n")
        self.fails(1, "measured on calibration text: give --calib FILE", "--model", MODEL,
                   "--config", recipe, "--algorithm", "rtn", "--save", self.work / "nvfp4")
        self.ok("--model", MODEL, "--config", recipe, "--calib", CALIB, "--nsamples", 8,
                "--save", self.work / "nvfp4")
        self.assertLess(self.quick_perplexity(self.work / "nvfp4"), 1.2 * perplexities["bf16"])
        recipe.write_text("default: {wq: int8, group_size: -1, aq: fp8}\n")
        self.fails(1, "GPTQ's checkpoint format has no rounded activations", "--model", MODEL,
                   "--config", recipe, "--export", "gptq", "--save", self.work / "gptq")

    def test_gptq_int4_has_the_expected_perplexity(self):
        out = self.work / "out"
        text = self.quantize(out, "--nsamples", 128, "--seqlen", 512)
        self.assertIn(str(out), text)
        original, quantized = self.perplexity(MODEL), self.perplexity(out)
        self.assertEqual(original["tokens"], 127 * 511)
        self.assertAlmostEqual(original["perplexity"], 19.822492, delta=1e-3 * 19.82)
        self.assertLess(quantized["perplexity"], 21.2)
        rounded = self.work / "rtn"
        self.ok("--model", MODEL, "--config", RECIPE, "--algorithm", "rtn", "--save", rounded)
        self.assertLess(quantized["perplexity"], self.perplexity(rounded)["perplexity"])

        verified = json.loads(self.ok("verify", "--model", out, "--json"))
        self.assertEqual(verified["formats"], {"int4": 3 * (4 + 16 * 3)})
        shown = json.loads(self.ok("inspect", "--model", out, "--json"))
        self.assertTrue(shown["quantized"])

        report = json.loads((out / "quantization_report.json").read_text())
        module = report["modules"]["model.layers.1.mlp.experts.7.down_proj"]
        self.assertEqual((module["format"], module["group_size"], module["algorithm"]),
                         ("int4", 128, "gptq"))
        self.assertLess(module["loss"], module["rtn_loss"])
        self.assertEqual(len(report["experts"]), 3 * 16)
        for layer in range(3):
            mine = [e for e in report["experts"] if e["layer"] == layer]
            self.assertEqual(sum(e["tokens"] for e in mine), 128 * 512 * 4)
        totals = report["totals"]
        self.assertAlmostEqual(totals["bits_per_weight"], 4.125)
        self.assertGreater(totals["peak_memory_bytes"], 10_000_000)
        self.assertGreater(totals["seconds"]["solve"], 0)

        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            self.assertEqual((out / name).read_bytes(), (MODEL / name).read_bytes())
        config = json.loads((out / "config.json").read_text())
        quantization = config.pop("quantization_config")
        self.assertEqual(config, json.loads((MODEL / "config.json").read_text()))
        self.assertEqual(quantization["quant_method"], "compressed-tensors")
        self.assertIn("model.layers.0.mlp.gate", quantization["ignore"])
        # tensors that are not quantized are copied to the byte; packed tensors have the format's shape
        before, old = read_safetensors(MODEL / "model.safetensors")
        for name in ("model.embed_tokens.weight", "model.layers.2.mlp.gate.weight"):
            header, data = read_safetensors(shard_of(out, name))
            (a, b), (c, d) = header[name]["data_offsets"], before[name]["data_offsets"]
            self.assertEqual(data[a:b], old[c:d])
        name = "model.layers.0.self_attn.q_proj.weight_packed"
        self.assertEqual(read_safetensors(shard_of(out, name))[0][name]["shape"], [128, 16])

    def test_same_seed_same_bytes_and_another_seed_others(self):
        few = ("--nsamples", 6, "--seqlen", 64)
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            self.quantize(self.work / name, *few, "--seed", seed)
        a, b, c = (shards(self.work / n) for n in "abc")
        self.assertEqual(a, b)
        self.assertNotEqual(a, c)

    def test_shards_are_written_and_read(self):
        out = self.work / "out"
        self.quantize(out, "--nsamples", 4, "--seqlen", 64, "--max-shard-size", 1)
        self.assertGreater(len(list(out.glob("model-*-of-*.safetensors"))), 2)
        self.assertIn("ok:", self.ok("verify", "--model", out))

    def test_few_tokens_starve_experts_and_a_warning_says_so(self):
        out = self.work / "out"
        done = aqhost("--model", MODEL, "--config", RECIPE, "--calib", CALIB, "--save", out,
                      "--nsamples", 1, "--seqlen", 16)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("experts saw fewer tokens than they need", done.stderr)
        report = json.loads((out / "quantization_report.json").read_text())
        self.assertTrue(any(e["starved"] and e["tokens"] == 0 for e in report["experts"]))
        self.assertLess(self.quick_perplexity(out), 40)

    def test_without_text_gptq_says_what_it_needs(self):
        out = self.work / "out"
        self.fails(1, "GPTQ needs calibration text", "--model", MODEL, "--config", RECIPE,
                   "--save", out)
        self.assertFalse(out.exists())

    def test_an_existing_folder_is_kept_without_overwrite(self):
        out = self.work / "out"
        save = ("--model", MODEL, "--config", RECIPE, "--algorithm", "rtn", "--save", out)
        self.ok(*save)
        (out / "precious").write_text("x")
        self.fails(1, "already exists", *save)
        self.assertTrue((out / "precious").exists())
        self.ok(*save, "--overwrite")
        self.assertTrue((out / "precious").exists())  # files that no run wrote stay
        self.assertTrue((out / "model.safetensors.index.json").exists())

    def test_a_quantized_checkpoint_is_not_quantized_again(self):
        out = self.work / "out"
        self.ok("--model", MODEL, "--algorithm", "rtn", "--save", out)
        self.fails(1, "is quantized already", "--model", out, "--algorithm", "rtn", "--save",
                   self.work / "again")

    def test_an_interrupt_before_the_first_layer_leaves_nothing(self):
        out = self.work / "out"
        process = subprocess.Popen(
            [str(AQHOST), "--plugin-dir", str(BUILD / "plugins"), "--model", str(MODEL), "--config",
             str(RECIPE), "--calib", str(CALIB), "--nsamples", "200", "--seqlen", "512", "--save",
             str(out)], stderr=subprocess.PIPE, text=True)
        while not list(self.work.iterdir()) and process.poll() is None:  # until the run writes a file
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, errors)
        self.assertIn("interrupted, nothing was written", errors)
        self.assertEqual(list(self.work.iterdir()), [])


class BadInput(WorkFolder):
    """Bad input ends with status 1 and one sentence that names file and field; nothing is written."""

    def refused(self, message, model, *more):
        out = self.work / "out"
        self.fails(1, message, "--model", model, "--algorithm", "rtn", "--save", out, *more)
        self.assertFalse((self.work / "out").exists())

    def change_header(self, change):
        model = self.copy_model()
        header, data = read_safetensors(model / "model.safetensors")
        change(header)
        write_safetensors(model / "model.safetensors", header, data)
        return model

    def test_missing_model_and_config(self):
        self.refused("no/such/model", "no/such/model")
        model = self.copy_model()
        (model / "config.json").unlink()
        self.refused("config.json", model)

    def test_truncated_file(self):
        model = self.copy_model()
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        self.refused("model.safetensors", model)

    def test_offsets_past_the_end_and_overlapping(self):
        def past(header):
            header["lm_head.weight"]["data_offsets"] = [1 << 40, (1 << 40) + 2048 * 128 * 2]
        self.refused("lm_head.weight", self.change_header(past))
        shutil.rmtree(self.work / "model")

        def overlap(header):
            header["lm_head.weight"]["data_offsets"] = header["model.embed_tokens.weight"]["data_offsets"]
        self.refused("tensors lm_head.weight and model.embed_tokens.weight overlap",
                     self.change_header(overlap))

    def test_a_config_with_millions_of_layers_or_experts_is_refused_before_memory_is_asked_for(self):
        for change, message in (
                ({"num_hidden_layers": 2_000_000_000}, "num_hidden_layers is 2000000000, expected 1 to 4096"),
                ({"num_experts": 2_000_000_000}, "num_experts is 2000000000, expected 1 to 4096"),
                ({"num_hidden_layers": 4096, "num_experts": 4096}, "16777216 experts together")):
            with self.subTest(change=change):
                model = self.copy_model()
                config = json.loads((model / "config.json").read_text())
                (model / "config.json").write_text(json.dumps({**config, **change}))
                self.refused(message, model)
                shutil.rmtree(model)

    def test_shape_that_disagrees_with_config(self):
        model = self.copy_model()
        config = json.loads((model / "config.json").read_text())
        config["intermediate_size"] = 256
        (model / "config.json").write_text(json.dumps(config))
        self.refused("experts.0", model)

    def test_nan_weight(self):
        model = self.copy_model()
        header, data = read_safetensors(model / "model.safetensors")
        begin = header["model.layers.1.self_attn.k_proj.weight"]["data_offsets"][0]
        data = data[:begin + 20] + b"\xc0\x7f" + data[begin + 22:]
        write_safetensors(model / "model.safetensors", header, data)
        self.refused("model.layers.1.self_attn.k_proj.weight", model)

    def test_tensor_of_another_name(self):
        def rename(header):
            header["model.layers.0.mystery.weight"] = header.pop("model.layers.0.mlp.gate.weight")
        model = self.change_header(rename)
        self.refused("tensor model.layers.0.mlp.gate.weight is missing", model)
        self.fails(1, "model.layers.0.mystery.weight", "inspect", "--model", model)

    def test_tensors_that_the_model_does_not_know(self):
        model = self.copy_model()
        header, data = read_safetensors(model / "model.safetensors")
        for i in range(5):
            header[f"mtp.{i}.weight"] = {"dtype": "F32", "shape": [2],
                                         "data_offsets": [len(data), len(data) + 8]}
            data += b"\xff" * 8
        write_safetensors(model / "model.safetensors", header, data)
        names = [f"mtp.{i}.weight" for i in range(5)]
        message = "5 tensors that the model does not know: mtp.0.weight, mtp.1.weight, mtp.2.weight and 2 more"
        out = self.work / "out"
        for command in (["inspect", "--model", model], ["plan", "--model", model],
                        ["--model", model, "--algorithm", "rtn", "--save", out],
                        ["verify", "--model", out]):
            with self.subTest(command=command[0]):
                self.fails(1, message, *command, "--strict")
                done = aqhost(*command)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(done.stderr.count(message), 1)
                if command[0] in ("inspect", "plan", "verify"):
                    self.assertEqual(json.loads(self.ok(*command, "--json"))["extra_tensors"], names)
        for command in ("inspect", "plan"):
            self.assertIn("mtp.4.weight", self.ok(command, "--model", model))

    def test_quantization_config_that_is_null_or_empty(self):
        for nothing in (None, {}):
            model = self.copy_model()
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps({**config, "quantization_config": nothing}))
            self.assertIs(json.loads(self.ok("inspect", "--model", model, "--json"))["quantized"], False)
            self.ok("plan", "--model", model)
            shutil.rmtree(model)

    def test_missing_tensor(self):
        model = self.copy_model()
        header, data = read_safetensors(model / "model.safetensors")
        begin, end = header.pop("model.layers.0.mlp.gate.weight")["data_offsets"]
        for name, entry in header.items():
            if name != "__metadata__" and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
        write_safetensors(model / "model.safetensors", header, data[:begin] + data[end:])
        self.refused("tensor model.layers.0.mlp.gate.weight is missing", model)

    def test_missing_shard(self):
        model = self.work / "model"
        shutil.copytree(TESTS / "models/mixtral-tiny", model)
        (model / "model-00002-of-00003.safetensors").unlink()
        self.refused("model-00002-of-00003.safetensors", model)

    def test_unknown_recipe_key_with_line_and_nearest_name(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("default:\n  wq: int4\n  groupsize: 64\n")
        self.refused("r.yaml:3", MODEL, "--config", recipe)
        message = self.fails(1, "groupsize", "plan", "--model", MODEL, "--config", recipe)
        self.assertIn("group_size", message)

    def test_unknown_format_names_the_line_and_the_nearest(self):
        recipe = self.work / "r.yaml"
        recipe.write_text("default:\n  wq: itn4\n")
        self.refused("r.yaml:2", MODEL, "--config", recipe)

    def test_unknown_model(self):
        model = self.copy_model()
        config = json.loads((model / "config.json").read_text())
        config.update(model_type="mamba", architectures=["MambaForCausalLM"])
        (model / "config.json").write_text(json.dumps(config))
        self.refused("mamba", model)

    def test_text_that_is_not_utf8_or_too_short(self):
        text = self.work / "text.txt"
        text.write_bytes(b"abc \xff def")
        self.fails(1, "text.txt", "--model", MODEL, "--calib", text, "--save", self.work / "out")
        text.write_text("short")
        self.fails(1, "tokens", "--model", MODEL, "--calib", text, "--save", self.work / "out")

    def test_damaged_export_is_found_by_verify(self):
        out = self.work / "out"
        self.ok("--model", MODEL, "--algorithm", "rtn", "--save", out)
        name = "model.layers.0.self_attn.q_proj.weight_scale"
        shard = shard_of(out, name)
        header, data = read_safetensors(shard)
        begin = header[name]["data_offsets"][0]
        write_safetensors(shard, header,
                          data[:begin] + b"\x80\x7f" + data[begin + 2:])  # inf
        self.fails(1, "model.layers.0.self_attn.q_proj", "verify", "--model", out)


if __name__ == "__main__":
    unittest.main()
