"""Writes the exports of this folder with llm-compressor. README.md says how to run it."""
import json
import pathlib
import sys

import torch
from compressed_tensors.quantization import preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

TESTS = pathlib.Path(__file__).resolve().parents[2]
VOCABULARY = 512
IGNORED = ["lm_head", "re:.*mlp.gate$"]


def write_tokenizer(folder):
    """The first tokens and merges of a tokenizer of tests/models."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((TESTS / "models/olmoe-tiny" / name).read_text())
        if name == "tokenizer.json":
            content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < VOCABULARY]
            model = content["model"]
            model["vocab"] = {token: i for token, i in model["vocab"].items() if i < VOCABULARY}
            model["merges"] = [m for m in model["merges"]
                               if "".join(m if isinstance(m, list) else m.split(" ")) in model["vocab"]]
        (folder / name).write_text(json.dumps(content, ensure_ascii=False))


def scheme(name, group_size=None):
    result = preset_name_to_scheme(name, ["Linear"])
    if group_size:
        result.weights.group_size = group_size
    return result


def main(out):
    tokenizer_folder = out / "tokenizer"
    write_tokenizer(tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = tokenizer((TESTS / "data/kjv_calib.txt").read_text()[:40000], add_special_tokens=False)["input_ids"]
    rows = [ids[i:i + 128] for i in range(0, 8 * 128, 128)]
    text = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * 128] * len(rows)})
    for name, (kind, chosen) in {
            "int4": (GPTQModifier, scheme("W4A16", 32)), "int4-zeros": (GPTQModifier, scheme("W4A16_ASYM", 32)),
            "mxfp4": (GPTQModifier, scheme("MXFP4A16")),
            "nvfp4": (QuantizationModifier, scheme("NVFP4A16"))}.items():
        torch.manual_seed(0)
        config = Qwen3MoeConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, moe_intermediate_size=64,
            intermediate_size=64, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=0, pad_token_id=1)
        Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(out / "original")
        tokenizer.save_pretrained(out / "original")
        model = Qwen3MoeForCausalLM.from_pretrained(out / "original", dtype=torch.bfloat16)
        oneshot(model=model, dataset=text, processor=tokenizer, recipe=kind(config_groups={"group_0": chosen}, ignore=IGNORED),
                max_seq_length=128, num_calibration_samples=len(rows))
        model.save_pretrained(out / name, save_compressed=True)


main(pathlib.Path(sys.argv[1]))
