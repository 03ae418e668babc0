"""The operations and bytes of a layer, for tools/bench/floor: its linear maps by the matrices that are
solved, and what each phase of a run does with them."""
import dataclasses

SEARCH = 45  # scales that are tried for each group
PACKED = 0.516  # bytes of an exported weight

# Shapes that --ranks adds to OLMoE's, from config.json of huggingface.co/Qwen/Qwen3-235B-A22B,
# /deepseek-ai/DeepSeek-V3 and /moonshotai/Kimi-K2-Instruct. The layer for multi-token prediction of
# DeepSeek-V3 is left out.
LARGE = {
    "qwen3-235b-a22b": dict(
        hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4,
        head_dim=128, moe_intermediate_size=1536, num_experts=128, num_experts_per_tok=8,
        vocab_size=151936),
    "deepseek-v3": dict(
        hidden_size=7168, num_hidden_layers=61, first_k_dense_replace=3, num_attention_heads=128,
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, intermediate_size=18432, moe_intermediate_size=2048, n_routed_experts=256,
        num_experts_per_tok=8, n_shared_experts=1, vocab_size=129280),
    "kimi-k2": dict(
        hidden_size=7168, num_hidden_layers=61, first_k_dense_replace=1, num_attention_heads=64,
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, intermediate_size=18432, moe_intermediate_size=2048, n_routed_experts=384,
        num_experts_per_tok=8, n_shared_experts=1, vocab_size=163840),
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Linear maps that share an input of `cols` features and are solved as `rows` of one matrix."""
    cols: int
    rows: int
    share: float = 1  # of the tokens
    shift: bool = True  # whether error feedback applies

    @property
    def weights(self):
        return self.rows * self.cols

    @property
    def hessian_bytes(self):
        """Of the float32 Hessian, and of the shift."""
        return 4 * self.cols ** 2 * (2 if self.shift else 1)

    @property
    def factor_operations(self):
        return 2 * self.cols ** 3 / 3  # the factor, and the inverse of a triangular matrix

    @property
    def solve_operations(self):
        # the target of error feedback (W M and two triangular solves): 4; the error of each column,
        # spread to all later ones: 1; the sweep (the gradient, and the change of each code, spread to
        # all later ones): 3; two losses: 4
        return (4 + 1 + 3 + 4) * self.rows * self.cols ** 2

    @property
    def dealing_cost(self):
        """As deal_groups() of core/run/solver.cc has it."""
        return self.cols ** 2 * (self.cols / 3 + self.rows)


def heads(c):
    """Returns the number of heads, and the features of a head's query and value."""
    n = c["num_attention_heads"]
    if "kv_lora_rank" in c:
        return n, c["qk_nope_head_dim"] + c["qk_rope_head_dim"], c["v_head_dim"]
    size = c.get("head_dim", c["hidden_size"] // n)
    return n, size, size


def attention_groups(c):
    d, (n, query, value) = c["hidden_size"], heads(c)
    if "kv_lora_rank" not in c:
        return [Group(d, n * query + 2 * value * c["num_key_value_heads"]), Group(n * value, d)]
    # Attention that only the adapter knows is solved without shifts.
    q, kv = c["q_lora_rank"], c["kv_lora_rank"]
    sizes = [(d, q + kv + c["qk_rope_head_dim"]), (q, n * query),
             (kv, n * (c["qk_nope_head_dim"] + value)), (n * value, d)]
    return [Group(cols, rows, shift=False) for cols, rows in sizes]


def ffn_groups(d, inner, share=1):
    return Group(d, 2 * inner, share), Group(inner, d, share)


def layer_groups(c, dense=False):
    """Returns the groups that are solved one after another, and the number of routed experts and the
    two groups of each (none in a dense layer)."""
    d, single = c["hidden_size"], attention_groups(c)
    if dense:
        return single + list(ffn_groups(d, c["intermediate_size"])), 0, ()
    experts = c.get("num_experts") or c.get("num_local_experts") or c["n_routed_experts"]
    inner = c.get("moe_intermediate_size") or c["intermediate_size"]
    if "shared_expert_intermediate_size" in c:
        single += ffn_groups(d, c["shared_expert_intermediate_size"])
    if "n_shared_experts" in c:
        single += ffn_groups(d, c["n_shared_experts"] * inner)
    return single, experts, ffn_groups(d, inner, c["num_experts_per_tok"] / experts)


def all_groups(c, dense=False):
    single, experts, expert = layer_groups(c, dense)
    return single + list(expert) * experts


def phases(c, tokens, window, dense=False):
    """Returns {name: (operations, kind of operations, bytes of memory, bytes of files)} of one layer."""
    forward = hessians = cholesky = solve = weights = 0
    for group in all_groups(c, dense):
        n = tokens * group.share
        forward += 2 * n * group.weights
        weights += group.weights
        solve += group.solve_operations
        # the Hessian; the shift for half of the tokens
        hessians += (2 + (1 if group.shift else 0)) * n * group.cols ** 2
        cholesky += group.factor_operations
    count, query, value = heads(c)
    forward += tokens * window * count * (query + value)  # attention; half of it is masked
    forward *= 1.5
    hidden = tokens * c["hidden_size"]
    return {
        "forward": (forward, "half", 4 * 2 * hidden, 0),
        "Hessians": (hessians, "half", 0, 0),
        "Cholesky": (cholesky, "double", 0, 0),
        "solve": (solve, "tf32", 0, 0),
        "scale search": (8 * SEARCH * weights, "single", 4 * weights, 0),
        "pack": (0, "single", 4 * weights, 0),
        "files": (0, "single", 0, 2 * weights + PACKED * weights),
    }
