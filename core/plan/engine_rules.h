// The parts of loadable() that lie in several files.
#pragma once

#include <string>
#include <vector>

#include "plan/export_case.h"
#include "plan/loadable.h"

namespace aqhost {

/// Sentences about one engine. Sentences with the same cause are merged. `where` is a module, or
/// "config.json".
class Findings {
 public:
  void refuse(const std::string& where, const std::string& cause) { add(refused_, where, cause); }
  void wrong(const std::string& where, const std::string& cause) { add(wrong_, where, cause); }
  void note(const std::string& where, const std::string& cause) { add(notes_, where, cause); }

  void move_to(Loadable& loadable) const;

 private:
  using Sentences = std::vector<PlanWarning>;

  static void add(Sentences& sentences, const std::string& where, const std::string& cause);

  Sentences refused_, wrong_, notes_;
};

/// Refuses what engines cannot divide over `gpus` GPUs by tensor parallelism. The experts are
/// divided, too, as they are without expert parallelism.
void check_split(const Export& exported, int32_t gpus, Findings& findings);

}  // namespace aqhost
