#include "conformance/rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <thread>

#include "base/child.h"
#include "conformance/subjects.h"

namespace aqhost {
namespace {

constexpr int kSeconds = 60;
constexpr char kHolds = 'h', kBroken = 'b', kSkipped = 's';

/// The result of a rule: one of the letters above, followed by the detail.
std::string try_rule(const Rules::Body& body) {
  try {
    body();
    return std::string(1, kHolds);
  } catch (const Skip& e) {
    return kSkipped + std::string(e.what());
  } catch (const std::exception& e) {
    return kBroken + std::string(e.what());
  } catch (...) {
    return kBroken + std::string("an exception of unknown kind");
  }
}

}  // namespace

void expect_on_many_threads(const std::function<void()>& body) {
  std::array<std::string, 4> broken;
  std::vector<std::thread> workers;
  for (std::string& mine : broken)
    workers.emplace_back([&] {
      try {
        body();
      } catch (const std::exception& e) {
        mine = e.what();
      }
    });
  for (std::thread& worker : workers) worker.join();
  for (const std::string& text : broken) expect(text.empty(), "{}", text);
}

bool Rules::rule(const std::string& name, const Body& body) {
  const ChildEnd end = run_in_child(kSeconds, [&] { return try_rule(body); });
  Verdict verdict{subject_, name, Verdict::Result::kBroken, end.trouble(kSeconds)};
  if (verdict.detail.empty()) {
    verdict.detail = end.said.substr(1, end.said.size() - 2);
    if (end.said[0] == kHolds) verdict.result = Verdict::Result::kHolds;
    if (end.said[0] == kSkipped) verdict.result = Verdict::Result::kSkipped;
  }
  verdicts_.push_back(verdict);
  return verdict.result == Verdict::Result::kHolds;
}

std::vector<Verdict> check_plugin(const std::filesystem::path& file,
                                  const std::optional<std::filesystem::path>& model) {
  for (const auto& path : {file, model.value_or(file)})
    if (!std::filesystem::exists(path)) fail("{}: no such file or folder", path.string());
  std::vector<Verdict> verdicts;
  const bool loads = check_file(file, verdicts);
  if (!loads) return verdicts;
  const auto registry = Registry::of_file(file);
  for (const std::string& id : registry->model_ids()) check_model(*registry, id, model, verdicts);
  for (const std::string& id : registry->format_ids()) check_format(*registry, id, verdicts);
  return verdicts;
}

bool all_hold(const std::vector<Verdict>& verdicts) {
  return std::none_of(verdicts.begin(), verdicts.end(),
                      [](const Verdict& v) { return v.result == Verdict::Result::kBroken; });
}

const char* to_word(Verdict::Result result) {
  return result == Verdict::Result::kHolds    ? "holds"
         : result == Verdict::Result::kBroken ? "broken"
                                              : "skipped";
}

std::string to_line(const Verdict& v) {
  const char* word = v.result == Verdict::Result::kBroken ? "BROKEN" : to_word(v.result);
  return fmt::format("{:<8} {}: {}{}{}", word, v.subject, v.rule, v.detail.empty() ? "" : ": ",
                     v.detail);
}

}  // namespace aqhost
