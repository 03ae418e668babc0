"""Tests of the model card that every export has."""
import json
import os
import shutil
import unittest

from test_cli import CALIB, MODEL, RECIPE, WorkFolder


class ModelCard(WorkFolder):
    def card(self, *arguments, model=MODEL):
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        self.ok("--model", model, *arguments, "--save", out)
        self.assertIn("README.md", json.loads((out / "quantization_report.json").read_text())["files"])
        return (out / "README.md").read_text()

    def model(self, **files):
        folder = self.work / "MyMoE"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(MODEL, folder)
        for name, text in files.items():
            (folder / name.replace("_md", ".md")).write_text(text)
        return folder

    def test_the_card_says_what_was_done_and_how_it_is_repeated(self):
        arguments = ("--config", RECIPE, "--calib", CALIB, "--nsamples", 8, "--seqlen", 64)
        card = self.card(*arguments)
        self.assertTrue(card.startswith("---\nbase_model: olmoe-tiny\nbase_model_relation: quantized\n"
                                        "library_name: transformers\npipeline_tag: text-generation\ntags:\n"), card)
        report = json.loads((self.work / "out/quantization_report.json").read_text())
        totals = report["totals"]
        self.assertIn(f"They take {totals['bits_per_weight']:.3f} bits each", card)
        self.assertIn(f"add up to {100 * totals['loss'] / totals['rtn_loss']:.1f} % of those", card)
        self.assertIn(RECIPE.read_text(), card)
        self.assertIn("aqhost quantize --model olmoe-tiny --config olmoe_int4.yaml --calib kjv_calib.txt "
                      "--nsamples 8 --seqlen 64 --save OUT\n", card)
        self.assertNotIn(str(self.work), card)
        self.assertNotIn("license", card)
        self.assertEqual(self.card(*arguments), card)

    def test_the_card_says_which_engines_load_the_export_and_why_others_do_not(self):
        card = self.card("--algorithm", "rtn")
        for command in ("vllm serve MODEL", "sglang.launch_server --model-path MODEL", "llama-server -m model.gguf"):
            self.assertIn(command, card)
        recipe = self.work / "int3.yaml"
        recipe.write_text("default: {wq: nf4, group_size: 64, algorithm: rtn}\n")
        card = self.card("--config", recipe)
        plan = json.loads(self.ok("plan", "--model", MODEL, "--config", recipe, "--json"))
        refused = [engine for engine in plan["engines"].values() if not engine["loads"]]
        self.assertTrue(refused)
        for engine in refused:
            self.assertRegex(card, rf"\*\*{engine['name']} [^*]*\*\* does not load it:\n\n- ")
        self.assertNotIn("vllm serve", card)
        self.assertIn("rounded to nearest", card)

    def test_the_base_model_and_its_licence_come_from_the_original(self):
        model = self.model(README_md="---\nlicense: apache-2.0\nlicense_name: 'A: B'\n---\nlicense: mit\n")
        config = json.loads((model / "config.json").read_text())
        card = self.card("--algorithm", "rtn", model=model)
        self.assertIn("base_model: MyMoE\n", card)
        self.assertIn('license: apache-2.0\nlicense_name: "A: B"\nlibrary_name', card)
        self.assertNotIn("license: mit", card)
        for name, expected in (("allenai/OLMoE", "allenai/OLMoE"), ("/home/me/OLMoE", "MyMoE")):
            (model / "config.json").write_text(json.dumps({**config, "_name_or_path": name}))
            self.assertIn(f"base_model: {expected}\n", self.card("--algorithm", "rtn", model=model))

    def test_bytes_of_file_names_that_are_not_utf_8_are_replaced(self):
        model = self.work / os.fsdecode(b"caf\xe9-moe")
        text = self.work / os.fsdecode(b"te\xffte.txt")
        shutil.copytree(MODEL, model)
        shutil.copy(CALIB, text)
        shutil.copy(RECIPE, self.work / os.fsdecode(b"\xe9.yaml"))
        card = self.card("--config", self.work / os.fsdecode(b"\xe9.yaml"), "--calib", text, "--nsamples", 2,
                         "--seqlen", 64, model=model)
        self.assertIn("of text (te\ufffdte.txt)", card)
        self.assertIn("--config '\ufffd.yaml' --calib 'te\ufffdte.txt'", card)
        self.assertIn('base_model: "caf\ufffd-moe"\n', card)
        self.assertIn("# caf\ufffd-moe, quantized", card)

    def test_a_card_of_the_user_stays(self):
        out = self.work / "out"
        self.card("--algorithm", "rtn")
        (out / "README.md").write_text("mine")
        self.ok("--model", MODEL, "--algorithm", "rtn", "--save", out, "--overwrite")
        self.assertEqual((out / "README.md").read_text(), "mine")


if __name__ == "__main__":
    unittest.main()
