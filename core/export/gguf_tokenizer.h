#pragma once

#include <cstdint>
#include <filesystem>

#include "base/json.h"
#include "export/gguf_file.h"

namespace aqhost {

/// The tokenizer of a checkpoint as llama.cpp reads it, from tokenizer.json, tokenizer_config.json,
/// the chat template and the special ids of config.json. There are two kinds: byte-level BPE
/// ("gpt2", with the name of its pre-tokenizer), and BPE with byte fallback as of SentencePiece
/// ("llama", whose scores follow from the ranks of the merges). Ids without a token, up to
/// `vocab_size`, get unused tokens [PAD2047]. Throws an Error that names file and field if there is
/// no tokenizer.json, if llama.cpp has no tokenizer that does the same, or if there are more tokens
/// than `vocab_size`.
GgufMetadata gguf_tokenizer(const std::filesystem::path& directory, const Json& config,
                            int64_t vocab_size);

}  // namespace aqhost
