#pragma once

#include <filesystem>
#include <string>

namespace aqhost {

/// What a command reads of a model.
enum class ModelPart { kWeights, kTokenizer, kConfig };

/// The folder in which the Hugging Face Hub's client keeps models: HF_HUB_CACHE,
/// HUGGINGFACE_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub, or else
/// ~/.cache/huggingface/hub. An empty variable counts as unset.
std::filesystem::path hub_cache();

/// The folder of the model that a user calls `given`:
///   a folder                    that folder; if it is a repository folder of a Hub cache
///                               (models--ORG--NAME), its snapshot that refs/main names
///   ORG/NAME, ORG/NAME@REVISION the snapshot of refs/main, or of the revision (a branch, a tag or
///                               a commit), in hub_cache(), if there is no folder `given`
/// A name without a slash is an id only if the cache has it. Whatever else does not exist is
/// returned as it is, for the reader to complain of. Nothing is downloaded. Throws an Error with
/// the command that fetches the model if the cache does not have an id, or if files of `part` are
/// missing in a snapshot.
std::filesystem::path find_model(const std::string& given, ModelPart part);

/// Whether a text can be the id "ORG/NAME" of a model on the Hugging Face Hub.
bool is_hub_id(const std::string& text);

/// The id "ORG/NAME" of a model in a snapshot folder of a Hub cache; "" for other folders.
std::string hub_id(const std::filesystem::path& folder);

}  // namespace aqhost
