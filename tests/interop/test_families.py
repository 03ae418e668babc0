"""Compares every option of config.json with transformers, on small models with random weights.
DeepSeek-MoE, which transformers does not have, is compared with the rules of its published code.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test
creates.
"""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from stored import load_folder

TESTS = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ["AQ_BUILD"])
TOKENS = 40
IDS = torch.randint(0, 64, (1, TOKENS), generator=torch.Generator().manual_seed(5))

BASE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
        "tie_word_embeddings": False}
FAMILY = {
    "olmoe": {"intermediate_size": 24, "num_experts": 6},
    "qwen2_moe": {"intermediate_size": 40, "moe_intermediate_size": 24, "num_experts": 6,
                  "shared_expert_intermediate_size": 20},
    "mixtral": {"intermediate_size": 24, "num_local_experts": 6},
    "deepseek": {"intermediate_size": 40, "moe_intermediate_size": 12, "n_routed_experts": 6,
                 "n_shared_experts": 2, "first_k_dense_replace": 1, "rms_norm_eps": 1e-6},
}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn_all": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                 "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.8, "mscale_all_dim": 0.4,
                 "truncate": False},
    "yarn_factor": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32},
}


def dump(model):
    """Runs interop_dump on a checkpoint and IDS; returns (its tensors, None) or (None, the error)."""
    with tempfile.TemporaryDirectory() as folder:
        ids = pathlib.Path(folder) / "ids.txt"
        ids.write_text(" ".join(map(str, IDS[0].tolist())))
        out = pathlib.Path(folder) / "out"
        done = subprocess.run([BUILD / "bin/interop_dump", BUILD / "plugins", model, ids, out,
                               "float32"],
                              capture_output=True, text=True)
        if done.returncode != 0:
            return None, done.stderr
        return load_folder(out), None


def randomize(tensors):
    """Makes weights so large that every option affects the logits."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in sorted(tensors.items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            tensor.copy_(1 + 0.2 * noise)
        elif name.endswith(".bias"):
            tensor.copy_(0.5 * noise)
        elif "embed_tokens" in name:
            tensor.copy_(noise)
        else:
            tensor.copy_(noise * 1.5 / tensor.shape[-1] ** 0.5)


def rewrite(model, **changes):
    """Changes config.json; the value None removes a key."""
    path = model / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    path.write_text(json.dumps(config))


def spell_as_transformers_4(model):
    """Uses rope_theta, rope_scaling {type} and torch_dtype instead of rope_parameters and dtype."""
    config = json.loads((model / "config.json").read_text())
    rope = config["rope_parameters"]
    theta, rope["type"] = rope.pop("rope_theta"), rope.pop("rope_type")
    rewrite(model, rope_parameters=None, dtype=None, torch_dtype=config["dtype"], rope_theta=theta,
            rope_scaling=None if rope["type"] == "default" else rope)


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = pathlib.Path(folder.name) / "model"

    def distance(self, logits, expected):
        return ((logits - expected).norm() / expected.norm()).item()

    def check(self, expected):
        ours, error = dump(self.model)
        self.assertIsNone(error)
        self.assertLess(self.distance(ours["logits"], expected), 1e-4)

    def check_refused(self, *words):
        _, error = dump(self.model)
        self.assertIsNotNone(error)
        for word in words:
            self.assertIn(word, error)
        self.assertEqual(len(error.splitlines()), 1, error)


class Transformers(Folder):
    def make(self, family, options, dtype=torch.float32, **save):
        import transformers
        prefix = {"olmoe": "Olmoe", "qwen2_moe": "Qwen2Moe", "mixtral": "Mixtral"}[family]
        config = getattr(transformers, prefix + "Config")(**{**BASE, **FAMILY[family], **options})
        model = getattr(transformers, prefix + "ForCausalLM")(config)
        with torch.no_grad():
            randomize(model.state_dict())
        model.to(dtype).save_pretrained(self.model, **save)

    def logits(self):
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32,
                                                     attn_implementation="eager").eval()
        with torch.no_grad():
            return model(IDS).logits[0]

    def check_option(self, family, options, beside):
        """Checks that aqhost and transformers agree with `options`, and that `options` affect the logits."""
        self.make(family, {**beside, **options})
        expected = self.logits()
        self.check(expected)
        shaping = {"num_key_value_heads", "head_dim", "attention_bias", "qkv_bias", "mlp_only_layers",
                   "decoder_sparse_step", "tie_word_embeddings"}
        if not shaping & set(options):  # these options change no tensor
            usual = {**BASE, **FAMILY[family], "layer_types": None, **beside}
            rewrite(self.model, **{key: usual.get(key) for key in [*options, "layer_types"]})
            self.assertGreater(self.distance(self.logits(), expected), 1e-2)

    def check_stored(self, family, dtype, stacked, shard):
        """The logits do not depend on how the tensors are distributed over files."""
        self.make(family, {}, dtype, save_original_format=not stacked,
                  max_shard_size="20KB" if shard else "1GB")
        files = list(self.model.glob("*.safetensors"))
        self.assertEqual(len(files) > 1, shard)
        names = set().union(*(load_file(f) for f in files))
        self.assertEqual(any(n.endswith("experts.gate_up_proj") for n in names), stacked)
        self.check(self.logits())

    def check_stacked_export(self, family):
        """In a stacked checkpoint that is quantized in part, the experts that are not quantized, and
        Mixtral's router, are where transformers looks for them."""
        self.make(family, {"hidden_size": 64}, save_original_format=False)
        recipe = self.model.parent / "recipe.yaml"
        recipe.write_text("default: {wq: int4, group_size: -1}\n"
                          "overrides: [{pattern: '*.layers.0.*', skip: true},\n"
                          "            {pattern: '*.1.*experts.3.*', skip: true}]\n")
        out = self.model.parent / "out"
        done = subprocess.run([BUILD / "bin/aqhost", "--model", self.model, "--config", recipe,
                               "--algorithm", "rtn", "--save", out], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        names = set(load_folder(out))
        self.assertTrue(any(n.startswith("model.layers.0.") and n.endswith("experts.gate_up_proj")
                            for n in names))
        folder = "block_sparse_moe" if family == "mixtral" else "mlp"
        up = "w3" if family == "mixtral" else "up_proj"
        self.assertIn(f"model.layers.1.{folder}.experts.2.{up}.weight_packed", names)
        self.assertIn(f"model.layers.1.{folder}.experts.3.{up}.weight", names)
        self.assertIn(f"model.layers.1.{folder}.gate.weight", names)
        ours, error = dump(out)
        self.assertIsNone(error)
        before, _ = dump(self.model)
        kept = ours[f"model.layers.1.{folder}.experts.3.{up}.weight"]
        stored = next(t for n, t in before.items() if n.endswith("layers.1.mlp.experts.gate_up_proj"))
        self.assertTrue(torch.equal(kept, stored[3, len(kept):]))
        self.assertLess(self.distance(ours["logits"], before["logits"]), 0.5)

    def check_spelling(self, family, rope):
        self.make(family, {"rope_parameters": {**rope, "rope_theta": 700.0}, "head_dim": 8})
        expected = self.logits()
        spell_as_transformers_4(self.model)
        self.check(expected)


EVERY = {"num_key_value_heads": {"num_key_value_heads": 2},
         "tied": {"tie_word_embeddings": True},
         "top_3": {"num_experts_per_tok": 3},
         "gelu": {"hidden_act": "gelu"},
         "gelu_tanh": {"hidden_act": "gelu_pytorch_tanh"},
         "eps": {"rms_norm_eps": 0.3}}
WINDOW = {"use_sliding_window": True, "sliding_window": 5}
OPTIONS = {
    "olmoe": {"attention_bias": {"attention_bias": True}, "clip_qkv": {"clip_qkv": 0.7},
              "norm_topk_prob": {"norm_topk_prob": True}},
    "qwen2_moe": {"no_bias": {"qkv_bias": False}, "head_dim": {"head_dim": 16},
                  "norm_topk_prob": {"norm_topk_prob": True},
                  "decoder_sparse_step": {"decoder_sparse_step": 2},
                  "mlp_only_layers": {"mlp_only_layers": [0, 2]},
                  "sliding_window": WINDOW, "window_layers": {**WINDOW, "max_window_layers": 1},
                  "layer_types": {**WINDOW, "layer_types": ["full_attention", "sliding_attention",
                                                            "sliding_attention"]}},
    "mixtral": {"head_dim": {"head_dim": 16}, "sliding_window": {"sliding_window": 5}},
}


def add_cases():
    def add(name, function, *arguments):
        setattr(Transformers, "test_" + name, lambda self: getattr(self, function)(*arguments))

    for family, own in OPTIONS.items():
        for label, options in {**EVERY, **own}.items():
            add(f"{family}_{label}", "check_option", family, options, {})
        for label, rope in ROPES.items():
            beside = {"max_position_embeddings": 16} if label == "dynamic" else {}
            if family == "mixtral":  # transformers 5.17 would write a null, and fails when it reads it
                beside = {**beside, "head_dim": 8}
            add(f"{family}_rope_{label}", "check_option", family,
                {"rope_parameters": {**rope, "rope_theta": 500.0}}, beside)
        for label in ("linear", "yarn", "llama3"):
            add(f"{family}_spelling_{label}", "check_spelling", family, ROPES[label])
        add(f"{family}_spelling_default", "check_spelling", family, {"rope_type": "default"})
        add(f"{family}_stacked_export", "check_stacked_export", family)
        for label, dtype, stacked, shard in (
                ("bf16", torch.bfloat16, False, False), ("f16_sharded", torch.float16, False, True),
                ("stacked", torch.float32, True, False), ("stacked_bf16", torch.bfloat16, True, True),
                ("stacked_f16", torch.float16, True, False)):
            add(f"{family}_stored_{label}", "check_stored", family, dtype, stacked, shard)


add_cases()


def rms_norm(x, weight, eps):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x, angles, scale):
    cos, sin = (f(torch.cat((angles, angles), -1)) * scale for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def inv_freq(config, size):
    """Returns frequencies and scaling of a rope type in transformers' table, since DeepSeek-MoE's own code
    has only linear and dynamic."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    rope = config.get("rope_scaling")
    if rope is None:
        return config["rope_theta"] ** -(torch.arange(0, size, 2).float() / size), 1.0
    llama = LlamaConfig(hidden_size=config["hidden_size"], head_dim=size,
                        num_attention_heads=config["num_attention_heads"],
                        max_position_embeddings=config["max_position_embeddings"],
                        rope_parameters={**rope, "rope_theta": config["rope_theta"]})
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](llama, seq_len=TOKENS)


class DeepSeek:
    """Follows the rules of modeling_deepseek.py (deepseek-ai/deepseek-moe-16b-base) for one sequence."""

    def __init__(self, config, tensors):
        self.config, self.tensors = config, tensors

    def linear(self, name, x):
        return F.linear(x, self.tensors[name + ".weight"], self.tensors.get(name + ".bias"))

    def norm(self, name, x):
        return rms_norm(x, self.tensors[name + ".weight"], self.config["rms_norm_eps"])

    def mlp(self, name, x):
        gate = F.silu(self.linear(name + ".gate_proj", x))
        return self.linear(name + ".down_proj", gate * self.linear(name + ".up_proj", x))

    def attention(self, name, x):
        heads, kv = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q, k, v = (self.linear(f"{name}.{p}_proj", x) for p in "qkv")
        size = q.shape[1] // heads
        frequencies, scale = inv_freq(self.config, size)
        angles = torch.outer(torch.arange(len(x)).float(), frequencies)
        q = rotate(q.view(-1, heads, size).transpose(0, 1), angles, scale)
        k = rotate(k.view(-1, kv, size).transpose(0, 1), angles, scale)
        v = v.view(-1, kv, size).transpose(0, 1)
        k, v = (t.repeat_interleave(heads // kv, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / size ** 0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
        return self.linear(name + ".o_proj", y)

    def moe(self, name, x):
        c = self.config
        logits = self.linear(name + ".gate", x)
        scores = logits.sigmoid() if c.get("scoring_func") == "sigmoid" else logits.softmax(-1)
        weights, ids = scores.topk(c["num_experts_per_tok"], -1)
        if c["num_experts_per_tok"] > 1 and c.get("norm_topk_prob"):
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * c.get("routed_scaling_factor", 1.0)
        rows = [sum(w * self.mlp(f"{name}.experts.{e}", x[t]) for w, e in zip(weights[t], ids[t]))
                for t in range(len(x))]
        y = torch.stack(rows)
        return y + self.mlp(name + ".shared_experts", x) if c.get("n_shared_experts") else y

    def is_moe(self, layer):
        c = self.config
        return (c.get("n_routed_experts") is not None and layer >= c.get("first_k_dense_replace", 0)
                and layer % c.get("moe_layer_freq", 1) == 0)

    def logits(self, ids=IDS[0]):
        x = self.tensors["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self.attention(name + ".self_attn", self.norm(name + ".input_layernorm", x))
            f = self.norm(name + ".post_attention_layernorm", x)
            x = x + (self.moe if self.is_moe(layer) else self.mlp)(name + ".mlp", f)
        head = "model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head"
        return self.linear(head, self.norm("model.norm", x))


def deepseek_shapes(config):
    """Returns {name: shape} of the published checkpoint."""
    c = config
    d, inner = c["hidden_size"], c["moe_intermediate_size"]
    size = c.get("head_dim") or d // c["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": [c["vocab_size"], d], "model.norm.weight": [d]}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [c["vocab_size"], d]

    def mlp(name, inner):
        shapes.update({f"{name}.gate_proj.weight": [inner, d], f"{name}.up_proj.weight": [inner, d],
                       f"{name}.down_proj.weight": [d, inner]})

    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes.update({f"{name}.input_layernorm.weight": [d],
                       f"{name}.post_attention_layernorm.weight": [d]})
        q, kv = c["num_attention_heads"] * size, c["num_key_value_heads"] * size
        for p, (rows, columns) in {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}.items():
            shapes[f"{name}.self_attn.{p}_proj.weight"] = [rows, columns]
            if c.get("attention_bias"):
                shapes[f"{name}.self_attn.{p}_proj.bias"] = [rows]
        if not DeepSeek(c, None).is_moe(layer):
            mlp(name + ".mlp", c["intermediate_size"])
            continue
        shapes[name + ".mlp.gate.weight"] = [c["n_routed_experts"], d]
        for e in range(c["n_routed_experts"]):
            mlp(f"{name}.mlp.experts.{e}", inner)
        if c.get("n_shared_experts"):
            mlp(name + ".mlp.shared_experts", inner * c["n_shared_experts"])
    return shapes


def stack(tensors):
    """Stacks experts as transformers 5 stores them: gate_up_proj and down_proj of [experts, out, in]."""
    stacked = {n: t for n, t in tensors.items() if ".experts." not in n}
    for folder in {n.split(".experts.")[0] + ".experts" for n in tensors if ".experts." in n}:
        def all_of(role):
            own = [n for n in tensors if n.startswith(folder) and n.endswith(role + ".weight")]
            return torch.stack([tensors[f"{folder}.{e}.{role}.weight"] for e in range(len(own))])
        stacked[folder + ".gate_up_proj"] = torch.cat([all_of("gate_proj"), all_of("up_proj")], 1)
        stacked[folder + ".down_proj"] = all_of("down_proj")
    return stacked


class DeepSeekMoe(Folder):
    def make(self, dtype=torch.float32, store=lambda tensors: tensors, **options):
        """Writes the checkpoint, and returns its logits according to the reference."""
        config = {**BASE, **FAMILY["deepseek"], "model_type": "deepseek", "rope_theta": 500.0,
                  "architectures": ["DeepseekForCausalLM"], "hidden_act": "silu", **options}
        tensors = {n: torch.empty(s) for n, s in deepseek_shapes(config).items()}
        randomize(tensors)
        tensors = {n: t.to(dtype) for n, t in tensors.items()}
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(config))
        save_file(store(tensors), self.model / "model.safetensors", {"format": "pt"})
        return DeepSeek(config, {n: t.float() for n, t in tensors.items()}).logits()

    def test_golden(self):
        """Checks the reference itself on the model that others have measured."""
        path = TESTS / "models/deepseek-moe-tiny"
        golden = load_file(TESTS / "golden/deepseek-moe-tiny.safetensors")
        config = json.loads((path / "config.json").read_text())
        tensors = {n: t.float() for n, t in load_folder(path).items()}
        logits = DeepSeek(config, tensors).logits(golden["input_ids"][0])
        self.assertLess(self.distance(logits, golden["logits"]), 1e-5)


DEEPSEEK = {
    "plain": {}, "all_moe": {"first_k_dense_replace": 0},
    "moe_layer_freq": {"first_k_dense_replace": 0, "moe_layer_freq": 2},
    "no_shared": {"n_shared_experts": None}, "one_shared": {"n_shared_experts": 1},
    "no_experts": {"n_routed_experts": None}, "norm_topk_prob": {"norm_topk_prob": True},
    "norm_topk_prob_of_one": {"norm_topk_prob": True, "num_experts_per_tok": 1},
    "sigmoid": {"scoring_func": "sigmoid"},
    "sigmoid_normed": {"scoring_func": "sigmoid", "norm_topk_prob": True},
    "routed_scaling": {"routed_scaling_factor": 2.5},
    "routed_scaling_normed": {"routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "attention_bias": {"attention_bias": True}, "num_key_value_heads": {"num_key_value_heads": 2},
    "head_dim": {"head_dim": 16}, "tied": {"tie_word_embeddings": True}, "eps": {"rms_norm_eps": 0.3},
    "bf16": {"dtype": torch.bfloat16}, "f16": {"dtype": torch.float16},
    "stacked": {"store": stack}, "stacked_bf16": {"store": stack, "dtype": torch.bfloat16},
    **{"rope_" + label: {"rope_scaling": rope} for label, rope in ROPES.items()},
}
DEEPSEEK["rope_dynamic"]["max_position_embeddings"] = 16
for label, options in DEEPSEEK.items():
    setattr(DeepSeekMoe, "test_" + label, lambda self, o=options: self.check(self.make(**o)))


class BeginningOfSequence(unittest.TestCase):
    """If there is a tokenizer.json, transformers 5 ignores add_bos_token and add_eos_token of
    tokenizer_config.json, and only the post-processor counts. aqhost does the same."""

    def check(self, name):
        from transformers import AutoTokenizer
        text = "In the beginning God created the heaven and the earth."
        source = TESTS / "models" / name
        settings = json.loads((source / "tokenizer_config.json").read_text())
        for flags in ({}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}):
            with self.subTest(flags=flags), tempfile.TemporaryDirectory() as folder:
                model = pathlib.Path(folder)
                for file in ("config.json", "tokenizer.json"):
                    shutil.copy(source / file, model)
                (model / "tokenizer_config.json").write_text(json.dumps({**settings, **flags}))
                (model / "lines.jsonl").write_text(json.dumps(text) + "\n")
                done = subprocess.run([BUILD / "bin/aqhost", "tokenize", "--model", model, "--jsonl",
                                       model / "lines.jsonl"], capture_output=True, text=True)
                self.assertEqual(json.loads(done.stdout), AutoTokenizer.from_pretrained(model)(text).input_ids)

    def test_olmoe(self):
        self.check("olmoe-tiny")

    def test_qwen2_moe(self):
        self.check("qwen2-moe-tiny")

    def test_mixtral(self):
        self.check("mixtral-tiny")


if __name__ == "__main__":
    unittest.main()
