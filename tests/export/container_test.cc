#include "export/container.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "export/autogptq.h"
#include "export/compressed_tensors.h"

namespace aqhost {
namespace {

/// The name of the container that a config.json with this quantization_config describes, or why
/// there is none.
std::string recognised(const Json& quantization) {
  try {
    return container_of({{"quantization_config", quantization}}, "m").name();
  } catch (const Error& e) {
    return e.what();
  }
}

}  // namespace

TEST_CASE("a container is found by its name, and one of checkpoints is in the list of names") {
  for (const Container* container : containers()) {
    CHECK(find_container(container->name()) == container);
    const bool listed =
        container_names("'").find("'" + container->name() + "'") != std::string::npos;
    CHECK(listed == (&container->of_checkpoint() == container));
  }
  CHECK(find_container("gguf") != nullptr);
  CHECK(find_container("awq") == nullptr);
  CHECK(container_names("") == "compressed-tensors or gptq");
}

TEST_CASE("a container is recognised by quant_method, or by the groups of a format's own method") {
  CHECK(recognised({{"quant_method", "gptq"}, {"bits", 4}}) == "gptq");
  CHECK(recognised({{"quant_method", "gptq"}, {"config_groups", 3}}) == "gptq");
  CHECK(recognised({{"quant_method", "compressed-tensors"}}) == "compressed-tensors");
  CHECK(recognised({{"quant_method", "alphaquant"}, {"config_groups", Json::object()}}) ==
        "compressed-tensors");
  const std::string at = "m/config.json: quantization_config";
  CHECK(recognised({{"quant_method", "awq"}}) ==
        at + ".quant_method is \"awq\", expected \"compressed-tensors\" or \"gptq\"; a model to be "
             "quantized may also have \"fp8\" or \"mxfp4\"");
  CHECK(recognised({{"bits", 4}}) == at + ".quant_method: expected a string, found nothing");
  CHECK(recognised(3) == at + ": expected an object, found 3");
}

TEST_CASE("the bytes of a module do not count tensors that hold only a shape or an order") {
  CHECK(stored_bytes({{"weight_packed", DType::kI32, {2, 3}},
                      {"weight_shape", DType::kI64, {2}},
                      {"g_idx", DType::kI32, {7}}}) == 24);
}

TEST_CASE("a quantization_config that is null or empty is none") {
  CHECK(!is_quantized(Json::object()));
  CHECK(!is_quantized({{"quantization_config", nullptr}}));
  CHECK(!is_quantized({{"quantization_config", Json::object()}}));
  for (const Json& value : {Json(3), Json("x"), Json::array(), Json{{"quant_method", "awq"}}})
    CHECK(is_quantized({{"quantization_config", value}}));
}

}  // namespace aqhost
