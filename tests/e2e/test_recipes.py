"""Tests of the recipes in configs/: each quantizes the small model of its family.

ctest runs this file with AQ_BUILD set to the build folder. It needs only Python's standard library.
"""
import json
import re
import shutil
import unittest

from test_cli import CALIB, EVAL, ROOT, TESTS, WorkFolder, read_safetensors, write_safetensors

CONFIGS = ROOT / "configs"
ATTENTION = {"self_attn.q_proj": "int4 128", "self_attn.k_proj": "int4 128",
             "self_attn.v_proj": "int4 128", "self_attn.o_proj": "int4 128"}
LAYER_1 = {  # {recipe: (its model, the formats of some modules of layer 1)}
    "olmoe_int4.yaml": ("olmoe", {**ATTENTION, "mlp.experts.5.up_proj": "int4 128", "mlp.gate": None}),
    "gptq_example.json": ("olmoe", {**ATTENTION, "mlp.experts.5.up_proj": "int4 128"}),
    "gptq_olmoe_mixed.json": ("olmoe", {
        "self_attn.q_proj": "mxfp6 32", "self_attn.k_proj": "mxfp6 32", "self_attn.v_proj": "mxfp6 32",
        "self_attn.o_proj": "int4 128", "mlp.experts.5.down_proj": "mxfp4 32", "mlp.gate": None}),
    "gptq_mixed_precision.json": ("deepseek-moe", {**ATTENTION, "mlp.experts.5.up_proj": "int4 128"}),
    "olmoe.yaml": ("olmoe", {**ATTENTION, "mlp.experts.5.down_proj": "mxfp4 32", "mlp.gate": None}),
    "qwen2_moe.yaml": ("qwen2-moe", {
        **ATTENTION, "mlp.experts.5.up_proj": "mxfp4 32", "mlp.shared_expert.up_proj": "mxfp6 32",
        "mlp.gate": None, "mlp.shared_expert_gate": None}),
    "mixtral.yaml": ("mixtral", {
        **ATTENTION, "block_sparse_moe.experts.5.w1": "mxfp4 32", "block_sparse_moe.experts.5.w3":
        "mxfp4 32", "block_sparse_moe.experts.5.w2": "int4 128", "block_sparse_moe.gate": None}),
    "mixtral_servable.yaml": ("mixtral", {
        **ATTENTION, "block_sparse_moe.experts.5.w1": "mxfp4 32", "block_sparse_moe.experts.5.w3":
        "mxfp4 32", "block_sparse_moe.experts.5.w2": "mxfp4 32", "block_sparse_moe.gate": None}),
    "qwen2_moe_servable.yaml": ("qwen2-moe", {
        **ATTENTION, "mlp.experts.5.up_proj": "mxfp4 32", "mlp.shared_expert.up_proj": "int4 128",
        "mlp.gate": None, "mlp.shared_expert_gate": None}),
    "deepseek_moe_servable.yaml": ("deepseek-moe", {
        "self_attn.q_proj": "int4 64", "mlp.experts.5.up_proj": "int4 64",
        "mlp.shared_experts.down_proj": "int4 64", "mlp.gate": None}),
    "deepseek_moe.yaml": ("deepseek-moe", {
        **ATTENTION, "mlp.experts.5.up_proj": "mxfp4 32", "mlp.shared_experts.up_proj": "mxfp6 32",
        "mlp.gate": None}),
}
DENSE_LAYER_0 = {"gptq_mixed_precision.json": {"mlp.gate_proj": "mxfp4 32", "mlp.up_proj": "mxfp4 32",
                                               "mlp.down_proj": "int3 128"},
                 "deepseek_moe.yaml": {"mlp.gate_proj": "int4 128", "mlp.down_proj": "int4 128"}}
WARNINGS = {"gptq_mixed_precision.json": ['"model.layers.0.*" has no effect'],
            "gptq_olmoe_mixed.json": ["mxfp6 has group size 32 only, 64 was asked",
                                      '"model.layers.*.mlp.shared_expert.*" matches no module'],
            "qwen2_moe.yaml": ["mxfp6 has group size 32 only, 64 was asked"]}
CHECKPOINT_ENGINES = {"vLLM": "vllm", "SGLang": "sglang", "transformers": "transformers"}
ENGINES = {**CHECKPOINT_ENGINES, "llama.cpp": "llamacpp"}


def guide_of_engines():
    """Returns {recipe: (the engines that load its export, the recipe to use for vLLM or None)}, according to
    configs/README.md."""
    rows = {}
    for line in (CONFIGS / "README.md").read_text().splitlines():
        cells = [c.strip() for c in line.split("|")[1:-1]]
        if len(cells) == 5:
            for recipe in re.findall(r"`([^`]*\.(?:yaml|json))`", cells[0]):
                loads, _, sibling = cells[4].partition("; for vLLM: ")
                rows[recipe] = ({ENGINES[name] for name in ENGINES if name in loads}, sibling.strip("`") or None)
    return rows


class Engines(WorkFolder):
    """What `plan` says about models that not every engine supports."""

    def plan(self, model, *given):
        return json.loads(self.ok("plan", "--model", model, *given, "--json"))

    def loading(self, model, recipe):
        """The engines that load such a model in these formats."""
        problems = self.plan(TESTS / "models" / (model + "-tiny"), "--config", recipe)["problems_in"]
        return {engine for engine, found in problems.items()
                if not [p for p in found if not p.startswith("config.json: ")]}

    def test_the_guide_agrees_with_plan_about_every_recipe(self):
        guide = guide_of_engines()
        self.assertEqual(set(guide), set(LAYER_1))
        for recipe, (model, _) in LAYER_1.items():
            self.assertEqual(self.loading(model, CONFIGS / recipe), guide[recipe][0], recipe)

    def test_every_recipe_loads_in_vllm_or_names_one_that_does(self):
        guide = guide_of_engines()
        self.assertEqual({LAYER_1[recipe][0] for recipe, (engines, _) in guide.items() if "vllm" in engines},
                         {"olmoe", "mixtral", "qwen2-moe", "deepseek-moe"})
        for recipe, (engines, sibling) in guide.items():
            with self.subTest(recipe=recipe):
                self.assertEqual(sibling is None, "vllm" in engines)
                if sibling is not None:
                    self.assertIn(sibling, (CONFIGS / recipe).read_text())
                    self.assertEqual(LAYER_1[sibling][0], LAYER_1[recipe][0])
                    self.assertIn("vllm", self.loading(LAYER_1[sibling][0], CONFIGS / sibling))

    def test_the_first_recipes_load_in_every_engine(self):
        """The recipe of README.md's first command, its example, and what is done without a recipe."""
        readme = (ROOT / "README.md").read_text()
        first = CONFIGS / re.search(r"--config configs/(\S+)", readme)[1]
        example = self.work / "example.yaml"
        example.write_text(re.search(r"```yaml\n(.*?)```", readme, re.DOTALL)[1])
        none = self.work / "none.yaml"
        none.write_text("{}")
        for recipe in (first, example, none):
            for model in ("olmoe", "qwen2-moe", *(() if recipe == example else ("mixtral",))):
                self.assertEqual(self.loading(model, recipe), set(ENGINES.values()), (recipe, model))
        for recipe in (first, none):  # vLLM wants one format in DeepSeek-MoE, and SGLang has none
            self.assertEqual(self.loading("deepseek-moe", recipe), set(ENGINES.values()) - {"sglang"})

    def test_deepseek_moe_is_loaded_only_with_its_own_code(self):
        model = TESTS / "models/deepseek-moe-tiny"
        for engine in CHECKPOINT_ENGINES.values():
            self.fails(1, "deepseek" if engine != "sglang" else "DeepSeek", "plan", "--model", model,
                       "--target", engine)
        own = self.work / "own"
        shutil.copytree(model, own)
        (own / "configuration_deepseek.py").write_text("")
        self.assertTrue(self.plan(own)["problems_in"]["vllm"])
        config = json.loads((own / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "configuration_deepseek.DeepseekConfig"}
        (own / "config.json").write_text(json.dumps(config))
        plan = self.plan(own, "--target", "vllm")
        self.assertEqual(plan["problems_in"]["vllm"], [])
        self.assertIn("--trust-remote-code", plan["notes_in"]["vllm"][0])
        self.assertTrue(plan["problems_in"]["transformers"])  # the folder has no modeling_deepseek.py
        (own / "modeling_deepseek.py").write_text("")
        self.assertEqual(self.plan(own)["problems_in"]["transformers"], [])

    def with_biases(self, name, roles):
        """Creates a model with attention_bias, whose biases are zero."""
        model = self.work / name
        shutil.copytree(TESTS / "models" / name, model)
        config = json.loads((model / "config.json").read_text())
        config["attention_bias"] = True
        (model / "config.json").write_text(json.dumps(config))
        file = sorted(model.glob("*.safetensors"))[-1]
        header, data = read_safetensors(file)
        added = {}
        for layer in range(config["num_hidden_layers"]):
            for role in roles:
                weight = f"model.layers.{layer}.self_attn.{role}_proj.weight"
                shapes = [h[weight]["shape"] for h in (read_safetensors(f)[0]
                                                       for f in model.glob("*.safetensors")) if weight in h]
                rows = shapes[0][0]
                added[weight.replace("weight", "bias")] = {
                    "dtype": "BF16", "shape": [rows],
                    "data_offsets": [len(data), len(data) + 2 * rows]}
                data += bytes(2 * rows)
        write_safetensors(file, {**header, **added}, data)
        index = model / "model.safetensors.index.json"
        if index.exists():
            content = json.loads(index.read_text())
            content["weight_map"].update({n: file.name for n in added})
            index.write_text(json.dumps(content))
        return model

    def test_biases_that_an_engine_drops_make_its_answers_wrong(self):
        for name, roles in (("mixtral-tiny", "qkvo"), ("qwen2-moe-tiny", "o")):
            plan = self.plan(self.with_biases(name, roles))
            for engine in CHECKPOINT_ENGINES.values():
                problems = plan["problems_in"][engine]
                self.assertIn("drops the biases", " ".join(problems), (name, engine))
                self.assertTrue(plan["engines"][engine]["loads"])
                self.assertFalse(plan["engines"][engine]["right"])
            self.fails(1, "transformers 5.17 will load the result and give wrong answers", "plan",
                       "--model", self.work / name, "--target", "transformers")


class Recipes(WorkFolder):
    originals = {}  # the perplexities of the original models

    def test_every_recipe_is_tested(self):
        self.assertEqual({p.name for p in CONFIGS.iterdir() if p.suffix != ".md"}, set(LAYER_1))

    def perplexity(self, model, text):
        return json.loads(self.ok("eval", "--model", model, "--text", text, "--window", 512,
                                  "--json"))["perplexity"]

    def check(self, recipe):
        model = TESTS / "models" / (LAYER_1[recipe][0] + "-tiny")
        given = ("--model", model, "--config", CONFIGS / recipe)
        plan = json.loads(self.ok("plan", *given, "--json"))
        formats = {m["name"]: m["format"] and f"{m['format']} {m['group_size']}" for m in plan["modules"]}
        for layer, expected in ((1, LAYER_1[recipe][1]), (0, DENSE_LAYER_0.get(recipe, {}))):
            for name, format in expected.items():
                self.assertEqual(formats[f"model.layers.{layer}.{name}"], format, name)
        for warning in WARNINGS.get(recipe, ()):
            self.assertIn(warning, json.dumps(plan["warnings"]).replace("\\", ""))

        out = self.work / "out"
        self.ok(*given, "--calib", CALIB, "--nsamples", 8, "--seqlen", 512, "--save", out)
        counts = json.loads(self.ok("verify", "--model", out, "--json"))["formats"]
        self.assertEqual(sum(counts.values()), sum(f is not None for f in formats.values()))
        self.assertEqual(set(counts), {f.split()[0] for f in formats.values() if f})
        text = self.work / "text.txt"
        text.write_text(EVAL.read_text()[:25000])
        if model not in self.originals:
            self.originals[model] = self.perplexity(model, text)
        self.assertLess(self.perplexity(out, text), 1.2 * self.originals[model])


for recipe_name in LAYER_1:
    def test(self, recipe=recipe_name):
        self.check(recipe)
    setattr(Recipes, "test_" + recipe_name.replace(".", "_"), test)


if __name__ == "__main__":
    unittest.main()
