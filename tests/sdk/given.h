#pragma once

#include <aq/sdk/model.hpp>
#include <string>

/// A checkpoint that is a config.json and no tensors, and what the adapter logs while it is made.
class Given {
 public:
  explicit Given(const nlohmann::json& config) : text_(config.dump()) {
    raw_ = {
        sizeof raw_, 0, this, text_.c_str(),
        [](const aq_checkpoint*, const char*, aq_tensor_meta*) { return aq_status{AQ_NOT_FOUND}; }};
    host_ = {sizeof host_,
             AQ_ABI_MINOR,
             this,
             "test",
             "0",
             [](const aq_host* host, int32_t severity, const char* message) {
               static_cast<Given*>(host->host_data)->logged_ +=
                   std::to_string(severity) + " " + message + "\n";
             },
             nullptr};
  }
  Given(const Given&) = delete;
  Given& operator=(const Given&) = delete;

  const aq_checkpoint* checkpoint() const { return &raw_; }
  const aq_host* host() const { return &host_; }
  /// "SEVERITY MESSAGE\n" of each.
  const std::string& logged() const { return logged_; }

 private:
  std::string text_, logged_;
  aq_checkpoint raw_{};
  aq_host host_{};
};

/// The message of the aq::Error that `body` throws, "" where it throws none.
template <typename Body>
std::string error_of(Body body) {
  try {
    body();
  } catch (const aq::Error& e) {
    return e.what();
  }
  return "";
}
