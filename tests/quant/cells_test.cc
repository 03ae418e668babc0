#include "quant/cells.h"

#include <algorithm>

#include "quant/formats.h"
#include "quant/problem.h"
#include "quant/quantize.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

at::Tensor decoded(const Format& format, const QuantizedMatrix& m) {
  return at::tensor(format.dequantize(m)).view({m.rows, m.cols});
}

}  // namespace

TEST_CASE("a weight that crosses a border takes the next code, at the end of the grid it stays") {
  for (const auto& format : {int_format(3, {{"group_size", 16}, {"symmetric", false}}),
                             int_format(3, {{"group_size", 16}}),  // half its scales are negative
                             fp4_format("mx", 32), fp4_format("nv", 16), fp4_format("f32", 0),
                             two_level_format(2), two_level_format(3)}) {
    const Problem problem(1, 6, 64, 1);
    const QuantizedBatch solved = quantize_gptq(*format, problem.weights, problem.hessians, {});
    const QuantizedMatrix before = solved.matrix(0, 0, 6);
    const at::Tensor from = decoded(*format, before);
    for (const double direction : {1.0, -1.0}) {
      Cells cells(format->desc(), problem.weights[0], before);
      CHECK(at::allclose(cells.weights(), from));
      for (int i = 0; i < 100; i++)  // asks for ten cells; a weight moves half a cell
        cells.move(at::full({6, 64}, -direction), 0.1);
      QuantizedMatrix after = before;
      cells.store(after);
      const at::Tensor to = decoded(*format, after), moved = (to - from) * direction;
      CHECK(at::allclose(cells.weights(), to));
      CHECK(moved.min().item<double>() >= 0);
      CHECK((moved > 0).sum().item<int64_t>() > 50);
      if (!format->desc().zero_point()) continue;
      // a weight whose original lies beyond the value on that side takes the next code
      const at::Tensor beyond = (problem.weights[0] - from) * direction > 0;
      for (int64_t i = 0; i < beyond.numel(); i++) {
        const auto at = static_cast<std::size_t>(i);
        const int code = std::to_integer<int>(before.codes[at]);
        const int64_t group = i / 64 * format->desc().groups(64) + i % 64 / 16;
        const bool turned =
            before.group_params[static_cast<std::size_t>(group * format->desc().group_params)] < 0;
        const int last = format->desc().int_max - format->desc().int_min;
        const int next = std::clamp(code + ((direction > 0) != turned ? 1 : -1), 0, last);
        CHECK(std::to_integer<int>(after.codes[at]) ==
              (beyond.flatten()[i].item<bool>() ? next : code));
      }
    }
    Cells still(format->desc(), problem.weights[0], before);
    QuantizedMatrix same = before;
    still.store(same);
    CHECK((same.codes == before.codes));
  }
}

}  // namespace aqhost
