"""Tests that vLLM computes the perplexity of aqhost from exports in every format that `plan` says it loads,
and that it refuses those that `plan` says it refuses.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that
`tools/test --engines` creates, and it is skipped elsewhere. All models run in one process, one after the
other. Where vLLM has no kernel for this CPU, plain_kernels.py takes its place; the output says where.
"""
import gc
import importlib.util
import json
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import traceback
import unittest

from common import LENGTH, MODELS, TESTS, WINDOWS, aqhost, window_ids, without_avx2

INT4 = "{wq: int4, group_size: 128}"
# vLLM's classes of schemes and layouts, each with the sizes of groups that differ in it
LOADS = {
    "int4 g128": INT4,
    "int4 g64": "{wq: int4, group_size: 64}",
    "int4 g32": "{wq: int4, group_size: 32}",
    "int4 row": "{wq: int4, group_size: -1}",
    "int4 g128 with zero points": "{wq: int4, group_size: 128, symmetric: false}",
    "int4 g32 with zero points": "{wq: int4, group_size: 32, symmetric: false}",
    "int8 g128": "{wq: int8, group_size: 128}",
    "int8 row": "{wq: int8, group_size: -1}",
    # on GPUs by the kernels of Humming
    "int2 g32": "{wq: int2, group_size: 32}",
    "int3 g64": "{wq: int3, group_size: 64}",
    "int5 g128": "{wq: int5, group_size: 128}",
    "int6 g128 with zero points": "{wq: int6, group_size: 128, symmetric: false}",
    "int8 g128 with zero points": "{wq: int8, group_size: 128, symmetric: false}",
    "int8 W8A8": "{wq: int8, group_size: -1, aq: int8}",
    "mxfp4": "{wq: mxfp4}",
    "nvfp4": "{wq: nvfp4}",
    "fp8 W8A8": "{wq: fp8, aq: fp8}",
    "mxfp8": "{wq: mxfp8}",
    "int4 g64, attention in fp8": "{wq: int4, group_size: 64}, overrides: [{pattern: '*.self_attn.*', wq: fp8}]",
    "GPTQ int4 g128": INT4,
    "GPTQ int8 g32": "{wq: int8, group_size: 32}",
}
# of the other families, those that differ in what vLLM fuses: zero points, matrices, groups, the layout
LOADS_EVERYWHERE = ("int4 g128", "int4 g32 with zero points", "nvfp4", "fp8 W8A8", "GPTQ int4 g128")
# DeepSeek-MoE's attention has no names in vLLM, which takes it for quantized where all else is, and otherwise not
DENSE_ATTENTION = "{pattern: '*.self_attn.*', skip: true}"
LOADS_DEEPSEEK = {
    **{scheme: LOADS[scheme] for scheme in LOADS_EVERYWHERE if not scheme.startswith("GPTQ")},
    "GPTQ int4 g128, dense attention": f"{INT4}, overrides: [{DENSE_ATTENTION}]",
    "int4 g128 and g64, dense attention":
        f"{INT4}, overrides: [{DENSE_ATTENTION}, {{pattern: '*.shared_experts.*', group_size: 64}}]",
}
# with what vLLM says
REFUSED = {
    "mxfp6": ("{wq: mxfp6}", "No compressed-tensors compatible scheme was found"),
    "fp8 W8A16": ("{wq: fp8}", "For Fused MoE layers, only format: pack-quantized"),
    # its loader wants a byte for each weight
    "int4 W4A8": ("{wq: int4, group_size: 128, aq: int8}", "index 0 is out of bounds"),
    "GPTQ int3": ("{wq: int3, group_size: 128}", "Unsupported quantization config: bits=3"),
    "experts in two formats": (f"{INT4}, overrides: [{{pattern: '*.experts.*.up_proj', group_size: 64}}]",
                               "All MoE projections need to have same quantization scheme"),
}
REFUSED_DEEPSEEK = {
    "GPTQ int4 g128": (INT4, "layers.0.self_attn.qkv_proj.qweight"),
    "int4 g128, dense attention": (f"{INT4}, overrides: [{DENSE_ATTENTION}]",
                                   "layers.0.self_attn.qkv_proj.weight"),
    "int4 g128, attention in g64": (f"{INT4}, overrides: [{{pattern: '*.self_attn.*', group_size: 64}}]",
                                    "layers.0.self_attn.qkv_proj.weight_packed"),
}
# the published checkpoint ships such a file; vLLM does not know the model_type without it
DEEPSEEK = """from transformers import PretrainedConfig


class DeepseekConfig(PretrainedConfig):
    model_type = "deepseek"
"""


def serve(model, use, skip_tokenizer_init=True):
    """Loads the model in vLLM, and returns use(vLLM's object). One model can be there at a time."""
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory
    server = None
    try:
        server = vllm.LLM(str(model), enforce_eager=True, max_model_len=LENGTH + 1, max_num_seqs=4,
                          enable_prefix_caching=False, gpu_memory_utilization=0.1,
                          trust_remote_code=True, use_tqdm_on_load=False, skip_tokenizer_init=skip_tokenizer_init)
        return use(server)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold parts of vLLM, whose end would disturb the next model
        raise
    finally:
        server = None
        gc.collect()
        cleanup_dist_env_and_memory()


class VLLM(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import numpy
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.work = pathlib.Path(folder.name)
        os.environ.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR",
            VLLM_NO_USAGE_STATS="1", VLLM_CACHE_ROOT=str(cls.work / "vllm"), HF_HUB_OFFLINE="1",
            HF_HOME=str(cls.work / "huggingface"))
        import plain_kernels
        plain_kernels.install()
        cls.replaced = plain_kernels.replaced
        gc.freeze()  # serve() collects garbage for each model, and need not look at vLLM's modules each time
        cls.originals, cls.ids = {}, {}
        for model in MODELS:
            cls.originals[model] = original = cls.work / model
            shutil.copytree(TESTS / f"models/{model}-tiny", original)
            if model == "deepseek-moe":
                (original / "configuration_deepseek.py").write_text(DEEPSEEK)
                config = json.loads((original / "config.json").read_text())
                config["auto_map"] = {"AutoConfig": "configuration_deepseek.DeepseekConfig"}
                (original / "config.json").write_text(json.dumps(config))
            cls.ids[model] = original.with_suffix(".npy")
            numpy.save(cls.ids[model], window_ids(original).reshape(-1))

    def plan(self, model, scheme, recipe):
        """Writes the recipe, and returns the options of aqhost with it and what `plan` says of vLLM."""
        path = self.work / "recipe.yaml"
        path.write_text(f"{{default: {recipe}}}")
        options = ("--model", self.originals[model], "--config", path,
                   "--export", "gptq" if scheme.startswith("GPTQ") else "compressed-tensors")
        return options, json.loads(aqhost("plan", *options, "--json"))["engines"]["vllm"]

    def export(self, options):
        out = self.work / "out"
        aqhost(*options, "--algorithm", "rtn", "--save", out, "--overwrite")
        return out

    def perplexities(self, model, folder):
        """In vLLM and in aqhost."""
        import numpy
        import vllm
        windows = numpy.load(self.ids[model]).reshape(WINDOWS, LENGTH).tolist()
        told = json.loads(aqhost("eval", "--model", folder, "--text", self.ids[model], "--window", LENGTH,
                                 "--json"))
        self.assertEqual(told["tokens"], WINDOWS * (LENGTH - 1))
        sampling = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)

        def mean(server):
            answers = server.generate([{"prompt_token_ids": ids} for ids in windows], sampling,
                                      use_tqdm=False)
            logs = [answer.prompt_logprobs[i][ids[i]].logprob
                    for ids, answer in zip(windows, answers) for i in range(1, LENGTH)]
            return sum(logs) / len(logs)
        self.replaced.clear()
        return math.exp(-serve(folder, mean)), told["perplexity"]

    def check_agrees(self, model, scheme, folder=None):
        folder = folder or self.originals[model]
        in_vllm, in_aqhost = self.perplexities(model, folder)
        plain = " and ".join(sorted(self.replaced))
        print(f"{model} {scheme}: vLLM {in_vllm:.3f}, aqhost {in_aqhost:.3f}, "
              f"{100 * (in_vllm / in_aqhost - 1):+.2f} %; "
              + (f"{plain} in plain torch" if plain else "all on vLLM's kernels"), flush=True)
        self.assertLess(abs(in_vllm / in_aqhost - 1), 0.005)

    def check_loads(self, model, scheme, recipe):
        options, said = self.plan(model, scheme, recipe)
        self.assertTrue(said["loads"] and said["right"], said)
        self.check_agrees(model, scheme, self.export(options))

    def check_refused(self, model, scheme, recipe, message):
        options, said = self.plan(model, scheme, recipe)
        self.assertFalse(said["loads"], said)
        with self.assertRaises(Exception) as refused:
            serve(self.export(options), lambda server: None)
        print(f"{model} {scheme}: refused with {refused.exception}", flush=True)
        self.assertIn(message, str(refused.exception))

    def test_an_export_answers_the_request_of_the_readme(self):
        """The commands there start a server, which this test does not: the environment lacks what a server needs."""
        import vllm
        commands = (TESTS.parent / "README.md").read_text()
        self.assertRegex(commands, r"(?m)^    vllm serve out ")
        request = json.loads(re.search(r"-d '(\{\"model\": \"out\".*\})'", commands)[1])
        options, _ = self.plan("olmoe", "int4 g128", INT4)
        sampling = vllm.SamplingParams(max_tokens=request["max_tokens"], temperature=0)
        answer, = serve(self.export(options), lambda server: server.generate(request["prompt"], sampling),
                        skip_tokenizer_init=False)
        self.assertEqual(len(answer.outputs[0].token_ids), request["max_tokens"])
        self.assertRegex(answer.outputs[0].text, r"\w+ \w+")


def add_tests(check, model, schemes):
    for scheme, arguments in schemes.items():
        name = re.sub(r"\W+", "_", f"test_{model}_{scheme}")
        setattr(VLLM, name, lambda self, s=scheme, a=arguments: check(self, model, s, *a))


def with_recipe_alone(schemes):
    return {scheme: (recipe,) for scheme, recipe in schemes.items()}


for m in MODELS:
    add_tests(VLLM.check_agrees, m, {"original": ()})
add_tests(VLLM.check_loads, "olmoe", with_recipe_alone(LOADS))
for m in ("mixtral", "qwen2-moe"):
    add_tests(VLLM.check_loads, m, with_recipe_alone({s: LOADS[s] for s in LOADS_EVERYWHERE}))
add_tests(VLLM.check_loads, "deepseek-moe", with_recipe_alone(LOADS_DEEPSEEK))
add_tests(VLLM.check_refused, "olmoe", REFUSED)
add_tests(VLLM.check_refused, "deepseek-moe", REFUSED_DEEPSEEK)


if __name__ == "__main__":
    missing = without_avx2() if importlib.util.find_spec("vllm") else \
        "this Python has no vLLM; tools/test --engines installs it"
    if missing:
        print(f"SKIPPED: {missing}")
        sys.exit(77)
    unittest.main()
