#!/usr/bin/python3
"""Creates the seeds in corpus/ from the small models, with the same kinds of content, but small enough
for a fuzzer. Inputs that a fuzzer has found are in the same folders under other names.

    tests/fuzz/make_corpus.py
"""
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
MODELS = sorted((HERE.parent / "models").glob("*-tiny"))


def write(target, name, content):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def tensors(model, count=4):
    """Returns a safetensors file with the first elements of the first tensors of a model."""
    raw = sorted(model.glob("*.safetensors"))[0].read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    header, data, out = json.loads(raw[8:start]), b"", {}
    out["__metadata__"] = header.pop("__metadata__", {})
    for name in sorted(header)[:count]:
        begin = start + header[name]["data_offsets"][0]
        shape = [min(d, 2) for d in header[name]["shape"]]
        size = 2
        for d in shape:
            size *= d
        out[name] = {"dtype": header[name]["dtype"], "shape": shape,
                     "data_offsets": [len(data), len(data) + size]}
        data += raw[begin:begin + size]
    text = json.dumps(out, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def tokenizer(model, count=40):
    """Returns the tokenizer of a model with the vocabulary of its first merges."""
    file = json.loads((model / "tokenizer.json").read_text())
    m = file["model"]
    m["merges"] = m["merges"][:count]
    parts = {p for merge in m["merges"] for p in (merge if isinstance(merge, list) else merge.split(" "))}
    joined = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in m["merges"]}
    kept = parts | joined | {t["content"] for t in file["added_tokens"]} | {m.get("unk_token")}
    m["vocab"] = {t: i for t, i in m["vocab"].items() if t in kept or len(t) == 1 and t.isascii()}
    return json.dumps(file, ensure_ascii=False, separators=(",", ":"))


def chat(model):
    """Returns such a tokenizer with the added tokens of a chat template. It is small, because every run of
    the fuzzer reads it again."""
    file = json.loads(tokenizer(model))
    first = 1 + max(file["model"]["vocab"].values())
    for i in range(15):
        file["added_tokens"].append({
            "id": first + i, "content": f"<|reserved_{i}|>", "single_word": i % 5 == 1,
            "lstrip": i % 3 == 1, "rstrip": i % 7 == 1, "normalized": i % 2 == 1, "special": i % 4 != 1})
    return json.dumps(file, ensure_ascii=False, separators=(",", ":"))


def quantized(model):
    """Returns a config.json as it is after quantization, with every kind of target."""
    config = json.loads((model / "config.json").read_text())
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"},
            "group_1": {"targets": [r"re:model\.layers\.\d+\.mlp\.experts\.\d+\.up_proj$", "lm_head"],
                        "weights": weights}}}
    return json.dumps(config)


def safetensors(tensors):
    """Returns a safetensors file of {name: (dtype, shape, data)}."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def npy(version, descr, shape, data):
    """Returns a .npy file of this version."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


# The modules of EXPORTS by format: options in config.json, and the tensors of a matrix of 32 x 64.
GROUP = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
BLOCK = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
SHAPE = ("I64", [2], struct.pack("<2q", 32, 64))
EXPORTS = {
    "int4": ("pack-quantized", GROUP, None, {
        "weight_packed": ("I32", [32, 8]), "weight_scale": ("BF16", [32, 2]), "weight_shape": SHAPE}),
    "int4_short_shape": ("pack-quantized", GROUP, None, {  # as of Kimi-K2-Thinking
        "weight_packed": ("I32", [32, 8]), "weight_scale": ("BF16", [32, 2]),
        "weight_shape": ("I32", [2], struct.pack("<2i", 32, 64))}),
    "int4_zero_points": ("pack-quantized", {**GROUP, "symmetric": False}, None, {
        "weight_packed": ("I32", [32, 8]), "weight_scale": ("BF16", [32, 2]), "weight_shape": SHAPE,
        "weight_zero_point": ("I32", [4, 2])}),
    "int8": ("int-quantized", {**TOKEN, "strategy": "channel", "dynamic": False}, TOKEN, {
        "weight": ("I8", [32, 64]), "weight_scale": ("BF16", [32, 1])}),
    "fp8": ("float-quantized", {**TOKEN, "type": "float", "strategy": "channel", "dynamic": False},
            {**TOKEN, "type": "float"},
            {"weight": ("F8_E4M3", [32, 64]), "weight_scale": ("F32", [32, 1])}),
    "fp8_matrix": ("naive-quantized", {**TOKEN, "type": "float", "strategy": "tensor", "dynamic": False},
                   None, {"weight": ("F8_E4M3", [32, 64]), "weight_scale": ("F32", [1])}),
    "mxfp4": ("mxfp4-pack-quantized", {**GROUP, "type": "float"}, None, {
        "weight_packed": ("U8", [32, 32]), "weight_scale": ("U8", [32, 2])}),
    "nvfp4": ("nvfp4-pack-quantized", BLOCK, {**BLOCK, "dynamic": "local"}, {
        "weight_packed": ("U8", [32, 32]), "weight_scale": ("F8_E4M3", [32, 4]),
        "weight_global_scale": ("F32", [1]), "input_global_scale": ("F32", [1])}),
    "nf4": ("nf4-pack-quantized", {**GROUP, "type": "float", "element": "nf4"}, None, {
        "weight_packed": ("U8", [32, 32]), "weight_scale": ("BF16", [32, 2]), "weight_shape": SHAPE}),
}
BYTES = {"I64": 8, "I32": 4, "F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E8M0": 1}
ONES = {"F32": struct.pack("<f", 0.5), "BF16": b"\x00\x3f", "F16": b"\x00\x38"}


def packed(kind, shape):
    """Returns values of this type: codes of every kind, scales of 1/2, zero points of 0."""
    count = 1
    for d in shape:
        count *= d
    if kind in ONES:
        return ONES[kind] * count
    return bytes((0x31 + i * 7) % 0x70 for i in range(count * BYTES[kind]))


def export(config, modules):
    """Returns an input of fuzz_export: config.json, header and data, separated by zero bytes."""
    file = safetensors({f"{name}.{suffix}": t if len(t) == 3 else (*t, packed(*t))
                        for name, stored in modules.items() for suffix, t in stored.items()})
    length, = struct.unpack("<Q", file[:8])
    return b"\0".join((json.dumps(config).encode(), file[8:8 + length], file[8 + length:]))


def compressed(formats):
    """Returns an export in compressed-tensors with one module of each of these formats."""
    groups, modules = {}, {"model.norm": {"weight": ("BF16", [64])}}
    for i, name in enumerate(formats):
        layout, weights, activations, stored = EXPORTS[name]
        module = f"model.layers.{i}.mlp.experts.3.up_proj"
        modules[module] = stored
        groups[f"group_{i}"] = {"targets": [f"re:model\\.layers\\.{i}\\..*up_proj$"], "format": layout,
                                "weights": weights, "input_activations": activations}
    return export({"model_type": "olmoe", "quantization_config": {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["lm_head"],
        "config_groups": groups}}, modules)


def gptq():
    """Returns an export in AutoGPTQ's container with everything that `dynamic` can contain."""
    groups = ("I32", [64], struct.pack("<64i", *(i // 32 for i in range(64))))
    zeros = ("I32", [2, 4], b"\x77" * 32)
    coarse = ("I32", [1, 8], b"\x7f" * 32)
    one_group = ("I32", [64], bytes(256))
    return export({"quantization_config": {
        "quant_method": "gptq", "checkpoint_format": "gptq", "bits": 4, "group_size": 32, "sym": True,
        "desc_act": False, "lm_head": False, "pack_dtype": "int32", "dynamic": {
            r"+:model\.layers\.\d+\.self_attn\.q_proj$": {"bits": 8, "group_size": 64},
            r"-:lm_head$": {}}}}, {
        "model.layers.0.mlp.up_proj": {"qweight": ("I32", [8, 32]), "qzeros": zeros,
                                       "scales": ("F16", [2, 32]), "g_idx": groups},
        "model.layers.0.self_attn.q_proj": {"qweight": ("I32", [16, 32]), "qzeros": coarse,
                                            "scales": ("F16", [1, 32]), "g_idx": one_group},
        "lm_head": {"weight": ("BF16", [2, 64])}})


def fp8_blocks():
    """Returns a checkpoint in FP8 blocks with every type of scales, and a stack of experts."""
    return export({"model_type": "olmoe", "quantization_config": {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}}, {
        "model.norm": {"weight": ("BF16", [40])},
        "q_proj": {"weight": ("F8_E4M3", [20, 40]), "weight_scale_inv": ("F32", [2, 2])},
        "k_proj": {"weight": ("F8_E4M3", [16, 32]), "weight_scale_inv": ("BF16", [1, 1])},
        "experts": {"down_proj": ("F8_E4M3", [2, 17, 8]), "down_proj_scale_inv": ("F8_E8M0", [2, 2, 1])}})


def mxfp4_experts():
    """Returns a checkpoint whose experts are stored as those of gpt-oss."""
    return export({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, {
        "model.norm": {"weight": ("BF16", [64])},
        "experts": {"gate_up_proj_blocks": ("U8", [2, 6, 2, 16]), "gate_up_proj_scales": ("U8", [2, 6, 2]),
                    "gate_up_proj_bias": ("BF16", [2, 6])}})


RECIPE = """comment: every key
default: {wq: int4, aq: bf16, group_size: 128, symmetric: true, scale_dtype: bfloat16}
overrides:
  - {pattern: "*.mlp.experts.*", wq: mxfp6, group_size: 32, element: e2m3, scale_rule: even}
  - pattern: 're:model\\.layers\\.(0|1)\\..*'
    algorithm: rtn
    routing_power: 2
  - {pattern: "*.mlp.gate", skip: true, comment: router}
sequential: true
actorder: static
percdamp: 0.01
min_tokens: 64
calibrate_all_experts: false
strict: false
"""

for one in MODELS:
    write("safetensors", one.name, tensors(one))
    write("tokenizer", one.name, tokenizer(one))
    write("tokenizer", one.name + "-chat", chat(one))
    write("config", one.name, (one / "config.json").read_bytes())
write("config", "quantized", quantized(MODELS[-1]))
write("npy", "ids.npy", npy(1, "<i4", "(2, 3)", struct.pack("<6i", *range(6))))
write("npy", "bytes.npy", npy(2, "|u1", "(3,)", b"abc"))
write("recipe", "every_key.yaml", RECIPE)
write("recipe", "shipped.yaml", (HERE.parents[1] / "configs/olmoe_int4.yaml").read_bytes())
write("recipe", "json.json", json.dumps({
    "default": {"wq": "int4", "aq": "bf16", "group_size": 128},
    "overrides": [{"pattern": "model.layers.*.self_attn.q_proj", "wq": "mxfp6", "group_size": 64},
                  {"pattern": "model.layers.*.mlp.gate", "wq": "bf16", "skip": True}]}, indent=1))

write("plan", "shipped", b" " + (HERE.parents[1] / "configs/olmoe_int4.yaml").read_bytes())
write("plan", "every_key", " " + RECIPE)
write("plan", "gptq", "gdefault: {wq: int4, group_size: 64}\noverrides: [{pattern: '*.gate', skip: true}]\n")
write("plan", "activations", " default: {wq: nvfp4, aq: nvfp4, group_size: 16}\noverrides:\n"
      "  - {pattern: '*.mlp.*', wq: fp8, aq: fp8, group_size: -1, refine: {steps: 2, batch: 1}}\n")
for one in EXPORTS:
    write("export", one, compressed([one]))
write("export", "mixed", compressed(["int4", "fp8", "mxfp4"]))
write("export", "gptq", gptq())
write("export", "fp8_blocks", fp8_blocks())
write("export", "mxfp4_experts", mxfp4_experts())
for i, one in enumerate(MODELS):
    write("chat", one.name, bytes([i, 0]) + "<|reserved_7|> In the beginning <s>, it's  42 \u00e9\n".encode())
write("chat", "null_in_the_model", bytes([2, 1, 3, 1, 5, 0]) + b"text")
write("chat", "two_edits", bytes([1, 2, 11, 4, 1, 0, 1, 3, 0, 28, 1, 2, 0, 1, 4, 0]) + b"some more text")
write("corpus", "lines", 'j{"text": "In the beginning God created"}\n\n{"text": "caf\\u00e9 \U0001f600 <s>", "id": 3}\n')
write("corpus", "text", "tIn the beginning God created the heaven and the earth.\n")
write("corpus", "ids", b"n" + npy(1, "<i8", "(2, 5)", struct.pack("<10q", *range(10))))
ids = struct.pack("<10i", *range(10))
write("corpus", "masked", b"s" + safetensors({
    "input_ids": ("I32", [2, 5], ids), "attention_mask": ("U8", [2, 5], bytes([0, 1, 1, 1, 1] * 2))}))
