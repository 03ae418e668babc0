#!/usr/bin/env python3
"""make_checkpoint.py DIR: a template_name checkpoint of two layers with random weights."""
import json
import pathlib
import random
import struct
import sys

CONFIG = {"model_type": "template_name", "architectures": ["TemplateNameForCausalLM"],
          "num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 64,
          "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
          "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
          "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
          "moe_intermediate_size": 16, "rope_theta": 10000.0}


def shapes():
    """{name: shape}"""
    hidden, inner = CONFIG["hidden_size"], CONFIG["moe_intermediate_size"]
    head = hidden // CONFIG["num_attention_heads"]
    narrow = head * CONFIG["num_key_value_heads"]
    all_of = {"model.embed_tokens": [CONFIG["vocab_size"], hidden], "model.norm": [hidden],
              "lm_head": [CONFIG["vocab_size"], hidden]}
    for l in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{l}."
        all_of |= {layer + "input_layernorm": [hidden], layer + "post_attention_layernorm": [hidden],
                   layer + "self_attn.q_proj": [hidden, hidden],
                   layer + "self_attn.k_proj": [narrow, hidden],
                   layer + "self_attn.v_proj": [narrow, hidden],
                   layer + "self_attn.o_proj": [hidden, hidden],
                   layer + "mlp.gate": [CONFIG["num_experts"], hidden]}
        for e in range(CONFIG["num_experts"]):
            expert = f"{layer}mlp.experts.{e}."
            all_of |= {expert + "gate_proj": [inner, hidden], expert + "up_proj": [inner, hidden],
                       expert + "down_proj": [hidden, inner]}
    return {name + ".weight": shape for name, shape in all_of.items()}


def main(folder):
    rng, header, data = random.Random(0), {}, b""
    for name, shape in shapes().items():
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * size if len(shape) == 1 else [rng.gauss(0, 0.2) for _ in range(size)]
        header[name] = {"dtype": "F32", "shape": shape,
                        "data_offsets": [len(data), len(data) + 4 * size]}
        data += struct.pack(f"<{size}f", *values)
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


main(pathlib.Path(sys.argv[1]))
