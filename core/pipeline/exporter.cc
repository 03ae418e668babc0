#include "pipeline/exporter.h"

#include <array>
#include <cstring>
#include <map>
#include <set>

#include "base/error.h"
#include "export/gptq.h"
#include "export/quantization_config.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr const char* kReport = "quantization_report.json";
/// Written anew, not carried over.
constexpr std::array kOwnFiles{"config.json", "model.safetensors.index.json", kReport,
                               "quantize_config.json"};
/// Kinds of side files that readers of a checkpoint look for: tokenizer, chat template, remote
/// code.
constexpr std::array kSideFiles{".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"};

template <typename List>
bool contains(const List& list, const std::string& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

bool is_whole_tensor(const TensorRef& ref) {
  return ref.index < 0 && ref.row_begin == 0 && ref.row_count == 0 && !ref.transposed;
}

/// --overwrite is for what an earlier run wrote, never for an original or a folder of another kind.
void check_replaceable(const fs::path& target) {
  if (!fs::exists(target) || fs::exists(target / kReport)) return;
  if (fs::is_directory(target) && fs::is_empty(target)) return;
  fail(
      "{}: is no earlier export of aqhost (it has no {}), and is not replaced; choose another "
      "folder",
      target.string(), kReport);
}

/// lm_head where it is the embedding, and whatever the checkpoint has besides the model that may be
/// a linear module in an engine's model class.
std::vector<std::string> linears_besides(const Reader& original, const Model& model) {
  std::vector<std::string> linears;
  if (model.desc().tied_embeddings) linears.emplace_back(kLmHead);
  constexpr std::string_view kWeight = ".weight";
  for (const std::string& name : model.extra_tensors())
    if (name.ends_with(kWeight) && original.find(name)->shape.size() == 2)
      linears.push_back(name.substr(0, name.size() - kWeight.size()));
  return linears;
}

/// float32 values as elements of `dtype`; exact, as they came from there.
std::vector<std::byte> bytes_of(const at::Tensor& values, DType dtype) {
  const auto type = dtype == DType::kBF16  ? at::kBFloat16
                    : dtype == DType::kF16 ? at::kHalf
                                           : at::kFloat;
  const at::Tensor converted = values.to(type).contiguous();
  const auto* data = static_cast<const std::byte*>(converted.data_ptr());
  return {data, data + converted.nbytes()};
}

}  // namespace

Exporter::Exporter(const Reader& original, const Model& model, const Plan& plan,
                   const fs::path& target, int64_t max_shard_bytes, bool overwrite)
    : original_(original),
      plan_(plan),
      staged_(target, overwrite),
      other_linears_(linears_besides(original, model)),
      own_head_(!model.desc().tied_embeddings) {
  if (overwrite) check_replaceable(target);
  plan_tensors(model, plan);
  writer_ = std::make_unique<Writer>(staged_.path(), tensors_, max_shard_bytes);
}

void Exporter::plan_tensors(const Model& model, const Plan& plan) {
  std::set<std::string> replaced;
  for (const PlannedModule& m : plan.modules) {
    if (!m.format) continue;
    replaced.insert(m.module->weight.name);
    for (const TensorInfo& info : m.packed)
      tensors_.push_back({m.module->name + "." + info.name, info.dtype, info.shape});
  }
  for (const Module& module : model.modules()) {
    const bool planned = plan.modules[module.index].format != nullptr;
    if (planned || !replaced.contains(module.weight.name)) continue;
    const DType dtype = original_.find(module.weight.name)->dtype;
    splits_.push_back({&module, dtype});
    tensors_.push_back({module.name + ".weight", dtype, {module.out_features, module.in_features}});
  }
  // a matrix by itself is written under its module's name, wherever the checkpoint has it
  std::map<std::string, std::string> names;
  for (const Module& module : model.modules())
    if (is_whole_tensor(module.weight)) names[module.weight.name] = module.name + ".weight";
  for (const TensorInfo& info : original_.tensors()) {
    if (replaced.contains(info.name)) continue;
    const auto name = names.find(info.name);
    copied_.emplace_back(info.name, name == names.end() ? info.name : name->second);
    tensors_.push_back({copied_.back().second, info.dtype, info.shape});
  }
}

void Exporter::write(const PlannedModule& planned, const QuantizedMatrix& matrix,
                     float input_global) {
  const bool gptq = plan_.layout == Layout::kGptq;
  for (const PackedTensor& tensor :
       gptq ? gptq_pack(*planned.format, matrix) : planned.format->pack(matrix))
    writer_->write(planned.module->name + "." + tensor.info.name, tensor.bytes);
  if (planned.observes_input())
    writer_->write(fmt::format("{}.{}", planned.module->name, kInputGlobalScale),
                   std::as_bytes(std::span(&input_global, 1)));
}

int64_t Exporter::commit(const Json& report) {
  write_dense();
  const int64_t bytes = writer_->finish();
  write_config(plan_);
  copy_side_files();
  write_file(staged_.path() / kReport, report.dump(2) + "\n");
  staged_.commit();
  return bytes;
}

void Exporter::write_dense() {
  for (const auto& [stored, name] : copied_) writer_->write(name, original_.stored(stored)->bytes);
  for (const auto& [module, dtype] : splits_) {
    const at::Tensor weight =
        read_tensor(original_, module->weight, {module->out_features, module->in_features});
    writer_->write(module->name + ".weight", bytes_of(weight, dtype));
  }
}

Json Exporter::gptq_json(const Plan& plan) const {
  std::vector<GptqModule> modules;
  for (const PlannedModule& m : plan.modules) {
    modules.push_back({m.module->name, 0, -1});
    if (!m.format) continue;
    modules.back().bits = m.format->desc().element_bits;
    modules.back().group_size = m.format->desc().group_size;
  }
  for (const std::string& name : other_linears_) modules.push_back({name, 0, -1});
  return gptq_config(modules);
}

void Exporter::write_config(const Plan& plan) {
  std::vector<ExportedModule> modules;
  for (const PlannedModule& m : plan.modules)
    modules.push_back({m.module->name, m.format ? &m.format->config() : nullptr,
                       m.activations ? &m.activations->config() : nullptr});
  for (const std::string& name : other_linears_) modules.push_back({name, nullptr, nullptr});
  // keys stay in the order of the original, so that a diff shows what was added
  auto config =
      nlohmann::ordered_json::parse(read_file(fs::path(original_.directory()) / "config.json"));
  // vLLM takes the embedding wherever this is set, transformers only where the two are equal
  constexpr const char* kTied = "tie_word_embeddings";
  if (own_head_ && config.contains(kTied) && config[kTied] == true) config[kTied] = false;
  const bool gptq = plan.layout == Layout::kGptq;
  config["quantization_config"] = gptq ? gptq_json(plan) : quantization_config(modules);
  if (gptq)
    write_file(staged_.path() / "quantize_config.json",
               config["quantization_config"].dump(2) + "\n");
  write_file(staged_.path() / "config.json", config.dump(2) + "\n");
}

void Exporter::copy_side_files() {
  for (const auto& entry : fs::directory_iterator(original_.directory())) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || contains(kOwnFiles, name)) continue;
    if (name.ends_with(".index.json") || !contains(kSideFiles, entry.path().extension().string()))
      continue;
    std::error_code error;
    fs::copy_file(entry.path(), staged_.path() / name, error);
    if (error)
      fail("{}: cannot be copied to the export: {}", entry.path().string(), error.message());
  }
}

}  // namespace aqhost
