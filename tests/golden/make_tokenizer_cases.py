#!/usr/bin/env python3
"""Writes tokenizer_random.json and tokenizer_features.json beside itself, with Hugging Face's ids.

    pip install tokenizers==0.23.3
    tests/golden/make_tokenizer_cases.py

tokenizer_random.json has texts in which normalisation, splitting and added tokens occur together, for
the small models: [{"text", MODEL: [ids with special tokens, ids without]}].
tokenizer_features.json has variants of a small tokenizer with one or two features each:
{"bases": {NAME: tokenizer.json}, "variants": [{"base", "change": the replaced parts of the base,
"model": the replaced parts of its model, "cases": [[text, ids with special tokens]]}]}.
"""

import copy
import json
import pathlib
import random

from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
MODELS = ["olmoe-tiny", "qwen2-moe-tiny", "mixtral-tiny", "deepseek-moe-tiny"]

POOLS = [
    "abcdefgXYZ",
    " \t\n\r\v\f\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\u180e\ufeff",
    "0123456789\u0663\u00b2\u00bd\u2177",
    ".,;:!?'\"()[]{}<>@#$%^&*-_=+|\\/`~",
    "\u00e9\u00e0\u00df\u017f\u0130\u0131\u212a\u212b\ufb01",
    "\u0301\u0308\u0327\u0323\u093c\u0338\u3099\u1161\u11a8\uac00\u1100",
    # newer than the Unicode tables of some libraries
    "\u0897\u089c\u1ac5\u0c3c\U00010d24\U00031350\U0002ebf0\U0001fae8\U00016d70\U0001e4f0\U00013460",
]
WORDS = ["the", " and", "'s", "'S", "'\u017f", "'LL", "don't", "of ", " \u2581", "\u2581", "<0x0A>",
         "\n\n", "  ", "    ", "\r\n", "\u7684", "q\u0323\u0307", "A\u030a", "12345"]


def random_text(rng, tokens):
    parts = []
    for _ in range(rng.choice([2, 5, 9, 14])):
        kind = rng.random()
        if kind < 0.3:
            parts.append(rng.choice(WORDS))
        elif kind < 0.8:
            parts.append(rng.choice(rng.choice(POOLS)))
        elif kind < 0.88 and tokens:
            parts.append(rng.choice(tokens))
        else:
            parts.append(rng.choice(["a", "B", " ", "\n", "\u00e9"]) * rng.randrange(2, 7))
    return "".join(parts)


def random_cases():
    rng = random.Random(20)
    models = {m: Tokenizer.from_file(str(HERE / "../models" / m / "tokenizer.json")) for m in MODELS}
    added = sorted({t.content for m in models.values() for t in m.get_added_tokens_decoder().values()})
    cases = []
    for _ in range(300):
        text = random_text(rng, added)
        case = {"text": text}
        for name, model in models.items():
            case[name] = [model.encode(text, add_special_tokens=s).ids for s in (True, False)]
        cases.append(case)
    return cases


def small_base(name, alphabet, merges, start):
    """Returns the tokenizer with a vocabulary of `alphabet` and the results of `merges`."""
    base = json.loads((HERE / "../models" / name / "tokenizer.json").read_text())
    tokens = start + alphabet + ["".join(pair) for pair in merges]
    base["model"]["vocab"] = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    base["model"]["merges"] = merges
    base["added_tokens"] = []
    return base


def bases():
    source = json.loads((HERE / "../models/olmoe-tiny/tokenizer.json").read_text())["model"]["vocab"]
    bytes_ = small_base("olmoe-tiny", sorted(t for t in source if len(t) == 1),
                        [["t", "h"], ["th", "e"], ["\u0120", "the"], ["\u0120", "a"], ["a", "a"],
                         ["aa", "aa"], ["1", "2"], ["\u0120", "\u0120"]], [])
    sentence = small_base("mixtral-tiny", list("\u2581abcdehtxyz ,.1234<>|\n\u00e9"),
                          [["t", "h"], ["th", "e"], ["\u2581", "the"], ["\u2581", "a"], ["a", "a"],
                           ["\u2581", "\u2581"], ["a", "b"], ["ab", "\u2581"]],
                          ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)])
    # only the parts that the tests need
    sentence["added_tokens"] = [token(c, i, special=True) for i, c in
                                enumerate(["<unk>", "<s>", "</s>"])]
    return {"bytes": bytes_, "sentence": sentence}


def token(content, number, **flags):
    return {"id": number, "content": content, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": False, **flags}


def variants():
    """Returns (base, change, model, further texts) for each variant."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}

    def pre(*steps):
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]}}

    def split(pattern, behavior="Isolated", invert=False):
        return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}

    def normal(*steps):
        return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}

    for behavior in ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for invert in [False, True]:
            yield "bytes", pre(split({"Regex": "\\s|a"}, behavior, invert)), {}, ["aa a the  a", "a"]
        yield "bytes", pre(split({"String": "a"}, behavior)), {}, ["aaxaa the", "xaxax"]
    # empty matches; Ruby's anchors, intervals, classes and properties
    for regex in ["a*", "\\b", "\\B", "^.", ".$", "\\p{N}{1,3}+", "a{,2}", "\\h+", "\\H", "\\w+",
                  "\\W", "[\\w']+", "[^\\S\\n]+", "\\p{Han}+", "\\p{^L}", "\\P{N}+",
                  "\\u0061+", "\\v", "(?i)THE|\u017f", "(?<=a)a|a(?!a)", "a++b?", "[{}a]{2}", "x{a",
                  "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
                  "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"]:
        yield "bytes", pre(split({"Regex": regex}, "Removed")), {}, [
            "the aa\naaa 12345\n", "x{a aaaa{}a\u0b0b\v\u4e00\u4e01 \u00b2\u0301'S \u017f-"]
    for individual in [False, True]:
        yield "bytes", pre({"type": "Digits", "individual_digits": individual}), {}, [
            "a1212 12\u066312\u00bd", "\U00011de0\U0001d2c012"]
    for prefix in [False, True]:
        for regex in [False, True]:
            yield "bytes", {"pre_tokenizer": {**byte_level, "add_prefix_space": prefix,
                                              "use_regex": regex}}, {}, ["the the", " the", ""]
    yield "bytes", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        split({"Regex": "x"}), {**byte_level, "add_prefix_space": True}]}}, {}, ["thexthe x the"]
    for form in ["NFC", "NFD", "NFKC", "NFKD"]:
        yield "bytes", {"normalizer": {"type": form}}, {}, [
            "A\u030a\ufb01\u212b\u1e9b\u0323\u0301\u0327\uac01\u32ff\U00011935\U00011930",
            "a\u0301\u0327" * 50, "a\U00010d24\u0327\u0301"]
    yield "bytes", normal({"type": "Lowercase"}), {}, ["THE \u0130\u03a3\u1e9e"]
    for left in [False, True]:
        for right in [False, True]:
            yield "sentence", normal({"type": "Strip", "strip_left": left, "strip_right": right}), {}, [
                " \u3000the\u0085 ", "  ", "<s>  a </s> b "]
    yield "sentence", normal({"type": "Replace", "pattern": {"Regex": "[ab]+"}, "content": "x"},
                             {"type": "Replace", "pattern": {"String": "."}, "content": ""}), {}, [
                                 "aab.c.(.)", "...", "$0"]
    yield "sentence", normal(), {}, ["the a", "\u00e8"]
    for scheme in ["always", "first", "never"]:
        for cut in [False, True]:
            yield "sentence", {"normalizer": None, "pre_tokenizer": {
                "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme,
                "split": cut}}, {}, ["the  a", " the", "a<s>the", "<s> a", "\u2581a\u2581"]
    yield "sentence", {**normal({"type": "Strip", "strip_left": True, "strip_right": False}),
                       "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581",
                                         "prepend_scheme": "first"}}, {}, ["the", " the", "  the a"]
    # a merge joins the mark to the text before it, so words are not split there
    yield "sentence", {}, {}, ["ab ab ab", "ab the\u2581\u2581ab  ab", "a  b   c"]
    for fuse in [False, True]:
        for fallback in [False, True]:
            for unknown in [None, "<unk>"]:
                yield "sentence", {}, {"fuse_unk": fuse, "byte_fallback": fallback,
                                       "unk_token": unknown}, ["a\u4e00\u4e01 QQ\u00e9Q", "Q"]
    yield "bytes", {}, {"ignore_merges": True}, ["the the", "aaaaaa"]
    yield "sentence", {}, {"ignore_merges": True}, ["<0x0A> the", "the"]
    yield "sentence", {"normalizer": None}, {"ignore_merges": True}, ["<0x0A>\u2581a", "the"]
    yield "bytes", {}, {"merges": ["t h", "th e", "a a", "aa aa"]}, ["the aaaaaaa"]
    flags = ["single_word", "lstrip", "rstrip", "normalized", "special"]
    for bits in range(32):
        chosen = {flag: bool(bits >> i & 1) for i, flag in enumerate(flags)}
        for base in ["bytes", "sentence"]:
            yield base, {"added_tokens": [token("<x>", 900, **chosen), token("<x>y", 901),
                                          token("the", 902, **chosen)]}, {}, [
                "a <x> b", "a<x>b", "<x>y<x> <x>z", " \t<x>\u00a0\n<x>", "bathe the\u0301 the", "_<x>-<x>\u200d"]
    yield "bytes", {"added_tokens": [token("A", 900, rstrip=True), token(" B", 901, lstrip=True),
                                     token("  ", 902, lstrip=True, rstrip=True)]}, {}, [
                                         "A B c", "A  B", "A    c", " A  "]
    yield "sentence", {"post_processor": None}, {}, ["a"]
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    specials = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2, 2], "tokens": ["</s>", "</s>"]}}
    yield "sentence", {"post_processor": {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "TemplateProcessing", "single": single, "pair": single + [
            {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": specials}]}}, {}, ["a", ""]


def feature_cases():
    built = bases()
    made = []
    for base, change, model, texts in variants():
        whole = copy.deepcopy(built[base])
        whole.update(change)
        whole["model"].update(model)
        tokenizer = Tokenizer.from_str(json.dumps(whole))
        cases = [[text, tokenizer.encode(text).ids] for text in texts + ["the 12 aaa, X\u00e9"]]
        made.append({"base": base, "change": change, "model": model, "cases": cases})
    return {"bases": built, "variants": made}


def write(name, value):
    (HERE / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    write("tokenizer_random.json", random_cases())
    write("tokenizer_features.json", feature_cases())
