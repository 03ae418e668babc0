#include "plugin/library.h"

#include <fmt/format.h>

#include <cstddef>

#include "base/error.h"
#include "plugin/call.h"

namespace aqhost {
namespace dll = boost::dll;

Library::Library(const std::filesystem::path& file) : path_(file.string()) {
  try {
    library_.load(path_, dll::load_mode::rtld_now | dll::load_mode::rtld_local);
  } catch (const std::exception& e) {
    fail("cannot be loaded: {}", e.what());
  }
  if (!library_.has("aq_plugin_entry"))
    fail("has no symbol aq_plugin_entry: not a plugin of aqhost");
  entry_ = &library_.get<const aq_entry>("aq_plugin_entry");
  if (entry_->struct_size < offsetof(aq_entry, init))
    fail("its entry says it has {} bytes: not a plugin of aqhost", entry_->struct_size);
}

Library::~Library() {
  if (started_ && AQ_HAS(entry_, deinit)) call_quietly([&] { entry_->deinit(); });
}

std::string Library::abi() const {
  return fmt::format("{}.{}", entry_->abi_major, entry_->abi_minor);
}

void Library::start(const aq_host& host) {
  if (entry_->abi_major != AQ_ABI_MAJOR)
    fail("it is built for plugin ABI {}, this aqhost has {}.{}; rebuild it with this SDK", abi(),
         AQ_ABI_MAJOR, AQ_ABI_MINOR);
  if (!AQ_HAS(entry_, get_factory)) fail("its entry has no get_factory");
  if (AQ_HAS(entry_, init)) {
    aq_error error;
    const aq_status status =
        call_plugin(error, [&](aq_error* e) { return entry_->init(&host, path_.c_str(), e); });
    if (status != AQ_OK) fail("its init failed: {}", error_text(status, error));
  }
  started_ = true;
}

const void* Library::factory(const char* id) const {
  return call_or_fail("get_factory", [&] { return entry_->get_factory(id); });
}

}  // namespace aqhost
