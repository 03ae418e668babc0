#!/usr/bin/env python3
"""Writes tokenizer_{random,features,families}.json beside itself, with Hugging Face's ids.

    pip install tokenizers==0.23.3
    tests/golden/make_tokenizer_cases.py

tokenizer_random.json has texts in which normalisation, splitting and added tokens occur together, for
the small models: [{"text", MODEL: [ids with special tokens, ids without]}].
tokenizer_features.json has variants of a small tokenizer with one or two features each:
{"bases": {NAME: tokenizer.json}, "variants": [{"base", "change": the replaced parts of the base,
"model": the replaced parts of its model, "cases": [[text, ids with special tokens]]}]}.
tokenizer_families.json has small tokenizers with the normalizer, pre-tokenizer and post-processor that the
published tokenizer.json of each family has: {"bases", "families": [{"name", "base", "change", "model",
"special": ids of "a" with special tokens}], "texts": [[text, [ids without special tokens, numbers of the
families that give them], ...]]}.
"""

import collections
import copy
import json
import pathlib
import random

from tokenizers import Tokenizer, pre_tokenizers

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
    # characters that are newer than the tables of PCRE2, or changed their category
    for regex in ["\\d", "\\D", "[a\\d]", "\\p{Mc}", "\\p{Cf}", "\\p{Latin}", "\\P{Latin}", "\\p{Arabic}",
                  "\\p{Cyrillic}", "\\p{Devanagari}", "\\p{Hiragana}", "\\p{Katakana}", "[\\p{Lo}&&[^\\p{Han}]]+",
                  "(?i:[\\p{L}\\p{N}&&[a\\d]]){2}"]:
        yield "bytes", pre(split({"Regex": regex}, "Removed")), {}, [
            "a1A\U00010d40\ua7cb\U00011f03\U0001171e\U00013439\u4e00\U00031350\u0431\u1c89\U00010ec2",
            "\U0001b132\U0001b155\U00011b00\u3042\u30a2\u0628\u0905"]
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


# The patterns of the published files. Kimi-K2 has no tokenizer.json; KIMI is from its tokenization_kimi.py.
CL100K = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
          "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
QWEN2 = CL100K.replace("{1,3}", "")
QWEN35 = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|"
          " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
UPPER, LOWER = "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}", "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"


def cased(upper, lower, after):
    """The two alternatives for words of o200k: a capitalised word, and one of capitals alone."""
    start = "[^\\r\\n\\p{L}\\p{N}]?"
    return f"{start}[{upper}]*[{lower}]+{after}|{start}[{upper}]+[{lower}]*{after}"


SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (cased(UPPER, LOWER, SHORT) + "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
TEKKEN = (cased(UPPER, LOWER, "") + "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
KIMI = ("[\\p{Han}]+|" + cased(UPPER + "&&[^\\p{Han}]", LOWER + "&&[^\\p{Han}]", SHORT) +
        "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
LING = ("'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|"
        "\\s+(?!\\S)|\\s+")
COMMAND_A = "\\d{1,3}(?=(?:\\d{3})*\\b)"
DEEPSEEK_V3 = ["\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
               "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
               " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
# The class of letters of the published file has 70 ranges more.
DEEPSEEK_V2 = ["[\r\n]", "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u0370-\u0373\u0386\u0388-\u03ff"
               "\u0400-\u0481\u1e00-\u1f15\u2126\u212a-\u212d\U00010400-\U0001044f\U0001e900-\U0001e943]+",
               "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", "\\s+$",
               "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]

SAMPLE = ("\u00c9t\u00e9 \u00e0 l'\u00e9cole; Gr\u00f6\u00dfe. \u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd "
          "\u0627\u0644\u0633\u0651\u064e\u0644\u064e\u0627\u0645 \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3001\u30ab\u30bf\u30ab\u30ca\u3002"
          "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \uc548\ub155\ud558\uc138\uc694 \U0001f600\U0001f468\u200d\U0001f469 \u0661\u0662\u0663 \uff11\uff12 12345 3.14 I'm don't WE'LL IT'S\r\n"
          "\tif (a != b) { return x[i] / 2; }\n\n    // comment\n        for i in range(10):\n")


def train(words, alphabet):
    """Returns the 140 merges of the most frequent pairs. The library's own trainer breaks ties at random."""
    parts = {word: list(word) for word in words}
    merges = []
    while len(merges) < 140:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(parts[word], parts[word][1:]):
                if set(pair[0] + pair[1]) <= alphabet:
                    pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(list(best))
        for tokens in parts.values():
            i = 0
            while i + 1 < len(tokens):
                if (tokens[i], tokens[i + 1]) == best:
                    tokens[i:i + 2] = ["".join(best)]
                i += 1
    return merges


def trained_bases():
    """Returns small models trained on SAMPLE and English text, with added tokens of all kinds."""
    lines = (HERE / "../data/kjv_calib.txt").read_text()[:20000].splitlines(True) + [SAMPLE] * 10
    added = [token("<|endoftext|>", 0, special=True), token("<\uff5cbos\u2581of\u2581text\uff5c>", 0, special=True),
             token("<think>", 0), token("[gMASK]", 0, special=True), token("<sop>", 0, special=True),
             token("<mask>", 0, lstrip=True, special=True), token("<pad>", 0, rstrip=True, special=True),
             token("word", 0, single_word=True), token("\u00e9t\u00e9", 0, normalized=True),
             token("\u0645", 0, single_word=True, lstrip=True, rstrip=True, normalized=True),
             token("   ", 0), token("\t\t", 0, normalized=True)]
    start = ["<unk>", "<s>", "</s>"]

    def base(pre_tokenizer, alphabet, reserved, **model):
        words = collections.Counter(w for line in lines for w, _ in pre_tokenizer.pre_tokenize_str(line))
        if not alphabet:
            seen = collections.Counter(c for w, n in words.items() for c in w * n)
            alphabet = [c for c, _ in sorted(seen.items(), key=lambda one: (-one[1], one[0]))[:100]]
        merges = train(words, set(alphabet))
        vocab = dict.fromkeys(reserved + alphabet + ["".join(pair) for pair in merges])
        return {"version": "1.0", "truncation": None, "padding": None, "decoder": None, "model": {
            "type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            **model, "vocab": {t: i for i, t in enumerate(vocab)}, "merges": merges}}

    built = {"bytes": base(pre_tokenizers.ByteLevel(add_prefix_space=False),
                           sorted(pre_tokenizers.ByteLevel.alphabet()), [], unk_token=None, fuse_unk=False,
                           byte_fallback=False, ignore_merges=False),
             "sentence": base(pre_tokenizers.Metaspace(), [], start + [f"<0x{b:02X}>" for b in range(256)],
                              unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False)}
    built["bytes"]["added_tokens"] = added
    built["sentence"]["added_tokens"] = [token(c, 0, special=True) for c in start] + added
    return built


def families(built):
    """Returns (name, base, change, model) for each family."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    spaced = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    digits = {"type": "Digits", "individual_digits": True}

    def splits(*patterns, behavior="Isolated", invert=False):
        return [{"type": "Split", "pattern": {"Regex": p}, "behavior": behavior, "invert": invert}
                for p in patterns]

    def chain(*steps, normalizer=None, post=byte_level):
        return {"normalizer": normalizer, "post_processor": post,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]}}

    def template(base, before, after):
        ids = {t: Tokenizer.from_str(json.dumps(base)).token_to_id(t) for t in before + after}
        parts = [{"SpecialToken": {"id": t, "type_id": 0}} for t in before]
        parts += [{"Sequence": {"id": "A", "type_id": 0}}]
        parts += [{"SpecialToken": {"id": t, "type_id": 0}} for t in after]
        return {"type": "TemplateProcessing", "single": parts, "pair": parts + [
            {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {
                t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ids.items()}}

    def plain(normalizer, pre_tokenizer, post):
        return {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post}

    def metaspace(scheme):
        return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}

    nfc, none = {"type": "NFC"}, {"type": "Sequence", "normalizers": []}
    bos = template(built["bytes"], ["<\uff5cbos\u2581of\u2581text\uff5c>"], [])
    start = template(built["sentence"], ["<s>"], [])
    merged = {"ignore_merges": True}
    gpt2 = {**byte_level, "use_regex": True}
    yield "qwen3", "bytes", chain(*splits(QWEN2), normalizer=nfc), {}
    yield "qwen3.5", "bytes", chain(*splits(QWEN35), normalizer=nfc), {}
    yield "gpt-oss", "bytes", chain(*splits(O200K)), merged
    yield "gpt-4o", "bytes", chain(*splits(O200K, behavior="Removed", invert=True)), {}
    yield "minimax-m2", "bytes", chain(*splits(O200K), normalizer=nfc), {}
    yield "tekken", "bytes", chain(*splits(TEKKEN), post=bos), merged
    yield "glm-4.5", "bytes", chain(*splits(CL100K), post={"type": "Sequence", "processors": [
        byte_level, template(built["bytes"], ["[gMASK]", "<sop>"], [])]}), merged
    yield "deepseek-v3", "bytes", chain(*splits(*DEEPSEEK_V3), normalizer=none, post=bos), {}
    yield "deepseek-v2", "bytes", chain(*splits(*DEEPSEEK_V2), digits, normalizer=none, post=bos), {}
    yield "kimi-k2", "bytes", chain(*splits(KIMI)), merged
    yield "ling", "bytes", chain(*splits(LING)), {}
    yield "command-a", "bytes", chain(*splits(COMMAND_A, O200K)), {}
    yield "granite", "bytes", plain(None, gpt2, byte_level), {}
    yield "granite-digits", "bytes", plain(None, {"type": "Sequence", "pretokenizers": [digits, gpt2]}, byte_level), {}
    yield "ernie-4.5", "sentence", plain(spaced, None, template(
        built["sentence"], ["<s>", "<sop>"], ["<|endoftext|>"])), {}
    yield "ernie-metaspace", "sentence", plain(None, metaspace("never"), None), {}
    yield "llama-2", "sentence", plain({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"}, spaced]}, None, start), {}
    yield "llama-metaspace", "sentence", plain(None, metaspace("first"), start), {}
    yield "gemma", "sentence", plain(spaced, {"type": "Split", "pattern": {"String": " "}, "invert": False,
                                              "behavior": "MergedWithPrevious"}, start), {}


FAMILY_TEXTS = [
    "", "Hello, world! It's we'LL they'VE I'm DON'T o'd 's 'S \u2019s 'Re", "x=1;\r\n\r\n\ty\t\tz \r \n\n  w\r\n",
    "1234567890123 3.14 1,000,000 0x1F \u0661\u0662\u0663\u0664 \u0967\u0968 \uff11\uff12 \u00b2\u00bd\u2177 \U0001d7ce\U0001d7cf 12\u0663",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01abc\u4e2d\u6587123 \u3053\u3093\u306b\u3061\u306f\u30ab\u30bf\u30fc\u3002\ud55c\uad6d\uc5b4 \u9fa5\u9fa6\u9fff\u3400\U00020000\U0002ebf0\U00031350\u3005\u3007",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e51\u0e52", "\u0627\u0644\u0633\u0651\u064e\u0644\u064e\u0627\u0645\u064f \u0639\u064e\u0644\u064e\u064a\u0652\u0643\u064f\u0645\u0652\u061f \u0645 \u0640\u0640",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05b9\u05dc\u05b8\u05dd\u05be\u05d0\u05b3 \ufb2a", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0915\u093f\u0924\u093e\u092c\u0964 \u0b95\u0bcb",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd \u2764\ufe0f 1\ufe0f\u20e3 \U0001f1e9\U0001f1ea\U0001fae8", "A\u030a q\u0323\u0307 \u0301a \u0301\u0301 e\u0301\u0327 \u212b\ufb01\uac00\u1100\u1161\u11a8",
    "a\u00a0b\u3000c \u3000 d\u2003\u2028e\u0085f\u200bg\ufeffh\u180e  \u00a0 i", "\x00\x01\x1b\x7f\u0080\u009f\u00ad\u200e\u2060\ufffd a\x0b\x0cb",
    "\ue000\uf8ff\U000f0000\U0010fffd\u0378\ufdd0\uffff\U0001fffe\U0010ffff\ud7ff", "\u01c5\u01c8\u1f88 \u02b0\u00aa CamelCase HTTPServer snake_case \u0130I\u0131 \u017f",
    "a <mask> b<mask>c <pad> \n d <think>x</think> words word sword word\u0301 \u00e9t\u00e9 \u00c9t\u00e9 ete\u0301t\u00e9", "a\u0645b \u0645 c    d     e\t\t\tf[gMASK]<sop>g",
    "<|endoftext|>a <\uff5cbos\u2581of\u2581text\uff5c> b<|endoftext|> <|endoftex", "<s>a</s> <unk>\u2581b \u2581\u2581 <0x0A> \u2581", "http://a.b/c?d=1&e=%20 //\r\n/*\n*/ #!/x $x @y ~z",
    "   leading and trailing   ", " \n ", "\t", "\u1c89\u1c8a\ua7cb\ua7da\U00010d50\U00010d40\U00010d41\U0001e4f0 \u0897\U0001171e\U0001e5ee",
]


def family_cases():
    rng = random.Random(21)
    built = trained_bases()
    made = [{"name": n, "base": b, "change": c, "model": m} for n, b, c, m in families(built)]
    tokenizers = []
    for family in made:
        whole = copy.deepcopy(built[family["base"]])
        whole.update(family["change"])
        whole["model"].update(family["model"])
        tokenizers.append(Tokenizer.from_str(json.dumps(whole)))
        family["special"] = tokenizers[-1].encode("a").ids
    added = [t["content"] for t in built["sentence"]["added_tokens"]]
    texts = []
    for text in FAMILY_TEXTS + [random_text(rng, added) for _ in range(100)]:
        numbers = {}
        for number, tokenizer in enumerate(tokenizers):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
            numbers.setdefault(ids, []).append(number)
        texts.append([text, *[[ids, of] for ids, of in numbers.items()]])
    return {"bases": built, "families": made, "texts": texts}


def write(name, value):
    (HERE / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    write("tokenizer_random.json", random_cases())
    write("tokenizer_features.json", feature_cases())
    write("tokenizer_families.json", family_cases())
