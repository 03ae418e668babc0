// DiffLlama (model_type diffllama): differential attention (Ye et al., arXiv:2410.05258), which
// aqhost does not know, through block-forward. Each output is the difference of two softmaxes.
#include <aq/sdk/block_forward.hpp>
#include <aq/sdk/hf_decoder.hpp>

namespace {

enum : int32_t { kLambdaQ1 = AQ_ROLE_CUSTOM + 1, kLambdaK1, kLambdaQ2, kLambdaK2 };

aq::NameRow vector_row(int32_t role, const char* name) {
  return {role, AQ_EXPERT_NONE, std::string("model.layers.{L}.self_attn.") + name};
}

const std::vector<aq::NameRow> kNames = aq::hf_names({
    vector_row(kLambdaQ1, "lambda_q1"),
    vector_row(kLambdaK1, "lambda_k1"),
    vector_row(kLambdaQ2, "lambda_q2"),
    vector_row(kLambdaK2, "lambda_k2"),
    {AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate_proj"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "model.layers.{L}.mlp.up_proj"},
    {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "model.layers.{L}.mlp.down_proj"},
});

/// Rotates the pairs (i, i + dim / 2) of a head.
void rotate_halves(float* head, int32_t dim, int32_t position, const float* inv_freq, float scale) {
  for (int32_t i = 0; i < dim / 2; i++) {
    const float angle = static_cast<float>(position) * inv_freq[i];
    const float cos = std::cos(angle) * scale, sin = std::sin(angle) * scale;
    const float a = head[i], b = head[i + dim / 2];
    head[i] = a * cos - b * sin;
    head[i + dim / 2] = b * cos + a * sin;
  }
}

class DiffLlamaModel : public aq::DecoderModel {
 public:
  using DecoderModel::DecoderModel;

  const void* extension(const char* id) const override {
    return std::string_view(id) == AQ_EXT_BLOCK_FORWARD ? aq::block_forward_of<DiffLlamaModel>()
                                                        : nullptr;
  }

  void attention(const aq::ForwardCall& call) const {
    const aq_attention_desc desc = describe_attention(call.layer(), 0);
    const int64_t heads = desc.n_heads, kv_heads = desc.n_kv_heads, size = desc.head_dim;
    const auto linear = [&](int32_t role, int64_t out) {
      return call.linear(module_index(call.layer(), role), call.x(), out);
    };
    const aq::Rows q = linear(AQ_ROLE_ATTN_Q, heads * size),
                   k = linear(AQ_ROLE_ATTN_K, kv_heads * size),
                   v = linear(AQ_ROLE_ATTN_V, kv_heads * size);
    // a value consists of two heads, one from the first half of all and one from the second
    const aq::Rows pairs = call.rows(2 * kv_heads * size);
    for (int64_t t = 0; t < q.rows; t++) {
      const auto rotate = [&](float* head) {
        rotate_halves(head, desc.head_dim, call.positions()[t], desc.rope_inv_freq,
                      desc.rope_scale);
      };
      for (int64_t h = 0; h < heads; h++) rotate(q[t] + h * size);
      for (int64_t h = 0; h < kv_heads; h++) {
        rotate(k[t] + h * size);
        const int64_t first = h % (kv_heads / 2), second = first + kv_heads / 2;
        std::copy_n(v[t] + first * size, size, pairs[t] + 2 * h * size);
        std::copy_n(v[t] + second * size, size, pairs[t] + (2 * h + 1) * size);
      }
    }
    const aq::Rows both =
        call.attend(q, k, pairs, heads, kv_heads, 1 / std::sqrt(static_cast<float>(size)));
    const aq::Rows context = difference(call, both, heads, size);
    call.linear(module_index(call.layer(), AQ_ROLE_ATTN_O), context, call.y());
  }

 private:
  /// The first half of the heads, minus lambda times the second, then normed; a head has 2 `size`
  /// values.
  aq::Rows difference(const aq::ForwardCall& call, const aq::Rows& both, int64_t heads,
                      int64_t size) const {
    const auto exp_of = [&](int32_t a, int32_t b) {
      const auto vector = [&](int32_t role) {
        return call.vector({call.layer(), role, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, size);
      };
      const float *x = vector(a), *y = vector(b);
      float sum = 0;
      for (int64_t i = 0; i < size; i++) sum += x[i] * y[i];
      return std::exp(sum);
    };
    const float initial = 0.8f - 0.6f * std::exp(-0.3f * static_cast<float>(call.layer()));
    const float lambda = exp_of(kLambdaQ1, kLambdaK1) - exp_of(kLambdaQ2, kLambdaK2) + initial;
    const aq::Rows context = call.rows(heads * size);
    const int64_t half = heads * size;  // values of half of the heads
    for (int64_t t = 0; t < context.rows; t++)
      for (int64_t i = 0; i < half; i++) context[t][i] = both[t][i] - lambda * both[t][half + i];
    // each pair of heads is normed by itself, by the weight 1 - initial
    const std::vector<float> weight(static_cast<std::size_t>(2 * size), 1 - initial);
    aq::rms_norm({context.data, context.rows * heads / 2, 2 * size}, weight.data(),
                 describe().norm_eps);
    return context;
  }
};

class DiffLlama {
 public:
  static constexpr aq::Descriptor kDescriptor{"diffllama", "DiffLlama", "1.0.0", "an example",
                                              "DiffLlama (model_type diffllama)"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "diffllama", .architecture = "DiffLlamaForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"attention_bias", false}});
    config.ignore({"lambda_std_dev"});  // of the first values
    aq::LayerDesc layer = aq::hf_attention(config);
    aq_attention_desc& a = layer.attention;
    if (a.n_kv_heads % 2 != 0)
      throw aq::Error("config.json: num_key_value_heads is " + std::to_string(a.n_kv_heads) +
                      ", expected an even number, because differential attention pairs heads");
    const int64_t hidden = config.integer("hidden_size"), q = int64_t{a.n_heads} * a.head_dim,
                  kv = int64_t{a.n_kv_heads} * a.head_dim;
    a.kind = AQ_ATTN_CUSTOM;
    layer.attention_linears = {{AQ_ROLE_ATTN_Q, "q_proj", q, hidden, 0, 0},
                               {AQ_ROLE_ATTN_K, "k_proj", kv, hidden, 0, 0},
                               {AQ_ROLE_ATTN_V, "v_proj", kv, hidden, 0, 0},
                               {AQ_ROLE_ATTN_O, "o_proj", hidden, q, 1, 1}};
    layer.ffn = aq::hf_dense(config, config.integer("intermediate_size"));
    const auto count = static_cast<std::size_t>(config.count("num_hidden_layers"));
    return aq::hf_decoder<DiffLlamaModel>(checkpoint, config,
                                          {.layers = std::vector(count, layer), .names = kNames});
  }
};

}  // namespace

AQ_EXPORT_MODEL(DiffLlama);
