#pragma once

#include <string>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "report/report.h"

namespace aqhost {

/// What only the command line knows about a run.
struct CardOptions {
  std::string command;  // that repeats the run, without folders of this machine
  std::string recipe;   // the text of the recipe; "" if there is none
};

/// The name by which a model card calls the original: its id on the Hugging Face Hub if its folder
/// is a snapshot of the Hub's cache, or config.json's _name_or_path if that is an id; otherwise the
/// name of the folder.
std::string base_model_name(const Source& original);

/// The text of an export's README.md, a model card as the Hugging Face Hub reads it: the front
/// matter in YAML (with the licence that the original's README.md gives, if it does), what was
/// done, what the run measured, how to serve the export in the engines that load it and why others
/// do not, and how to repeat the run. It contains neither times nor paths, so that the same run
/// gives the same text.
std::string model_card(const Source& original, const Model& model, const Plan& plan,
                       const RunReport& report, const CardOptions& options);

}  // namespace aqhost
