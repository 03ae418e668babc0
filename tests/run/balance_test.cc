#include "run/balance.h"

#include <cmath>

#include "base/file.h"
#include "calibrate/windows.h"
#include "measure/evaluate.h"
#include "run/calibration.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

using Choice = std::vector<int64_t>;

/// The use of one layer with two experts: for each window, how often it uses either expert.
WindowUse two_experts(std::initializer_list<float> uses, std::initializer_list<double> loss) {
  return {{at::tensor(at::ArrayRef<float>(uses)).view({-1, 2})},
          at::tensor(at::ArrayRef<double>(loss))};
}

}  // namespace

TEST_CASE("windows that use different experts are chosen together") {
  const WindowUse use = two_experts({9, 1, 8, 2, 1, 9, 8, 2}, {1, 1, 1, 1});
  const std::vector<std::size_t> one_file(4, 0);
  CHECK(spread_of(use, {0, 1}) == doctest::Approx(0.7));
  const Choice chosen = choose_balanced(use, one_file, {2});
  CHECK(chosen == Choice{1, 2});
  CHECK(spread_of(use, chosen) == doctest::Approx(0.1));
}

TEST_CASE("of windows that use experts equally, the likelier ones are chosen") {
  const WindowUse use = two_experts({5, 5, 5, 5, 5, 5}, {3, 1, 2});
  CHECK(choose_balanced(use, {0, 0, 0}, {2}) == Choice{1, 2});
}

TEST_CASE("every file gives its quota of windows") {
  const WindowUse use = two_experts({9, 1, 8, 2, 5, 5, 5, 5}, {1, 1, 1, 1});
  CHECK(choose_balanced(use, {0, 0, 1, 1}, {1, 1}).front() == 1);
  CHECK(choose_balanced(use, {0, 0, 1, 1}, {2, 0}) == Choice{0, 1});
}

TEST_CASE("the use of experts and the loss of windows are those of a plain run") {
  const OpenModel open;
  const at::Tensor windows = (at::arange(200 * 100) * 7919 % 2048).view({200, 100});
  const WindowUse use = window_use(open.reader(), open.model(), windows, at::kFloat, {});
  REQUIRE(use.experts.size() == 2);
  for (const at::Tensor& layer : use.experts) {
    CHECK(layer.sizes() == at::IntArrayRef{200, 4});
    CHECK(layer.sum(1).eq(100 * 2).all().item<bool>());  // every token has two experts
  }
  const Perplexity all = perplexity(open.reader(), open.model(), windows, {});
  CHECK(use.loss.mean().item<double>() == doctest::Approx(std::log(all.value)).epsilon(1e-4));
}

TEST_CASE(
    "balanced calibration data: as many windows of each file, less spread, the same by seed") {
  const OpenModel open;
  const std::string text = read_file(fs::path(AQ_TESTS_DIR) / "data/kjv_eval.txt");
  write_file(open / "a.txt", text.substr(0, 100'000));
  write_file(open / "b.txt", text.substr(100'000, 100'000));
  CalibrationOptions options{{{open / "a.txt", 3}, {open / "b.txt", 1}}, 8, 64, 5, 0};
  RunObserver silent;
  const Calibration plain =
      read_calibration(open.reader(), open.model(), options, at::kFloat, silent);
  options.balance_experts = true;
  const Calibration balanced =
      read_calibration(open.reader(), open.model(), options, at::kFloat, silent);
  CHECK_FALSE(plain.report.balance);
  const CalibrationReport::Balance& told = balanced.report.balance.value();
  CHECK(told.pool == 32);
  CHECK(told.spread_after < told.spread_before);
  for (const std::size_t i : {0, 1})
    CHECK(balanced.report.files.at(i).windows == plain.report.files.at(i).windows);
  CHECK(balanced.windows.sizes() == plain.windows.sizes());
  CHECK_FALSE(balanced.windows.equal(plain.windows));
  const WindowUse use = window_use(open.reader(), open.model(), balanced.windows, at::kFloat, {});
  CHECK(spread_of(use, {0, 1, 2, 3, 4, 5, 6, 7}) == doctest::Approx(told.spread_after));
  CHECK(read_calibration(open.reader(), open.model(), options, at::kFloat, silent)
            .windows.equal(balanced.windows));
}

TEST_CASE(
    "random windows take turns with those of the text, and are fewer where the text is short") {
  const OpenModel open;
  RunObserver silent;
  const std::string text = read_file(fs::path(AQ_TESTS_DIR) / "data/kjv_eval.txt");
  write_file(open / "a.txt", text.substr(0, 100'000));
  CalibrationOptions options{{{open / "a.txt"}}, 9, 64, 5, 34};
  const Calibration mixed =
      read_calibration(open.reader(), open.model(), options, at::kFloat, silent);
  CHECK(mixed.report.random_windows == 3);
  CHECK(mixed.report.windows == 9);
  CHECK(mixed.report.files[0].windows == 6);
  options.nsamples = 6;
  options.random_percent = 0;
  const Calibration plain =
      read_calibration(open.reader(), open.model(), options, at::kFloat, silent);
  CHECK(plain.report.random_windows == 0);
  const at::Tensor random = random_windows(3, 64, open.model().desc().vocab_size, 5);
  const auto text_at = at::tensor({0, 2, 3, 5, 6, 8}), random_at = at::tensor({1, 4, 7});
  CHECK(mixed.windows.index_select(0, text_at).equal(plain.windows));
  CHECK(mixed.windows.index_select(0, random_at).equal(random));

  write_file(open / "a.txt", text.substr(0, 1'000));
  options.nsamples = 1000;
  options.random_percent = 50;
  const Calibration few =
      read_calibration(open.reader(), open.model(), options, at::kFloat, silent);
  CHECK(few.report.files[0].windows > 0);
  CHECK(few.report.random_windows == few.report.files[0].windows);
}

}  // namespace aqhost
