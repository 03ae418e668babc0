#include <fmt/ranges.h>

#include <algorithm>

#include "conformance/subjects.h"
#include "plugin/elf.h"
#include "plugin/library.h"

namespace aqhost {
namespace {

bool is_host_library(const std::string& name) {
  for (const char* part : {"torch", "c10", "aqhost"})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

}  // namespace

bool check_file(const std::filesystem::path& file, std::vector<Verdict>& verdicts) {
  Rules rules("file");
  rules.rule("it exports aq_plugin_entry and nothing else", [&] {
    const auto exported = read_dynamic(file).exported;
    expect(!exported.empty(), "it exports nothing");
    expect(exported == std::vector<std::string>{"aq_plugin_entry"}, "it exports {}",
           fmt::join(exported, ", "));
  });
  rules.rule("it links neither LibTorch nor aqhost", [&] {
    for (const std::string& name : read_dynamic(file).needed)
      expect(!is_host_library(name), "it needs {}", name);
  });
  bool loads = rules.rule("it loads, and its entry is of this ABI", [&] {
    const Library library(std::make_shared<PluginFile>(file, true));
    expect(library.entry().struct_size % alignof(aq_entry) == 0,
           "struct_size is {}, no size that aq_entry had", library.entry().struct_size);
  });
  loads = loads && rules.rule("what it offers is described and has ids for recipes", [&] {
    const auto registry = Registry::of_file(file);
    for (const PluginInfo& info : registry->plugins()) {
      expect(info.refused.empty(), "{}", info.refused);
      expect(!info.name.empty() && !info.version.empty() && !info.vendor.empty() &&
                 !info.description.empty(),
             "{} lacks a name, version, vendor or description", info.id);
    }
  });
  if (loads)
    rules.rule("an id that it does not know gives no factory", [&] {
      const Library library(std::make_shared<PluginFile>(file, true));
      const auto registry = Registry::of_file(file);
      expect(library.entry().get_factory("aq.no-such-factory/1") == nullptr, "it gave one");
    });
  for (Verdict& verdict : rules.take()) verdicts.push_back(std::move(verdict));
  return loads;
}

}  // namespace aqhost
