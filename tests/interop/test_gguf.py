"""Tests that gguf-py, the reader of llama.cpp, decodes the GGUF files that aqhost writes to the same weights,
bit for bit, under the names that llama.cpp has, and that their tokenizers have the same tokens.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates.
"""
import json
import logging
import os
import pathlib
import subprocess
import tempfile
import unittest

import gguf
import numpy
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import gguf_checkpoints
from stored import load_folder

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
PLUGINS = BUILD / "plugins"
ARCHITECTURES = {"olmoe": gguf.MODEL_ARCH.OLMOE, "mixtral": gguf.MODEL_ARCH.LLAMA,
                 "qwen2-moe": gguf.MODEL_ARCH.QWEN2MOE, "deepseek-moe": gguf.MODEL_ARCH.DEEPSEEK,
                 "qwen3-moe": gguf.MODEL_ARCH.QWEN3MOE, "gpt-oss": gguf.MODEL_ARCH.GPT_OSS,
                 "minimax-m2": gguf.MODEL_ARCH.MINIMAXM2, "glm4-moe": gguf.MODEL_ARCH.GLM4_MOE,
                 "granite-moe": gguf.MODEL_ARCH.GRANITE_MOE, "deepseek-v2": gguf.MODEL_ARCH.DEEPSEEK2,
                 "deepseek-v3": gguf.MODEL_ARCH.DEEPSEEK2, "ernie4-5-moe": gguf.MODEL_ARCH.ERNIE4_5_MOE}
SWAPPED = ("mixtral", "deepseek-moe", "granite-moe")  # llama.cpp rotates neighbours in these
RECIPES = {
    "int4": "{default: {wq: int4, group_size: 32}}",
    "int8": "{default: {wq: int8, group_size: 64}}",
    "mxfp4": "{default: {wq: mxfp4}}",
    "zeros": "{default: {wq: int4, group_size: 32, symmetric: false},"
             " overrides: [{pattern: '*.self_attn.*', wq: int5, group_size: 64, symmetric: false}]}",
    "mixed": "{default: {wq: int4, group_size: 64}, overrides: [{pattern: '*.self_attn.*', wq: int8,"
             " group_size: -1}, {pattern: '*.layers.1.*', wq: int5, group_size: 32},"
             " {pattern: '*down_proj', wq: mxfp4}, {pattern: '*.w2', skip: true},"
             " {pattern: lm_head, wq: int8, group_size: 32}]}",
}
# Blocks of 256 divide the rows of few matrices of the small models; those of the experts have one type in
# each layer.
SMALL = "default: {wq: int4, group_size: 32}"
K_QUANTS = {
    "mixtral": (f"{{{SMALL}, overrides: [{{pattern: '*.layers.0.*.w2', wq: q2_k}},"
                " {pattern: '*.layers.1.*.w2', wq: q3_k}, {pattern: '*.layers.2.*.w2', wq: q4_k}]}",
                {"Q2_K", "Q3_K", "Q4_K"}),
    "qwen2-moe": (f"{{{SMALL}, overrides: [{{pattern: '*.layers.0.*.shared_expert.down_proj', wq: q5_k}},"
                  " {pattern: '*.layers.1.*.shared_expert.down_proj', wq: q6_k}]}", {"Q5_K", "Q6_K"}),
    "deepseek-moe": (f"{{{SMALL}, overrides: [{{pattern: '*.layers.0.mlp.down_proj', wq: q3_k}}]}}", {"Q3_K"})}
logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of templates for pairs of texts
NVFP4 = {"mixtral": "{default: {wq: nvfp4}}",  # in others, llama.cpp has the scale in attention alone
         "qwen3-moe": "{default: {wq: nvfp4}}",
         "olmoe": "{default: {wq: mxfp4}, overrides: [{pattern: '*.self_attn.*', wq: nvfp4}]}"}


def run(*arguments, status=0):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    assert done.returncode == status, f"{arguments}: {done.returncode} {done.stdout}{done.stderr}"
    return done


def aqhost(command, *arguments, status=0):
    return run(BUILD / "bin/aqhost", command, "--plugin-dir", PLUGINS, *arguments, status=status)


def convert(folder, file, *arguments, status=0):
    return aqhost("convert", folder, "--to", "gguf", "--out", file, *arguments, status=status)


def each_expert(weights):
    """Splits what gpt-oss and Granite MoE have in one tensor for all experts: gpt-oss [experts, in, out] and
    [experts, out], with rows of gate_proj and up_proj in turn, Granite MoE [experts, out, in]."""
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if kind == "sinks":
            yield f"{name}.weight", tensor
        elif name.endswith(".input_linear.weight"):
            for expert, rows in enumerate(tensor):
                for part, matrix in zip(("gate_proj", "up_proj"), numpy.split(rows, 2)):
                    yield name.replace("input_linear", f"experts.{expert}.{part}"), matrix
        elif name.endswith(".output_linear.weight"):
            for expert, matrix in enumerate(tensor):
                yield name.replace("output_linear", f"experts.{expert}.down_proj"), matrix
        elif stem.endswith(".experts"):
            bias = kind.endswith("_bias")
            for expert, matrix in enumerate(tensor if bias else tensor.swapaxes(1, 2)):
                parts = {"down_proj": matrix} if kind.startswith("down") else \
                    {"gate_proj": matrix[::2], "up_proj": matrix[1::2]}
                for part, rows in parts.items():
                    yield f"{stem}.{expert}.{part}.{'bias' if bias else 'weight'}", rows
        else:
            yield name, tensor


def each_part_of_heads(weights, config):
    """Splits kv_b of latent attention as DeepseekV2Model of llama.cpp's converter does."""
    for name, tensor in weights:
        if ".kv_b_proj." not in name:
            yield name, tensor
            continue
        keys = config["qk_nope_head_dim"]
        heads = tensor.reshape(config["num_attention_heads"], keys + config["v_head_dim"], -1)
        yield name.replace("kv_b_proj", "k_b_proj"), heads[:, :keys].swapaxes(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), heads[:, keys:]


def unswapped(weight, heads):
    """Undoes what LlamaModel.permute() of llama.cpp's converter does to the rows of q and k."""
    size = weight.shape[0] // heads
    return weight.reshape(heads, size // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


class Gguf(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.work = pathlib.Path(cls.folder.name)
        cls.originals = {}

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def new(self):
        return pathlib.Path(tempfile.mkdtemp(dir=self.work))

    def original(self, family):
        """Returns the small model of a family: that of tests/models, or one with random weights."""
        if family not in gguf_checkpoints.CASES:
            return TESTS / f"models/{family}-tiny"
        if family not in self.originals:
            self.originals[family] = self.new() / family
            gguf_checkpoints.write(family, self.originals[family])
        return self.originals[family]

    def rounded(self, model, recipe, *arguments):
        out = self.new()
        (out / "recipe.yaml").write_text(recipe)
        aqhost("quantize", "--model", model, "--config", out / "recipe.yaml", "--algorithm", "rtn",
               "--save", out / "export", *arguments)
        return out / "export"

    def weights(self, checkpoint):
        """Returns the weights of a checkpoint as aqhost decodes them."""
        out = self.new()
        (out / "ids.txt").write_text("1 2 3")
        run(BUILD / "bin/interop_dump", PLUGINS, checkpoint, out / "ids.txt", out / "dump", "float32")
        weights = each_expert({name: tensor.numpy() for name, tensor in load_folder(out / "dump").items()
                               if name != "logits" and not name.startswith("routes.")})
        return dict(each_part_of_heads(weights, json.loads((checkpoint / "config.json").read_text())))

    def names(self, family, weights, layers):
        """Returns {name in the file: names in the checkpoint} by the tables of gguf-py."""
        table = gguf.get_tensor_name_map(ARCHITECTURES[family], layers)
        names = {}
        for name in weights:
            parts = name.split(".")
            if f".layers.{layers}." in name or ".mtp_" in name:  # of multi-token prediction, which the file leaves out
                continue
            merged = name.replace("e_score_correction_bias", "e_score_correction.bias")
            if "experts" in parts:
                at = parts.index("experts")
                expert = int(parts[at + 1])
                merged = ".".join(parts[:at + 1] + parts[at + 2:])
                if family == "mixtral":
                    merged = f"layers.{parts[2]}.feed_forward.experts.{'.'.join(parts[at + 2:])}"
                if family == "granite-moe":
                    merged = merged.replace("block_sparse_moe", "mlp")
            mapped = table.get_name(merged, try_suffixes=(".weight", ".bias"))
            self.assertIsNotNone(mapped, merged)
            if "experts" in parts:
                names.setdefault(mapped, {})[expert] = name
            else:
                names[mapped] = {0: name}
        return {mapped: [of[i] for i in range(len(of))] for mapped, of in names.items()}

    def check(self, family, checkpoint, file):
        """Checks every tensor of the file. Returns the names of their types."""
        config = json.loads((checkpoint / "config.json").read_text())
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        weights = self.weights(checkpoint)
        names = self.names(family, weights, config["num_hidden_layers"])
        reader = gguf.GGUFReader(file)
        tensors = {t.name: t for t in reader.tensors}
        scales = {n for n in tensors if n.endswith(".scale")}
        self.assertEqual(set(tensors) - scales, set(names))
        for name in set(tensors) - scales:
            tensor = tensors[name]
            self.assertEqual(tensor.data_offset % 32, 0)
            value = gguf.dequantize(tensor.data, tensor.tensor_type)
            expected = numpy.stack([weights[n] for n in names[name]])
            value = value.reshape(expected.shape)
            of = name.split(".")[-2]
            if family in SWAPPED and of in heads:
                value = unswapped(value[0], heads[of])[None]
            kind = tensor.tensor_type.name
            if kind in ("Q4_1", "Q5_1"):  # scale x zero point is rounded to float16
                blocks = tensor.data.reshape(-1, gguf.GGML_QUANT_SIZES[tensor.tensor_type][1])
                step = blocks[:, :2].copy().view(numpy.float16).astype(numpy.float32)
                if family in SWAPPED and of in heads:
                    step = unswapped(step.reshape(expected.shape[1], -1), heads[of]).reshape(-1, 1)
                error = numpy.abs((value - expected).reshape(-1, 32)) / step
                self.assertLess(error.max(), 0.02, name)
            elif kind == "NVFP4":  # 1 / the global scale is rounded to float32
                scale = gguf.dequantize(tensors[name[:-6] + "scale"].data, gguf.GGMLQuantizationType.F32)
                self.assertEqual(scale.shape, (len(expected),))
                error = numpy.abs(value * scale[:, None, None] - expected)
                self.assertLessEqual((error - 2.5e-7 * numpy.abs(expected)).max(), 0, name)
            else:
                self.assertTrue((value == expected).all(), f"{name} in {kind}")
        self.check_metadata(family, checkpoint, reader, config)
        return {t.tensor_type.name for t in reader.tensors}

    def check_metadata(self, family, checkpoint, reader, config):
        field = {name: f.contents() for name, f in reader.fields.items()}
        arch = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[family]]
        self.assertEqual(field["general.architecture"], arch)
        self.assertEqual(field[f"{arch}.embedding_length"], config["hidden_size"])
        latent = "kv_lora_rank" in config  # all heads share a key
        self.assertEqual(field[f"{arch}.attention.head_count_kv"], 1 if latent else config["num_key_value_heads"])
        used = config["moe_k" if "moe_k" in config else "num_experts_per_tok"]
        self.assertEqual(field[f"{arch}.expert_used_count"], used)
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        tokens = field["tokenizer.ggml.tokens"]
        self.assertEqual(len(tokens), config["vocab_size"])
        self.assertEqual({t: i for i, t in enumerate(tokens) if not t.startswith("[PAD")},
                         tokenizer.get_vocab(with_added_tokens=True))
        if family in gguf_checkpoints.PRE_TOKENIZERS:
            self.assertEqual(field["tokenizer.ggml.pre"], {"gpt-oss": "gpt-4o", "granite-moe": "refact",
                                                           "deepseek-v3": "deepseek-v3"}[family])
        vocab = gguf.SpecialVocab(checkpoint, load_merges=family != "mixtral")
        self.assertEqual(field.get("tokenizer.ggml.merges", []), vocab.merges)
        for kind, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
            self.assertEqual(field.get(f"tokenizer.ggml.{key}_token_id"),
                             vocab.special_token_ids.get(kind), kind)
        self.assertEqual(field["tokenizer.ggml.add_bos_token"], vocab.add_special_token.get("bos", False))

    def check_family(self, family, recipe):
        export = self.rounded(self.original(family), recipe)
        convert(export, self.work / "m.gguf", "--overwrite")
        return self.check(family, export, self.work / "m.gguf")

    def test_k_quants_by_gptq(self):
        """GPTQ, learned rounding and the file in one run."""
        recipe, types = K_QUANTS["mixtral"]
        out = self.new()
        (out / "recipe.yaml").write_text(recipe.replace("group_size: 32}", "group_size: 32, refine: {steps: 2}}", 1))
        aqhost("quantize", "--model", TESTS / "models/mixtral-tiny", "--config", out / "recipe.yaml",
               "--calib", TESTS / "data/kjv_calib.txt", "--nsamples", 4, "--seqlen", 64, "--export", "gguf",
               "--save", out / "export")
        self.assertLessEqual(types, self.check("mixtral", out / "export", out / "export/model.gguf"))

    def check_dense(self, family):
        model = self.original(family)
        convert(model, self.work / f"{family}.gguf")
        stored = {"F32"} if family in gguf_checkpoints.CASES else {"BF16", "F32"}
        self.assertEqual(self.check(family, model, self.work / f"{family}.gguf"), stored)

    def test_types_of_a_mixed_export(self):
        self.assertEqual(self.check_family("qwen2-moe", RECIPES["mixed"]),
                         {"BF16", "F32", "Q4_0", "Q5_0", "Q8_0", "MXFP4"})

    def test_rounded_minima_are_reported(self):
        export = self.rounded(TESTS / "models/olmoe-tiny", RECIPES["zeros"])
        done = convert(export, self.work / "zeros.gguf", "--json")
        told = json.loads(done.stdout)
        self.assertEqual((told["rounded_scales"], told["types"]["Q4_1"]), (0, 9))
        self.assertGreater(told["rounded_minima"], 0)
        self.assertLess(told["worst_minimum_change_in_steps"], 0.02)
        self.assertIn("minima (scale x zero point) were rounded to float16", done.stderr)

    def test_gptq_container(self):
        export = self.rounded(TESTS / "models/olmoe-tiny", RECIPES["int4"], "--export", "gptq")
        convert(export, self.work / "gptq.gguf")
        self.assertIn("Q4_0", self.check("olmoe", export, self.work / "gptq.gguf"))

    def test_run_with_export_gguf(self):
        export = self.rounded(TESTS / "models/mixtral-tiny", RECIPES["int8"], "--export", "gguf")
        self.assertIn("Q8_0", self.check("mixtral", export, export / "model.gguf"))
        scales = {t.dtype for n, t in load_folder(export).items() if n.endswith("weight_scale")}
        self.assertEqual({str(d) for d in scales}, {"torch.float16"})

    def test_run_with_export_gguf_in_several_files(self):
        """Another run replaces all of them."""
        model, out = TESTS / "models/olmoe-tiny", self.new()
        (out / "recipe.yaml").write_text(RECIPES["int8"])
        command = ("quantize", "--model", model, "--config", out / "recipe.yaml", "--algorithm", "rtn", "--export",
                   "gguf", "--save", out / "export", "--json")
        several = json.loads(aqhost(*command, "--max-shard-size", 1).stdout)["gguf"]["files"]
        self.assertEqual(set(several), {str(f) for f in (out / "export").glob("*.gguf")})
        self.assertEqual(several[0], str(out / f"export/model-00001-of-{len(several):05}.gguf"))
        tensors = {t.name: t.data for file in several for t in gguf.GGUFReader(file).tensors}
        one = json.loads(aqhost(*command, "--overwrite").stdout)["gguf"]["files"]
        self.assertEqual(one, [str(out / "export/model.gguf")])
        self.assertEqual(one, [str(f) for f in (out / "export").glob("*.gguf")])
        for tensor in gguf.GGUFReader(one[0]).tensors:
            self.assertTrue((tensor.data == tensors[tensor.name]).all(), tensor.name)

    def test_rows_that_are_stored_as_columns_are_reported(self):
        export = self.rounded(self.original("deepseek-v3"), RECIPES["int4"])
        done = convert(export, self.work / "latent.gguf", "--json")
        told = json.loads(done.stdout)
        self.assertEqual(len(told["notes"]), 1)
        self.assertIn("self_attn.kv_b_proj and 2 other modules transposed", told["notes"][0])
        self.assertIn(told["notes"][0], done.stderr)
        types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(self.work / "latent.gguf").tensors}
        self.assertEqual((types["blk.1.attn_k_b.weight"], types["blk.1.attn_v_b.weight"]), ("F32", "Q4_0"))

    def test_tied_embeddings(self):
        """OLMoE's code in llama.cpp needs an output.weight."""
        model = self.new()
        for file in (TESTS / "models/olmoe-tiny").iterdir():
            (model / file.name).write_bytes(file.read_bytes())
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
        tensors = load_file(model / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        convert(model, self.work / "tied.gguf")
        tensors = {t.name: t for t in gguf.GGUFReader(self.work / "tied.gguf").tensors}
        self.assertTrue((tensors["output.weight"].data == tensors["token_embd.weight"].data).all())

    def check_refused(self, done, *words):
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertEqual(done.stdout, "")

    def test_refused_before_anything_is_written(self):
        olmoe = TESTS / "models/olmoe-tiny"
        out = self.new()
        cases = {
            "{default: {wq: int3, group_size: 32}}":
                ("q_proj", "no type for the numbers of int3 g32", "int4"),
            "{default: {wq: int4, group_size: 16}}": ("q_proj", "Q4_0", "group_size: 32 fits"),
            "{default: {wq: int4, group_size: 32}, overrides: [{pattern: '*.experts.3.up_proj', wq: int8}]}":
                ("experts.0.up_proj is in int4 g32", "experts.3.up_proj in int8 g32"),
            "{default: {wq: int4}, overrides: [{pattern: '*.mlp.gate', wq: int8}]}":
                ("mlp.gate is in int8 g128", "routers"),
            "{default: {wq: nvfp4}}": ("ignores the scale of a matrix", "mxfp4"),
        }
        for recipe, words in cases.items():
            with self.subTest(recipe=recipe):
                export = self.rounded(olmoe, recipe)
                self.check_refused(convert(export, out / "m.gguf", "--log-level", "error", status=1), *words)
                (out / "recipe.yaml").write_text(recipe)
                plan = json.loads(aqhost("plan", "--model", olmoe, "--config", out / "recipe.yaml",
                                         "--json").stdout)
                self.assertIs(plan["gguf"]["fits"], False)
                self.assertIn(words[-1], plan["gguf"]["problem"])
                refused = aqhost("quantize", "--model", olmoe, "--config", out / "recipe.yaml",
                                 "--algorithm", "rtn", "--export", "gguf", "--save", out / "export",
                                 "--log-level", "error", status=1)
                self.check_refused(refused, words[-1])
                (out / "recipe.yaml").unlink()
                self.assertEqual(list(out.iterdir()), [])

    def changed(self, family, **changes):
        """Returns a copy of the model with changes of its config.json."""
        copy = self.new()
        for file in self.original(family).iterdir():
            (copy / file.name).symlink_to(file)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").unlink()
        (copy / "config.json").write_text(json.dumps({**config, **changes}))
        return copy

    def test_options_that_llama_cpp_does_not_read(self):
        rope = gguf_checkpoints.CASES["gpt-oss"].options["rope_parameters"]
        cases = (("qwen3-moe", "norm_topk_prob: false", {"norm_topk_prob": False}),
                 ("qwen3-moe", "sliding_window (40)", {"use_sliding_window": True, "sliding_window": 40}),
                 ("gpt-oss", "layer_types other than sliding_attention in every second layer",
                  {"layer_types": ["full_attention", "sliding_attention"] * 2}),
                 ("glm4-moe", "router other than a sigmoid over all experts", {"n_group": 3, "topk_group": 2}),
                 ("gpt-oss", "YaRN with beta_fast 32", {"rope_parameters": {**rope, "beta_fast": 8.0}}),
                 ("deepseek-v3", "rope_interleave: false", {"rope_interleave": False}),
                 ("deepseek-v3", "index_topk", {"index_topk": 2048, "model_type": "deepseek_v32"}),
                 ("deepseek-v2", "router other than softmax over all experts",
                  {"n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy"}),
                 ("ernie4-5-moe", "moe_norm_min (0.4)", {"moe_norm_min": 0.4}))
        for family, word, changes in cases:
            with self.subTest(word):
                model = self.changed(family, **changes)
                self.check_refused(convert(model, model / "m.gguf", status=1), "config.json", word)
                self.assertFalse((model / "m.gguf").exists())

    def test_bounds_of_yarn_that_llama_cpp_rounds(self):
        rope = gguf_checkpoints.CASES["gpt-oss"].options["rope_parameters"]
        model = self.changed("gpt-oss", rope_parameters={**rope, "truncate": False})
        done = convert(model, model / "m.gguf", "--json")
        self.assertIn("truncate: false", done.stderr)
        change = json.loads(done.stdout)["worst_frequency_change"]
        self.assertTrue(0.01 < change < 0.5, change)
        exact = convert(self.original("gpt-oss"), model / "exact.gguf", "--json")
        self.assertEqual(json.loads(exact.stdout)["worst_frequency_change"], 0)

    def test_another_eps_inside_latent_attention_is_reported(self):
        model = self.changed("deepseek-v2", rms_norm_eps=1e-5)
        told = json.loads(convert(model, model / "m.gguf", "--json").stdout)
        self.assertEqual(told["notes"], ["the norms inside latent attention have an eps of 1e-06, and in llama.cpp "
                                         "that of the other norms, 1e-05"])

    def test_rows_that_no_super_block_divides_are_refused_with_what_fits(self):
        recipe = self.new() / "recipe.yaml"
        for name, fits in (("q4_k", "int4 (Q4_0)"), ("q5_k", "int5 (Q5_0)"), ("q6_k", "int8 (Q8_0)")):
            recipe.write_text(f"{{default: {{wq: {name}}}}}")
            done = aqhost("plan", "--model", TESTS / "models/olmoe-tiny", "--config", recipe, status=1)
            self.check_refused(done, "q_proj", "256 weights do not divide a row of 128",
                               f"{fits} in groups of 32 fits")

    def test_plan_names_k_quants_and_that_no_engine_loads_the_export_itself(self):
        out = self.new()
        (out / "recipe.yaml").write_text(K_QUANTS["mixtral"][0])
        plan = json.loads(aqhost("plan", "--model", TESTS / "models/mixtral-tiny", "--config",
                                 out / "recipe.yaml", "--export", "gguf", "--json").stdout)
        types = plan["gguf"]["types"]
        self.assertEqual({t: types[t] for t in ("Q2_K", "Q3_K", "Q4_K")}, {"Q2_K": 1, "Q3_K": 1, "Q4_K": 1})
        text = json.dumps(plan)
        self.assertIn("q2_k g16 is a format that aqhost alone reads", text)

    def test_plan_says_that_a_recipe_fits(self):
        out = self.new()
        (out / "recipe.yaml").write_text(RECIPES["int4"])
        plan = aqhost("plan", "--model", TESTS / "models/olmoe-tiny", "--config", out / "recipe.yaml",
                      "--json")
        self.assertEqual(json.loads(plan.stdout)["gguf"]["types"], {"BF16": 2, "F32": 16, "Q4_0": 21})
        text = aqhost("plan", "--config-only", TESTS / "models/olmoe-tiny/config.json", "--config",
                      out / "recipe.yaml").stdout
        self.assertRegex(text, r"loads in llama.cpp b\d+ +yes, as a GGUF file")

    def test_several_files(self):
        model, out = self.original("olmoe"), self.new()
        convert(model, out / "one.gguf")
        told = json.loads(convert(model, out / "m.gguf", "--max-shard-size", 1, "--json").stdout)
        paths = [out / f"m-{i + 1:05}-of-{len(told['files']):05}.gguf" for i in range(len(told["files"]))]
        self.assertEqual([str(p) for p in paths], told["files"])
        self.assertEqual(set(out.iterdir()), {out / "one.gguf", *paths})
        self.assertGreater(len(paths), 3)
        one = gguf.GGUFReader(out / "one.gguf")
        parts = [gguf.GGUFReader(path) for path in paths]
        for i, part in enumerate(parts):
            self.assertLessEqual(paths[i].stat().st_size, 10**6)
            field = {name: f.contents() for name, f in part.fields.items()}
            self.assertEqual([field[f"split.{key}"] for key in ("no", "count", "tensors.count")],
                             [i, len(parts), len(one.tensors)])
        self.assertLessEqual(set(one.fields), set(parts[0].fields) | {"GGUF.kv_count"})
        tensors = [t for part in parts for t in part.tensors]
        self.assertEqual([t.name for t in tensors], [t.name for t in one.tensors])
        for ours, expected in zip(tensors, one.tensors):
            self.assertTrue((ours.data == expected.data).all(), ours.name)
        self.check_refused(convert(model, out / "m.gguf", "--max-shard-size", 1, status=1), "exists already")

    def test_an_existing_file_stays(self):
        file = self.new() / "m.gguf"
        file.write_text("mine")
        done = convert(TESTS / "models/olmoe-tiny", file, status=1)
        self.check_refused(done, "exists already", "--overwrite")
        self.assertEqual(file.read_text(), "mine")


for family in ARCHITECTURES:
    setattr(Gguf, f"test_{family}_dense", lambda self, f=family: self.check_dense(f))
    for recipe in RECIPES:
        setattr(Gguf, f"test_{family}_{recipe}",
                lambda self, f=family, r=recipe: self.assertIn("F32", self.check_family(f, RECIPES[r])))
for family, (recipe, types) in K_QUANTS.items():
    setattr(Gguf, f"test_{family}_k_quants",
            lambda self, f=family, r=recipe, t=types: self.assertLessEqual(t, self.check_family(f, r)))
for family in NVFP4:
    setattr(Gguf, f"test_{family}_nvfp4",
            lambda self, f=family: self.assertIn("NVFP4", self.check_family(f, NVFP4[f])))


if __name__ == "__main__":
    unittest.main()
