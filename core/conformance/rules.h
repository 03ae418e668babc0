#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace aqhost {

/// The result of testing one rule of the SDK's headers.
struct Verdict {
  enum class Result { kHolds, kBroken, kSkipped };
  std::string subject;  // "file", "model olmoe", "format int4"
  std::string rule;     // "names and keys are inverse"
  Result result = Result::kHolds;
  std::string detail;  // what was found, for a broken rule; the reason, for a skipped one
};

/// Thrown by the body of a rule that cannot be tested here.
class Skip : public Error {
 public:
  using Error::Error;
};

/// Tests rules, each in a child process, so that a plugin that crashes or hangs breaks one rule and
/// nothing else. The process must have only one thread.
class Rules {
 public:
  using Body = std::function<void()>;

  explicit Rules(std::string subject) : subject_(std::move(subject)) {}

  /// Tests one rule: it holds if `body` returns, and is broken if `body` throws, ends the process,
  /// or takes longer than a minute. Returns whether it holds.
  bool rule(const std::string& name, const Body& body);
  std::vector<Verdict> take() { return std::move(verdicts_); }

 private:
  std::string subject_;
  std::vector<Verdict> verdicts_;
};

/// Tests the rules of aq/abi.h, aq/model.h and aq/quantizer.h on the plugin in `file`, as far as
/// sdk/README.md says. Adapters are tested on the checkpoint in `model`; without a checkpoint, the
/// rules that need one are skipped. Throws an Error if a path does not exist.
std::vector<Verdict> check_plugin(const std::filesystem::path& file,
                                  const std::optional<std::filesystem::path>& model);

bool all_hold(const std::vector<Verdict>& verdicts);

/// "holds", "broken" or "skipped".
const char* to_word(Verdict::Result result);

/// One line, such as "holds    format int4: pack and unpack are inverse".
std::string to_line(const Verdict& verdict);

}  // namespace aqhost
