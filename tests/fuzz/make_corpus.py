#!/usr/bin/python3
"""Makes the seeds in corpus/ anew from the small models: the same kinds of content, small enough for
a fuzzer. What a fuzzer found is kept beside them under another name.

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


def tensors(model, most=4):
    """The first elements of the first tensors of a model's first file."""
    raw = sorted(model.glob("*.safetensors"))[0].read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    header, data, out = json.loads(raw[8:start]), b"", {}
    out["__metadata__"] = header.pop("__metadata__", {})
    for name in sorted(header)[:most]:
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


def tokenizer(model, most=40):
    """Its tokenizer with the vocabulary of the first merges."""
    file = json.loads((model / "tokenizer.json").read_text())
    m = file["model"]
    m["merges"] = m["merges"][:most]
    parts = {p for merge in m["merges"] for p in (merge if isinstance(merge, list) else merge.split(" "))}
    joined = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in m["merges"]}
    kept = parts | joined | {t["content"] for t in file["added_tokens"]} | {m.get("unk_token")}
    m["vocab"] = {t: i for t, i in m["vocab"].items() if t in kept or len(t) == 1 and t.isascii()}
    return json.dumps(file, ensure_ascii=False, separators=(",", ":"))


def quantized(model):
    """A config.json after quantization, with every kind of target."""
    config = json.loads((model / "config.json").read_text())
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"},
            "group_1": {"targets": [r"re:model\.layers\.\d+\.mlp\.experts\.\d+\.up_proj$", "lm_head"],
                        "weights": weights}}}
    return json.dumps(config)


def npy(version, descr, shape, data):
    """A .npy file of that version."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


RECIPE = """comment: every key
default: {wq: int4, aq: bf16, group_size: 128, symmetric: true, scale_dtype: bf16}
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
