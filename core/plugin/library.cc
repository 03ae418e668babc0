#include "plugin/library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstddef>

#include "base/error.h"
#include "plugin/call.h"

namespace aqhost {
namespace dll = boost::dll;

EntryHead entry_head(const PluginFile& file) {
  const auto head = read_entry_head(file.open_path());
  if (!head) fail("has no symbol aq_plugin_entry: not a plugin of aqhost");
  if (head->struct_size < offsetof(aq_entry, init))
    fail("its entry says it has {} bytes: not a plugin of aqhost", head->struct_size);
  return *head;
}

std::string abi_text(const EntryHead& head) {
  return fmt::format("{}.{}", head.abi_major, head.abi_minor);
}

Library::Loaded::~Loaded() {
  if (!library.is_loaded()) return;
  library.unload();
  // the linker keeps a library that was also loaded elsewhere, or that may not be unloaded
  if (void* still_there = ::dlopen(file->open_path().c_str(), RTLD_LAZY | RTLD_NOLOAD)) {
    ::dlclose(still_there);
    file->keep_open();
  }
}

Library::Library(std::shared_ptr<PluginFile> file) : loaded_{std::move(file)} {
  const EntryHead head = entry_head(*loaded_.file);
  if (head.abi_major != AQ_ABI_MAJOR)
    fail("it is built for plugin ABI {}, this aqhost has {}.{}; rebuild it with this SDK",
         abi_text(head), AQ_ABI_MAJOR, AQ_ABI_MINOR);
  try {
    loaded_.library.load(loaded_.file->open_path(),
                         dll::load_mode::rtld_now | dll::load_mode::rtld_local);
    entry_ = &loaded_.library.get<const aq_entry>("aq_plugin_entry");
  } catch (const std::exception& e) {
    std::string text = e.what();  // it names the file by its descriptor
    const std::string opened = loaded_.file->open_path();
    if (const std::size_t at = text.find(opened); at != std::string::npos)
      text.replace(at, opened.size(), path());
    fail("cannot be loaded: {}", text);
  }
}

Library::~Library() {
  if (started_ && AQ_HAS(entry_, deinit)) call_quietly([&] { entry_->deinit(); });
}

void Library::start(const aq_host& host) {
  if (!AQ_HAS(entry_, get_factory)) fail("its entry has no get_factory");
  if (AQ_HAS(entry_, init)) {
    aq_error error;
    const aq_status status =
        call_plugin(error, [&](aq_error* e) { return entry_->init(&host, path().c_str(), e); });
    if (status != AQ_OK) fail("its init failed: {}", error_text(status, error));
  }
  started_ = true;
}

const void* Library::factory(const char* id) const {
  return call_or_fail("get_factory", [&] { return entry_->get_factory(id); });
}

}  // namespace aqhost
