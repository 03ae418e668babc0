#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace aqhost {

/// What came of one rule of the SDK's headers.
struct Verdict {
  enum class Result { kHolds, kBroken, kSkipped };
  std::string subject;  // "file", "model olmoe", "format int4"
  std::string rule;     // "names and keys are inverse"
  Result result = Result::kHolds;
  std::string detail;  // of a broken rule what came, of a skipped one why
};

/// Thrown by the body of a rule that cannot be tried here.
class Skip : public Error {
 public:
  using Error::Error;
};

/// Tries rules, each in a child process, so that a plugin that crashes or hangs breaks a rule and
/// nothing else. The process must have one thread.
class Rules {
 public:
  using Body = std::function<void()>;

  explicit Rules(std::string subject) : subject_(std::move(subject)) {}

  /// The rule holds if `body` returns, is broken if it throws, ends the process, or takes longer
  /// than a minute. Whether it holds.
  bool rule(const std::string& name, const Body& body);
  std::vector<Verdict> take() { return std::move(verdicts_); }

 private:
  std::string subject_;
  std::vector<Verdict> verdicts_;
};

/// Tries the rules of aq/abi.h, aq/model.h and aq/quantizer.h on the plugin in `file`, as far as
/// sdk/README.md says. Adapters are tried on the checkpoint in `model`; without one, what needs it
/// is skipped. Error if a path does not exist.
std::vector<Verdict> check_plugin(const std::filesystem::path& file,
                                  const std::optional<std::filesystem::path>& model);

bool all_hold(const std::vector<Verdict>& verdicts);

/// "holds", "broken" or "skipped".
const char* to_word(Verdict::Result result);

/// One line: "holds    format int4: pack and unpack are inverse".
std::string to_line(const Verdict& verdict);

}  // namespace aqhost
