#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "checkpoint/source.h"
#include "plugin/format.h"
#include "plugin/model.h"
#include "plugin/registry.h"

namespace aqhost {

/// A linear module as a container stores it.
struct StoredModule {
  std::string name;
  std::shared_ptr<const Format> format{};       // null: it stays dense
  std::shared_ptr<const Format> activations{};  // to which its input is rounded; null: not rounded
  int64_t rows = 0, cols = 0;
};

/// The maximum number of rows, and of columns, that a matrix in a quantized checkpoint can have.
inline constexpr int64_t kMaximumFeatures = int64_t{1} << 31;

/// How a checkpoint stores quantized modules, and how its config.json describes them. There is one
/// class for each container. To add one, write its class and list it in containers(). A container
/// that is not a checkpoint, but a file that is made of one, overrides of_checkpoint(), and leaves
/// the functions for config.json and for reading as they are: they throw an Error. Thread-safe.
class Container {
 public:
  virtual ~Container() = default;

  /// The name by which --export, a work folder, and "quant_method" of config.json know it.
  virtual std::string name() const = 0;
  /// The container in which a run writes its checkpoint: this one, or that of which the file of
  /// this container is made.
  virtual const Container& of_checkpoint() const { return *this; }

  /// Why the container cannot say that the inputs of a module are rounded; empty if it can.
  virtual std::string why_no_activations() const { return {}; }
  /// The options of a format like `format` that this container needs, other than its own.
  virtual Json options_for(const Format& /*format*/) const { return Json::object(); }
  /// What config.json calls the way in which modules of `format` are stored: "pack-quantized".
  virtual std::string format_name(const Format& format) const = 0;
  /// The tensors, in order and named by suffix, in which a quantized module is stored. Throws an
  /// Error if the container cannot store that format or shape.
  virtual std::vector<TensorInfo> tensors_of(const StoredModule& module) const = 0;

  /// Stores `matrix` in those tensors; `input_global` is the global scale of the module's
  /// activations.
  virtual std::vector<PackedTensor> pack(const StoredModule& module, const QuantizedMatrix& matrix,
                                         float input_global) const = 0;
  /// The "quantization_config" of config.json. `modules` has every linear module of the model
  /// class, quantized or dense, whether the checkpoint has a tensor for it or not.
  virtual Json config(const std::vector<StoredModule>& modules) const;
  /// The name of a file that repeats "quantization_config"; empty: there is none.
  virtual std::string config_file() const { return {}; }

  /// The quantized modules of a checkpoint in this container, sorted by name, as config.json and
  /// the shapes of some of their tensors describe them. An Error names the file and the field or
  /// module that is not understood. It is not checked that the tensors are those of tensors_of().
  virtual std::vector<StoredModule> modules(const Source& stored, const Registry& registry) const;
  /// Reads back what pack() stored. `tensors` has the bytes of each of tensors_of(). Throws an
  /// Error if a code, scale or other number is not one that the format has.
  virtual QuantizedMatrix unpack(const StoredModule& module,
                                 std::span<const std::span<const std::byte>> tensors) const;
  /// How a module of modules() rounds its input. Throws an Error if the global scale is not valid.
  virtual RoundedInput input_rounding(const Source& /*stored*/,
                                      const StoredModule& /*module*/) const {
    return {};
  }
  /// Throws an Error unless config.json calls the modules in `quantized`, and no other module of
  /// `model`, quantized.
  virtual void check_config(const Source& stored, const std::set<std::string>& quantized,
                            const Model& model) const;

 private:
  [[noreturn]] void refuse_to_read() const;
};

std::span<const Container* const> containers();
/// The container with that name, or nullptr.
const Container* find_container(std::string_view name);
/// The names of all containers of checkpoints, each between two `quote`s, as in "a or b".
std::string container_names(std::string_view quote);
/// Whether a checkpoint with this config.json is quantized: it is not if the key
/// "quantization_config" is missing, null or an empty object.
bool is_quantized(const Json& config);
/// The "quant_method" of such a config.json. Throws an Error if it has none.
std::string quant_method(const Json& config, const std::string& directory);
/// The container of checkpoints that the config.json of `directory` describes. Throws an Error if
/// there is none.
const Container& container_of(const Json& config, const std::string& directory);

/// The names of the modules for which `stored` has a tensor whose suffix is_packed() accepts.
std::set<std::string> packed_modules(const Source& stored,
                                     bool (*is_packed)(std::string_view suffix));

/// The bytes of the tensors of a module, without tensors that hold only a shape or an order
/// (weight_shape, g_idx).
int64_t stored_bytes(const std::vector<TensorInfo>& tensors);

}  // namespace aqhost
