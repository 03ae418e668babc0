#include "run/exporter.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/sha256.h"
#include "export/gguf.h"
#include "export/quantization_config.h"
#include "report/page.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// Kinds of side files that readers of a checkpoint look for: tokenizer, chat template, remote
/// code.
constexpr std::array kSideFiles{".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"};
/// The beginnings of the names of files that must go with every copy.
constexpr std::array kLegalFiles{"LICENSE", "LICENCE", "NOTICE", "COPYING"};
/// The key of the report under which it lists every file of the export.
constexpr const char* kFiles = "files";
/// The key of the report for the SHA-256 of the model card, by which a card that the user has
/// changed is recognised.
constexpr const char* kCardSum = "card_sha256";

template <typename List>
bool contains(const List& list, const std::string& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// The files that the export writes anew, and does not copy from the original.
const std::set<std::string>& files_written_anew() {
  static const std::set<std::string> kFilesWrittenAnew = [] {
    std::set<std::string> files{"config.json", "model.safetensors.index.json", kReportFile};
    for (const Container* container : containers())
      if (const std::string file = container->config_file(); !file.empty()) files.insert(file);
    return files;
  }();
  return kFilesWrittenAnew;
}

bool is_whole_tensor(const TensorRef& ref) {
  return ref.index < 0 && ref.row_begin == 0 && ref.row_count == 0 && !ref.transposed;
}

bool is_side_file(const fs::path& file) {
  const std::string name = file.filename().string();
  const auto begins = [&](const char* text) { return name.starts_with(text); };
  return std::any_of(kLegalFiles.begin(), kLegalFiles.end(), begins) ||
         contains(kSideFiles, file.extension().string());
}

/// Appends the side files in original / folder, and in the folders below it (such as
/// additional_chat_templates), by their names relative to `original`.
void find_side_files(const fs::path& original, const fs::path& folder,
                     std::vector<std::string>& names, RunObserver& observer) {
  std::vector<fs::directory_entry> entries;
  try {
    entries = list_folder(original / folder);
  } catch (const Error& e) {
    if (folder.empty()) throw;
    observer.warn(fmt::format("{}; what is in it is not copied to the export", e.what()));
  }
  const auto is_weights = [](const fs::directory_entry& entry) {
    return entry.path().filename() == "config.json" || entry.path().extension() == ".safetensors";
  };
  if (!folder.empty() && std::any_of(entries.begin(), entries.end(), is_weights))
    return;  // another model, perhaps an export of this one
  for (const auto& entry : entries) {
    std::error_code ignored;
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".")) continue;
    if (fs::is_directory(entry.symlink_status(ignored)))
      find_side_files(original, folder / name, names, observer);
    const bool own =
        folder.empty() && (files_written_anew().contains(name) || name.ends_with(".index.json"));
    if (own || !is_side_file(entry.path())) continue;
    if (fs::is_symlink(entry.symlink_status(ignored)) && !entry.exists(ignored))
      fail("{}: is a link to {}, which does not exist", entry.path().string(),
           fs::read_symlink(entry.path(), ignored).string());
    if (entry.is_regular_file(ignored)) names.push_back((folder / name).string());
  }
}

/// Throws an Error if a failed download has left something else in place of a side file. In a file
/// other than JSON, only a Git LFS pointer is recognised, because a chat template may begin with
/// "<" as a web page does.
void check_side_file(const fs::path& path) {
  constexpr std::size_t kTold = 64;
  const InputFile file(path);
  std::string start(std::min(kTold, static_cast<std::size_t>(file.size())), '\0');
  file.read(0, std::as_writable_bytes(std::span(start)));
  if (path.extension() != ".json" && !start.starts_with(kLfsPointer)) return;
  if (const auto other = misplaced_file(start); !other.empty())
    fail("{}: is {}", path.string(), other);
}

std::vector<std::string> side_files(const fs::path& original, RunObserver& observer) {
  std::vector<std::string> names;
  find_side_files(original, "", names, observer);
  for (const std::string& name : names) check_side_file(original / name);
  return names;
}

bool is_shard(const std::string& name) {
  return name == "model.safetensors" ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

/// The names of linear modules that an engine's model class may have besides those of the model:
/// lm_head if it is the embedding, and every matrix among the tensors that are only copied.
std::vector<std::string> linears_besides(const Source& original, const Model& model) {
  std::vector<std::string> linears;
  if (model.desc().tied_embeddings) linears.emplace_back(kLmHead);
  constexpr std::string_view kWeight = ".weight";
  const auto add = [&](const std::vector<std::string>& tensors) {
    for (const std::string& name : tensors)
      if (name.ends_with(kWeight) && original.find(name)->shape.size() == 2)
        linears.push_back(name.substr(0, name.size() - kWeight.size()));
  };
  add(model.extra_tensors());
  for (const Model::Copied& copied : model.copied()) add(copied.tensors);
  return linears;
}

/// float32 values, rounded to `dtype`. This is exact if they were read from that type.
std::vector<std::byte> bytes_of(const at::Tensor& values, DType dtype) {
  const auto type = dtype == DType::kBF16  ? at::kBFloat16
                    : dtype == DType::kF16 ? at::kHalf
                                           : at::kFloat;
  const at::Tensor converted = values.to(type).contiguous();
  const auto* data = static_cast<const std::byte*>(converted.data_ptr());
  return {data, data + converted.nbytes()};
}

/// Whether the model card in an earlier export is still the one that its report describes.
bool card_is_unchanged(const Json& report, const fs::path& target) {
  std::error_code ignored;
  return !fs::is_regular_file(target / kCardFile, ignored) ||
         report.value(kCardSum, Json()) == sha256_of(target / kCardFile);
}

/// Leaves the model card in its place if the user has changed it since the run began.
void spare_changed_card(WorkFolder& work) {
  std::error_code ignored;
  const fs::path report = work.target() / kReportFile;
  if (fs::is_regular_file(report, ignored) && !card_is_unchanged(read_json(report), work.target()))
    work.spare(kCardFile);
}

}  // namespace

void check_side_files(const Source& original) {
  RunObserver silent;
  side_files(original.directory(), silent);
}

std::set<std::string> replaced_files(const Source& original, const fs::path& target,
                                     bool overwrite) {
  if (!overwrite || WorkFolder::is_free(target)) return {};
  std::error_code ignored;
  if (!fs::exists(target / kReportFile, ignored))
    fail(
        "{}: is no earlier export of aqhost (it has no {}), and is not replaced; choose another "
        "folder",
        target.string(), kReportFile);
  std::set<std::string> files = files_written_anew();
  const Json report = read_json(target / kReportFile);
  const bool ours = report.is_object() && report.value("generator", Json()) == "aqhost" &&
                    fs::exists(target / "config.json", ignored) &&
                    is_quantized(read_json(target / "config.json"));
  if (!ours)
    fail(
        "{}: is no earlier export of aqhost (its {} or config.json says otherwise), and is not "
        "replaced; choose another folder",
        target.string(), kReportFile);
  for (const auto& entry : list_folder(target))
    if (std::string name = entry.path().filename().string(); is_gguf_file(name))
      files.insert(std::move(name));
  if (const auto list = report.find(kFiles); list != report.end() && list->is_array()) {
    for (const Json& name : *list)
      if (name.is_string()) files.insert(name.get<std::string>());
    if (!card_is_unchanged(report, target)) files.erase(kCardFile);
    if (!is_report_page(target / kPageFile)) files.erase(kPageFile);
    return files;
  }
  RunObserver silent;  // reports of version 0.1 have no list
  for (const std::string& name : side_files(original.directory(), silent)) files.insert(name);
  for (const auto& entry : list_folder(target))
    if (const std::string name = entry.path().filename().string(); is_shard(name))
      files.insert(name);
  return files;
}

Exporter::Exporter(const Source& original, const Model& model, const Plan& plan, WorkFolder& work,
                   int64_t max_shard_bytes, RunObserver& observer)
    : original_(original),
      plan_(plan),
      work_(work),
      observer_(observer),
      side_files_(side_files(original.directory(), observer)),
      units_(model.desc().n_layers + 1),
      unit_tensors_(static_cast<std::size_t>(units_)),
      other_linears_(linears_besides(original, model)),
      own_head_(!model.desc().tied_embeddings) {
  std::vector<std::vector<TensorInfo>> tensors(unit_tensors_.size());
  plan_tensors(model, tensors);
  writer_ = std::make_unique<Writer>(work.result(), std::move(tensors), max_shard_bytes);
}

std::vector<std::string> Exporter::shards(int32_t unit) const {
  return writer_->files(static_cast<std::size_t>(unit));
}

std::vector<std::string> Exporter::files() const {
  std::vector<std::string> files = side_files_;
  files.emplace_back("config.json");
  if (std::string file = plan_.container->config_file(); !file.empty())
    files.push_back(std::move(file));
  const std::size_t others = files.size();
  for (int32_t unit = 0; unit < units_; unit++)
    for (std::string& shard : shards(unit)) files.push_back(std::move(shard));
  if (files.size() - others > 1) files.emplace_back("model.safetensors.index.json");
  if (work_.may_place(kCardFile)) files.emplace_back(kCardFile);
  files.emplace_back(kPageFile);
  std::sort(files.begin(), files.end());
  files.emplace_back(kReportFile);
  return files;
}

void Exporter::write_files() const {
  write_config();
  copy_side_files();
}

/// Appends to tensors[u] the tensors of unit u, in the order in which they are written.
void Exporter::plan_tensors(const Model& model, std::vector<std::vector<TensorInfo>>& tensors) {
  const auto unit_at = [this](int32_t layer) { return static_cast<std::size_t>(unit_of(layer)); };
  std::set<std::string> replaced;
  for (const PlannedModule& m : plan_.modules) {
    if (!m.format) continue;
    replaced.insert(m.module->weight.name);
    for (const TensorInfo& info : m.packed)
      tensors[unit_at(m.module->key.layer)].push_back(
          {m.module->name + "." + info.name, info.dtype, info.shape});
  }
  for (const Module& module : model.modules()) {
    const bool planned = plan_.modules[module.index].format != nullptr;
    if (planned || !replaced.contains(module.weight.name)) continue;
    const std::size_t unit = unit_at(module.key.layer);
    const DType dtype = original_.find(module.weight.name)->dtype;
    unit_tensors_[unit].splits.push_back({&module, dtype});
    tensors[unit].push_back(
        {module.name + ".weight", dtype, {module.out_features, module.in_features}});
  }
  // a tensor that is the whole matrix of a module is written under the module's name
  std::map<std::string, const Module*> whole;
  std::map<std::string, int32_t> layers;  // of stored tensors
  for (const Module& module : model.modules()) {
    if (is_whole_tensor(module.weight)) whole[module.weight.name] = &module;
    layers[module.weight.name] = module.key.layer;
  }
  for (const NeededTensor& needed : model.needed_tensors(original_))
    if (const auto key = model.find_key(needed.ref.name)) layers[needed.ref.name] = key->layer;
  for (const TensorInfo& info : original_.tensors()) {
    if (replaced.contains(info.name)) continue;
    const auto layer = layers.find(info.name);
    const std::size_t unit = unit_at(layer == layers.end() ? -1 : layer->second);
    const auto module = whole.find(info.name);
    const std::string name = module == whole.end() ? info.name : module->second->name + ".weight";
    unit_tensors_[unit].copied.push_back({info.name, name});
    tensors[unit].push_back({name, info.dtype, info.shape});
  }
}

void Exporter::write(const PlannedModule& planned, const QuantizedMatrix& matrix,
                     float input_global) {
  for (const PackedTensor& tensor : plan_.container->pack(planned.stored(), matrix, input_global))
    writer_->write(planned.module->name + "." + tensor.info.name, tensor.bytes);
}

void Exporter::finish(int32_t unit) {
  original_.check_unchanged();
  const Unit& tensors = unit_tensors_[static_cast<std::size_t>(unit)];
  for (const Copied& tensor : tensors.copied) copy(tensor);
  for (const auto& [module, dtype] : tensors.splits) {
    const at::Tensor weight =
        read_tensor(original_, module->weight, {module->out_features, module->in_features});
    writer_->write(module->name + ".weight", bytes_of(weight, dtype));
  }
  writer_->finish(static_cast<std::size_t>(unit));
}

/// Copies the stored bytes of a tensor, or decodes it if it is stored quantized.
void Exporter::copy(const Copied& tensor) {
  const TensorInfo& info = *original_.find(tensor.stored);
  if (original_.read_stored(tensor.stored, 0, {})) {
    writer_->copy(tensor.written, [&](int64_t begin, std::span<std::byte> out) {
      check_interrupt();
      original_.read_bytes(tensor.stored, begin, out);
    });
    return;
  }
  // matrix by matrix, because a part of a matrix may cost as much as the whole
  const int64_t width = dtype_size(info.dtype);
  const int64_t matrix = info.shape.back() * info.shape[info.shape.size() - 2];
  const auto decode = [&](int64_t begin, std::span<std::byte> out) {
    check_interrupt();
    const at::Tensor values = at::empty({static_cast<int64_t>(out.size()) / width}, at::kFloat);
    original_.read_f32(tensor.stored, begin / width, span_of<float>(values));
    const std::vector<std::byte> bytes = bytes_of(values, info.dtype);
    std::copy(bytes.begin(), bytes.end(), out.begin());
  };
  writer_->copy(tensor.written, decode, matrix * width);
}

void Exporter::commit(const RunReport& report, const std::string& card) {
  work_.check_in_place();
  work_.keep();
  spare_changed_card(work_);
  const bool writes_card = !card.empty() && work_.may_place(kCardFile);
  std::vector<std::string> written = files();
  if (!writes_card) std::erase(written, kCardFile);
  Json json = to_json(report);
  json[kFiles] = written;
  if (writes_card) json[kCardSum] = sha256_of_text(card);
  const std::string text = to_text(json, 2) + "\n";
  // as aqhost report makes it of the file
  const std::string page = report_page(parse_json(text, kReportFile), kReportFile);
  if (!card.empty() && !writes_card)
    observer_.warn(
        fmt::format("{} in the target is yours, or was changed; it stays, and the model "
                    "card of this export is not written",
                    kCardFile));
  try {
    writer_->write_index();
    if (writes_card) write_file(work_.result() / kCardFile, card);
    write_file(work_.result() / kPageFile, page);
    write_file(work_.result() / kReportFile, text);
  } catch (const Error& e) {
    fail(
        "{}. The export, which is finished but for this file, is kept in {}; run the same command "
        "again to finish it",
        e.what(), work_.result().string());
  }
  if (const std::string aside = work_.set_aside_others(written); !aside.empty())
    observer_.warn(aside);
  work_.commit();
}

void Exporter::write_config() const {
  std::vector<StoredModule> modules;
  for (const PlannedModule& m : plan_.modules) modules.push_back(m.stored());
  for (const std::string& name : other_linears_) modules.push_back({name});
  // keys stay in the order of the original, so that a diff shows what was added
  auto config =
      nlohmann::ordered_json::parse(read_file(fs::path(original_.directory()) / "config.json"));
  // if this is set, vLLM always uses the embedding as lm_head; transformers only if they are equal
  constexpr const char* kTied = "tie_word_embeddings";
  if (own_head_ && config.contains(kTied) && config[kTied] == true) config[kTied] = false;
  config["quantization_config"] = plan_.container->config(modules);
  if (const std::string file = plan_.container->config_file(); !file.empty())
    write_file(work_.result() / file, to_text(config["quantization_config"], 2) + "\n");
  write_file(work_.result() / "config.json", to_text(config, 2) + "\n");
}

void Exporter::copy_side_files() const {
  for (const std::string& name : side_files_) {
    const fs::path to = work_.result() / name;
    std::error_code error;
    fs::create_directories(to.parent_path(), error);
    if (!error) fs::remove(to, error);  // of an earlier try
    if (error) fail("{}: {}", to.string(), error.message());
    aqhost::copy_file(fs::path(original_.directory()) / name, to);
  }
}

}  // namespace aqhost
