"""The recipes in configs/, as they are shipped: each quantizes the small model of its family.

Run by ctest with AQ_BUILD (the build folder) set; needs nothing but Python's own library.
"""
import json
import unittest

from test_cli import CALIB, EVAL, ROOT, TESTS, WorkFolder

CONFIGS = ROOT / "configs"
ATTENTION = {"self_attn.q_proj": "int4 128", "self_attn.k_proj": "int4 128",
             "self_attn.v_proj": "int4 128", "self_attn.o_proj": "int4 128"}
LAYER_1 = {  # recipe: its model, and the formats of some modules of layer 1
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
    "deepseek_moe.yaml": ("deepseek-moe", {
        **ATTENTION, "mlp.experts.5.up_proj": "mxfp4 32", "mlp.shared_experts.up_proj": "mxfp6 32",
        "mlp.gate": None}),
}
DENSE_LAYER_0 = {"gptq_mixed_precision.json": {"mlp.gate_proj": "mxfp4 32", "mlp.up_proj": "mxfp4 32",
                                               "mlp.down_proj": "int3 128"},
                 "deepseek_moe.yaml": {"mlp.gate_proj": "int4 128", "mlp.down_proj": "int4 128"}}
WARNINGS = {"gptq_mixed_precision.json": ['"model.layers.0.*" has no effect'],
            "gptq_olmoe_mixed.json": ["64 asked", '"model.layers.*.mlp.shared_expert.*" matches no module'],
            "qwen2_moe.yaml": ["64 asked"]}


class Recipes(WorkFolder):
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
        self.assertLess(self.perplexity(out, text), 1.2 * self.perplexity(model, text))


for recipe_name in LAYER_1:
    def test(self, recipe=recipe_name):
        self.check(recipe)
    setattr(Recipes, "test_" + recipe_name.replace(".", "_"), test)


if __name__ == "__main__":
    unittest.main()
