"""Tests of the page that shows the report of an export: what the program writes, and what a browser
makes of it. The browser is Debian's chromium; without it, its tests are skipped.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import unittest

from test_cli import AQHOST, BUILD, CALIB, EVAL, MODEL, RECIPE, WorkFolder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (320, 400, 768, 1400)
# what a frame tells the page around it: its width, that of its content, and its scripts
PROBE = """<script>
addEventListener('load', () => parent.postMessage([innerWidth, document.documentElement.scrollWidth,
  document.scripts.length, document.querySelectorAll('svg').length,
  [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width < 100).length], '*'))
</script>"""


def quantize(model, out, *options, calibrate=True):
    calibration = ("--calib", CALIB, "--nsamples", 4, "--seqlen", 128) if calibrate else ("--algorithm", "rtn")
    command = [AQHOST, "--plugin-dir", BUILD / "plugins", "--model", model, "--save", out, *calibration, *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def large_report(report, layers, experts):
    """Returns a report on a model with this number of layers and experts, made of that on a small one."""
    module = next(m for m in report["modules"].values() if m.get("expert") == 0)
    large = dict(report, modules={}, experts=[], layers=[])
    for layer in range(layers):
        large["layers"].append({"layer": layer, "seconds": {"calibrate": 11.5, "solve": 16.25, "write": 0.5}})
        for expert in range(experts):
            tokens = 1 + (layer * 7919 + expert * 104729) % 4096
            starved = tokens < 256
            large["experts"].append({"layer": layer, "expert": expert, "tokens": tokens, "weight": tokens / 2,
                                     "starved": starved, "needed": 256})
            for part in ("gate_proj", "up_proj", "down_proj"):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{part}"
                large["modules"][name] = dict(module, layer=layer, expert=expert, starved=starved,
                                              loss=(tokens % 97 + 1) * module["rtn_loss"] / 100)
    return large


class Pages(WorkFolder):
    def setUp(self):
        super().setUp()
        self.out = self.work / "out"

    def page_of(self, *arguments):
        page = self.work / "page.html"
        self.ok("report", *arguments, "--out", page, plugins=None)
        return page.read_text()


class Page(Pages):
    def test_a_run_writes_the_page_that_the_command_makes(self):
        quantize(MODEL, self.out, "--config", RECIPE)
        page = (self.out / "report.html").read_text()
        self.assertEqual(self.page_of(self.out), page)
        report = json.loads((self.out / "quantization_report.json").read_text())
        self.assertIn("report.html", report["files"])
        self.assertIn(f"aqhost quantized {MODEL}, a model of family olmoe", page)
        self.assertIn(RECIPE.read_text().splitlines()[0], page)
        self.assertEqual({p.suffix for p in self.out.iterdir()}, {".html", ".json", ".md", ".safetensors"})
        self.assertIn("ok: olmoe", self.ok("verify", "--model", self.out))
        for key in ("loss", "rtn_loss", "layer"):
            self.assertTrue(all(key in m for m in report["modules"].values()))
        self.assertEqual(set(report["totals"]["memory"]), set(report["totals"]["seconds"]) - {"total"})
        self.assertEqual(max(report["totals"]["memory"].values()), report["totals"]["peak_memory_bytes"])
        for engine in ("vLLM", "SGLang", "transformers", "llama.cpp"):
            self.assertIn(engine, {e["name"] for e in report["engines"]})
        quantize(MODEL, self.out, "--overwrite", calibrate=False)  # it replaces the page
        self.assertIn("No loss is known.", (self.out / "report.html").read_text())

    def test_exports_in_other_containers_have_a_page(self):
        for container in ("gptq", "gguf"):
            with self.subTest(container):
                out = self.work / container
                recipe = self.work / "r.yaml"
                recipe.write_text("default: {wq: int4, group_size: 32}\n")
                quantize(MODEL, out, "--config", recipe, "--export", container, calibrate=False)
                self.assertEqual(self.page_of(out), (out / "report.html").read_text())

    def test_what_compare_has_measured_is_shown(self):
        other, measured = self.work / "other", self.work / "measured.json"
        quantize(MODEL, self.out)
        quantize(MODEL, other, calibrate=False)
        measured.write_text(self.ok("compare", self.out, other, "--against", MODEL, "--text", EVAL,
                                    "--window", 128, "--json"))
        rows = json.loads(measured.read_text())
        page = self.page_of(other, self.out, "--compare", measured)
        for row in rows[1:]:
            self.assertIn(f"<td>{row['perplexity']:.4f}</td><td>{rows[0]['perplexity']:.4f}</td>", page)
            self.assertIn(f"<td>{row['kl_divergence']:.5f}</td>", page)
        self.assertIn(f"Measured on {EVAL}, in windows of 128 tokens.", page)
        self.assertIn("Error of the hidden states behind each layer.", page)
        told = json.loads(self.ok("report", self.out, "--compare", measured, "--json", plugins=None))
        self.assertEqual(told, {"file": str(self.out / "report.html"),
                                "bytes": (self.out / "report.html").stat().st_size})
        measured.write_text(json.dumps(rows[:2]))  # without the other export
        self.fails(1, f"measured.json: says nothing about {other}", "report", other, "--compare", measured,
                   plugins=None)

    def test_wrong_use_is_refused_and_nothing_of_the_user_is_replaced(self):
        self.fails(2, "no folder is given", "report", plugins=None)
        self.fails(2, "--out is missing", "report", "a", "b", plugins=None)
        self.fails(1, "is no export of aqhost (it has no quantization_report.json)", "report", MODEL, plugins=None)
        quantize(MODEL, self.out, calibrate=False)
        mine = self.work / "notes.html"
        mine.write_text("<p>mine")
        self.fails(1, "notes.html: exists and is no report of aqhost", "report", self.out, "--out", mine,
                   plugins=None)
        self.assertEqual(mine.read_text(), "<p>mine")
        report = self.out / "quantization_report.json"
        old = json.loads(report.read_text())
        del old["run"]
        report.write_text(json.dumps(old))
        self.fails(1, 'quantization_report.json: has no "run"', "report", self.out, plugins=None)


@unittest.skipUnless(CHROMIUM, "chromium is not installed")
class Browser(Pages):
    """Opens pages in frames of several widths."""

    def browse(self, page, *options):
        """Runs chromium on a page and returns (document, messages)."""
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.work}/profile",
                   "--enable-logging=stderr", "--virtual-time-budget=20000", *options, f"file://{page}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400,
                              env=dict(os.environ, HOME=str(self.work)))
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout, done.stderr

    def check(self, text, pictures):
        """Checks that nothing of the page is wider than a frame, and that no script of its own runs."""
        copy, around = self.work / "copy.html", self.work / "around.html"
        copy.write_text(text.replace("</body>", PROBE + "</body>"))
        frames = "".join(f'<iframe src="copy.html" style="width:{w}px;height:900px;border:0"></iframe>'
                         for w in WIDTHS)
        around.write_text(f"<!DOCTYPE html><body style='width:3200px'>{frames}<script>"
                          "addEventListener('message', e => document.body.append('[' + e.data + ']'))</script>")
        document, messages = self.browse(around, "--dump-dom")
        self.assertNotIn("CONSOLE", messages)
        told = sorted(tuple(map(int, row.split(","))) for row in re.findall(r"\[([\d,]+)\]", document))
        self.assertEqual([row[0] for row in told], list(WIDTHS), document[-400:])
        for inner, content, scripts, svgs, narrow in told:
            self.assertLessEqual(content, inner)
            self.assertEqual((scripts, svgs, narrow), (1, pictures, 0), inner)

    def test_pages_fit_every_width_and_run_no_script(self):
        model = self.work / "<script>alert(1)<" / "script>"  # <script>alert(1)</script>
        shutil.copytree(MODEL, model)
        quantize(model, self.out)
        text = (self.out / "report.html").read_text()
        self.assertIn("&lt;script&gt;alert(1)&lt;/script&gt;", text)
        self.check(text, 6)
        other = self.work / "other"
        quantize(MODEL, other, calibrate=False)
        self.check(self.page_of(self.out, other), 6 + 3)

    def test_a_large_model_has_a_page_of_less_than_2_mb_that_can_be_printed(self):
        quantize(MODEL, self.out)
        report = self.out / "quantization_report.json"
        report.write_text(json.dumps(large_report(json.loads(report.read_text()), 60, 256)))
        text = self.page_of(self.out)
        self.assertLess(len(text.encode()), 2_000_000)
        sections = {s: len(b) for s, b in re.findall(r'<section id="(\w+)">(.*?)</section>', text, flags=re.S)}
        self.assertLess(max(sections.values()), 1_200_000, sections)
        self.check(text, 6)
        pdf = self.work / "page.pdf"
        self.browse(self.work / "page.html", f"--print-to-pdf={pdf}")
        self.assertTrue(pdf.read_bytes().startswith(b"%PDF"))


if __name__ == "__main__":
    unittest.main()
