#pragma once

#include <cstdint>
#include <vector>

#include "base/field.h"

namespace aqhost {

/// The `post_processor` of tokenizer.json, as far as it affects the ids of a single text: the ids
/// that go before and after it. Supports TemplateProcessing, ByteLevel (which only moves offsets)
/// and Sequence.
class PostProcessor {
 public:
  /// If `config` is null, nothing is added.
  explicit PostProcessor(const Field& config);

  const std::vector<int32_t>& prefix() const { return prefix_; }
  const std::vector<int32_t>& suffix() const { return suffix_; }

 private:
  void add(const Field& config);
  void add_template(const Field& config);

  std::vector<int32_t> prefix_, suffix_;
  bool templated_ = false;
};

}  // namespace aqhost
