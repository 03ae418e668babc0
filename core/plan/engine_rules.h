// The parts that the rules of all engines share (rules_*.cc, loadable.cc).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/source.h"
#include "plan/loadable.h"
#include "plan/plan.h"
#include "plugin/model.h"

namespace aqhost {

/// Sentences about one engine. Sentences with the same cause are merged. `where` is a module, or
/// "config.json".
class Findings {
 public:
  void refuse(const std::string& where, const std::string& cause) { add(refused_, where, cause); }
  void wrong(const std::string& where, const std::string& cause) { add(wrong_, where, cause); }
  void note(const std::string& where, const std::string& cause) { add(notes_, where, cause); }

  void move_to(Loadable& loadable) const;

 private:
  using Sentences = std::vector<PlanWarning>;

  static void add(Sentences& sentences, const std::string& where, const std::string& cause);

  Sentences refused_, wrong_, notes_;
};

/// A plan and its model: the export that an engine is asked about.
struct Export {
  const Plan& plan;
  const Model& model;
  const Source& original;

  /// Whether the folder of the original model, and therefore the export, has a file with this name.
  bool has_file(const char* name) const;
};

/// How config.json will describe the tensors of a module.
struct StoredAs {
  StoredAs(const PlannedModule& m, const Container& container);

  std::string format;  // "pack-quantized", or "gptq" in AutoGPTQ's container
  int64_t bits = 0;
  bool symmetric = true;
  int32_t group = 0;   // -1: a row, 0: the whole matrix
  std::string inputs;  // the format of its inputs; "bf16": not rounded
  std::string text;    // "int4 g128 aq=int8"
  bool rounds_inputs() const { return inputs != "bf16"; }
};

/// The group sizes that the Marlin kernels of vLLM and SGLang have.
inline constexpr std::array kMarlinGroups{-1, 32, 64, 128};

/// "experts in int4 g16 have no kernel".
std::string no_kernel(const char* what, const StoredAs& s);

/// Options of a model that some engines do not support.
struct ModelFacts {
  explicit ModelFacts(const Export& exported);

  std::string family;     // "olmoe"
  std::string type;       // model_type of config.json; "" if it has none
  bool tied = false;      // lm_head is the embedding
  bool qkv_bias = false;  // q, k or v, or the first maps of latent attention, have a bias somewhere
  bool out_bias = false;  // o has a bias in some layer
  bool ffn_bias = false;  // a dense FFN or a shared expert has biases
  bool head_bias = false;
  bool silu = true;  // every FFN uses SiLU, or the one activation that the family has
  bool norm_topk = false;
  bool heads_fill_hidden = true;  // number of heads x head size = hidden size
  float norm_eps = 0, clip_qkv = 0;
  bool latent = false;  // the rest is about latent attention
  bool rope_interleaved = false;
  float latent_eps = 0;
};

/// What an engine's code for a family does with a model's options.
struct FamilyOptions {
  bool qkv_bias = false, out_bias = false, ffn_bias = false;  // whether it has these biases
  bool tied = false;      // whether it can tie the head to the embedding
  bool head_dim = false;  // whether it reads head_dim
  bool acts = false;      // whether it refuses other activations than SiLU
};

/// Indexed by model_type, or by the id of the family.
using FamiliesOptions = std::map<std::string, FamilyOptions>;

bool is_role(const PlannedModule& m, std::initializer_list<int32_t> roles);
inline bool is_expert(const PlannedModule& m) { return m.module->key.expert >= 0; }

/// Whether this is one of aqhost's own formats, which no other package knows.
bool unknown_to_all(const PlannedModule& m);

/// How a module is stored, as text. Two modules that are stored alike have equal texts.
std::string scheme(const PlannedModule& m);

using Modules = std::vector<const PlannedModule*>;

/// The first of `modules` that is stored differently from the first one, or nullptr.
const PlannedModule* other(const Modules& modules);

/// Modules that an engine fuses into one, indexed by layer and by the name of the fused module.
std::map<std::pair<int32_t, std::string>, Modules> fused(const Plan& plan);

/// "... must be of one format, and are int4 g128 and int4 g64; group_size: 64 fits all of them".
/// The last part is there if the recipe asks for no size.
std::string mixed(const std::string& what, const PlannedModule& a, const PlannedModule& b);

/// Reports modules of different formats where an engine runs one kernel, or one fused matrix.
void check_fused(const Plan& plan, Findings& findings);

/// Reports model options that an engine ignores or refuses, according to `families`; and options
/// that vLLM and SGLang both ignore in the families whose published models do not use them.
void check_model_options(const ModelFacts& facts, const FamiliesOptions& families,
                         const char* engine, Findings& findings);

/// Refuses a model whose config.json lacks keys that the engine reads and transformers does not.
void check_keys(const Export& exported, const char* engine, std::initializer_list<const char*> keys,
                Findings& findings);

/// The number of ways in which modules of the plan are quantized.
std::size_t count_schemes(const Plan& plan);

/// Refuses what vLLM and SGLang cannot divide over `gpus` GPUs by tensor parallelism. The experts
/// are divided, too, as they are without expert parallelism.
void check_split(const Export& exported, int32_t gpus, Findings& findings);

void check_vllm(const Export& exported, Findings& findings);
void check_sglang(const Export& exported, Findings& findings);
void check_transformers(const Export& exported, Findings& findings);

}  // namespace aqhost
