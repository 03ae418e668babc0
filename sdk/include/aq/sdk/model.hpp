// aq/sdk/model.hpp - model adapters in C++: a base class that implements the ABI, and how a family
// recognises its models. decoder.hpp has an adapter that is made from a description.
#pragma once

#include <aq/model.h>

#include <algorithm>
#include <aq/sdk/config_keys.hpp>
#include <aq/sdk/plugin.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace aq {

/// The checkpoint for which an adapter is made. Valid during create().
class Checkpoint {
 public:
  explicit Checkpoint(const aq_checkpoint* raw)
      : raw_(raw), keys_read_(std::make_shared<ConfigKeys>()) {}

  /// The whole of config.json. HfConfig(checkpoint) reads it with errors that name the key, and
  /// records which keys are read.
  nlohmann::json config() const { return nlohmann::json::parse(raw_->config_json); }
  bool has(const std::string& tensor) const {
    aq_tensor_meta meta;
    return raw_->find(raw_, tensor.c_str(), &meta) == AQ_OK;
  }
  const std::shared_ptr<ConfigKeys>& keys_read() const { return keys_read_; }

 private:
  const aq_checkpoint* raw_;
  std::shared_ptr<ConfigKeys> keys_read_;
};

/// What an adapter implements; aq_model documents each function. All functions are const and may be
/// called from any thread. They report errors by throwing aq::Error; find_ref() and find_key()
/// return false in place of AQ_NOT_FOUND.
class ModelAdapter {
 public:
  virtual ~ModelAdapter() = default;
  virtual aq_model_desc describe() const = 0;
  virtual aq_attention_desc describe_attention(int32_t layer, int64_t seq_len) const = 0;
  virtual aq_ffn_desc describe_ffn(int32_t layer) const = 0;
  virtual uint32_t module_count() const = 0;
  virtual aq_module module(uint32_t i) const = 0;
  virtual bool find_ref(const aq_tensor_key& key, aq_tensor_ref& out) const = 0;
  virtual bool find_key(const std::string& name, aq_tensor_key& out) const = 0;
  virtual void route(const aq_route_args& args) const = 0;
  virtual const void* extension(const char*) const { return nullptr; }
  virtual const aq_copied* copied(uint32_t) const { return nullptr; }
};

namespace detail {

/// An aq_model that forwards its calls to a ModelAdapter.
struct ModelObject {
  aq_model table;
  std::unique_ptr<const ModelAdapter> adapter;

  explicit ModelObject(std::unique_ptr<const ModelAdapter> made)
      : table{}, adapter(std::move(made)) {
    table.struct_size = sizeof table;
    table.plugin_data = this;
    table.destroy = [](const aq_model* self) noexcept {
      delete static_cast<ModelObject*>(self->plugin_data);
    };
    table.get_extension = [](const aq_model* self, const char* id) noexcept {
      return of(self).extension(id);
    };
    table.describe = [](const aq_model* self, aq_model_desc* out, aq_error* err) noexcept {
      return guard(err, [&] { copy_out(out, of(self).describe()); });
    };
    table.describe_attention = [](const aq_model* self, int32_t layer, int64_t seq_len,
                                  aq_attention_desc* out, aq_error* err) noexcept {
      return guard(err, [&] { copy_out(out, of(self).describe_attention(layer, seq_len)); });
    };
    table.describe_ffn = [](const aq_model* self, int32_t layer, aq_ffn_desc* out,
                            aq_error* err) noexcept {
      return guard(err, [&] { copy_out(out, of(self).describe_ffn(layer)); });
    };
    table.module_count = [](const aq_model* self) noexcept { return of(self).module_count(); };
    table.get_module = [](const aq_model* self, uint32_t i, aq_module* out,
                          aq_error* err) noexcept {
      return guard(err, [&] { copy_out(out, of(self).module(i)); });
    };
    table.find_ref = [](const aq_model* self, const aq_tensor_key* key, aq_tensor_ref* out,
                        aq_error* err) noexcept {
      return guard(err, [&] {
        if (!of(self).find_ref(*key, *out)) throw Error("no such tensor", AQ_NOT_FOUND);
      });
    };
    table.find_key = [](const aq_model* self, const char* name, aq_tensor_key* out,
                        aq_error* err) noexcept {
      return guard(err, [&] {
        if (!of(self).find_key(name, *out)) throw Error("no such tensor", AQ_NOT_FOUND);
      });
    };
    table.route = [](const aq_model* self, const aq_route_args* args, aq_error* err) noexcept {
      return guard(err, [&] { of(self).route(*args); });
    };
    table.copied = [](const aq_model* self, uint32_t i) noexcept { return of(self).copied(i); };
  }

  static const ModelAdapter& of(const aq_model* self) {
    return *static_cast<ModelObject*>(self->plugin_data)->adapter;
  }
};

/// Warns of the keys of config.json that the adapter does not know. If an adapter does not use
/// HfConfig(checkpoint), its keys cannot be checked, and there is no warning.
inline void warn_of_unread_keys(const Checkpoint& checkpoint, const char* id, const aq_host* host) {
  if (!checkpoint.keys_read()->any() || host == nullptr || !AQ_HAS(host, log)) return;
  std::string keys;
  for (const std::string& key : checkpoint.keys_read()->unread(checkpoint.config()))
    keys += (keys.empty() ? "" : ", ") + key;
  if (keys.empty()) return;
  const std::string text = "config.json: model \"" + std::string(id) +
                           "\" does not know these keys and runs as if they were not set: " + keys;
  host->log(host, AQ_LOG_WARNING, text.c_str());
}

/// The factory of classes that each have
///   static constexpr aq::Descriptor kDescriptor;
///   static int probe(const nlohmann::json& config, std::string& why);
///   static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint);
/// and, if the model has other names than its id,
///   static constexpr const char* kAliases = "one another";
template <typename... Classes>
struct ModelFactory {
  static constexpr aq_descriptor kDescriptors[]{aq_descriptor(Classes::kDescriptor)...};

  template <typename Class>
  static constexpr const char* aliases_of() {
    if constexpr (requires { Class::kAliases; })
      return Class::kAliases;
    else
      return nullptr;
  }

  static uint32_t AQ_CALL count(const aq_model_factory*) noexcept { return sizeof...(Classes); }
  static const aq_descriptor* AQ_CALL descriptor(const aq_model_factory*, uint32_t i) noexcept {
    return &kDescriptors[i];
  }
  static int32_t AQ_CALL probe(const aq_model_factory*, uint32_t i, const char* config, char* why,
                               size_t why_size) noexcept {
    static constexpr int (*kProbe[])(const nlohmann::json&, std::string&){Classes::probe...};
    aq_error ignored{};
    int32_t score = 0;
    guard(&ignored, [&] {
      std::string reason;
      score = kProbe[i](nlohmann::json::parse(config), reason);
      std::snprintf(why, why_size, "%s", reason.c_str());
    });
    return score;
  }
  static const aq_model* AQ_CALL create(const aq_model_factory*, uint32_t i, const aq_host* host,
                                        const aq_checkpoint* checkpoint, aq_error* err) noexcept {
    static constexpr std::unique_ptr<ModelAdapter> (*kCreate[])(const Checkpoint&){
        Classes::create...};
    const aq_model* model = nullptr;
    guard(err, [&] {
      const Checkpoint given(checkpoint);
      auto object = std::make_unique<ModelObject>(kCreate[i](given));
      warn_of_unread_keys(given, kDescriptors[i].id, host);
      model = &object.release()->table;
    });
    return model;
  }
  static const char* AQ_CALL aliases(const aq_model_factory*, uint32_t i) noexcept {
    static constexpr const char* kAliases[]{aliases_of<Classes>()...};
    return kAliases[i];
  }
  static constexpr aq_model_factory kFactory{
      sizeof(aq_model_factory), 0, count, descriptor, probe, create, aliases};
  static const void* AQ_CALL get(const char* id) noexcept {
    return std::string_view(id) == AQ_MODEL_FACTORY_ID ? &kFactory : nullptr;
  }
};

}  // namespace detail

/// The signs by which a family recognises its config.json.
struct FamilySigns {
  const char* model_type;
  const char* architecture;  // of "architectures"
  /// Keys for a config.json with neither model_type nor architectures: it is the family's if it has
  /// all keys of `has` (at least one) and none of `lacks`.
  std::vector<const char*> has{}, lacks{};
};

/// How certain a family is that a config.json is its own: 100 if model_type matches; 90 if only
/// `architectures` matches; 50 if only keys tell; otherwise 0. `why` receives the reason.
inline int probe_config(const nlohmann::json& config, const FamilySigns& signs, std::string& why) {
  if (!config.is_object()) return 0;
  const auto is_set = [&config](const char* key) {
    return config.contains(key) && !config[key].is_null();
  };
  if (is_set("model_type") && config["model_type"] == signs.model_type) {
    why = std::string("model_type is ") + signs.model_type;
    return 100;
  }
  if (is_set("architectures") && config["architectures"].is_array())
    for (const auto& name : config["architectures"])
      if (name == signs.architecture) {
        why = std::string("architectures has ") + signs.architecture;
        return 90;
      }
  const std::vector<const char*>&has = signs.has, &lacks = signs.lacks;
  if (has.empty() || is_set("model_type") || is_set("architectures") ||
      !std::all_of(has.begin(), has.end(), is_set) ||
      std::any_of(lacks.begin(), lacks.end(), is_set))
    return 0;
  why = "neither model_type nor architectures is there, but";
  for (const char* key : has) why += std::string(" ") + key;
  return 50;
}

}  // namespace aq

/// Exports one or several families; aq::detail::ModelFactory lists what their classes must have.
#define AQ_EXPORT_MODEL(...) AQ_EXPORT_ENTRY(aq::detail::ModelFactory<__VA_ARGS__>::get)
