#include "plugin/registry.h"

#include <doctest/doctest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <map>
#include <sstream>
#include <thread>

#include "plugin/fixtures.h"
#include "plugin/said.h"
#include "plugin/small_source.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

namespace fs = std::filesystem;

/// What spdlog says while this lives, a line each.
class Log {
 public:
  Log() : before_(spdlog::default_logger()) {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(text_);
    auto logger = std::make_shared<spdlog::logger>("test", sink);
    logger->set_pattern("%v");
    spdlog::set_default_logger(logger);
  }
  ~Log() { spdlog::set_default_logger(before_); }
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::logger> before_;
};

/// By the file's name without its folder and ".so".
std::map<std::string, PluginInfo> listed(const Registry& registry) {
  std::map<std::string, PluginInfo> infos;
  for (const PluginInfo& info : registry.plugins())
    CHECK(infos.try_emplace(fs::path(info.path).stem().string(), info).second);
  return infos;
}

}  // namespace

TEST_CASE("each bad file is refused with its reason, and the others load") {
  const std::map<std::string, std::string> reasons{
      {"no-symbol", "has no symbol aq_plugin_entry: not a plugin of aqhost"},
      {"not-elf", "it is no 64-bit ELF shared library"},
      {"not-constant", "its aq_plugin_entry is not constant data"},
      {"undefined", "nobody_has_this"},
      {"other-major", "it is built for plugin ABI " + kOtherAbi + ", this aqhost has 1."},
      {"short-entry", "its entry says it has 4 bytes: not a plugin of aqhost"},
      {"no-get-factory", "its entry has no get_factory"},
      {"no-factory", "it offers neither models nor formats"},
      {"init-fails", "its init failed: eeeee eee"},
      {"init-throws", "its init failed: it let a C++ exception out, which the ABI forbids"},
      {"init-crashes", "it crashed (Aborted) when it was looked at"},
      {"init-exits", "it ended the process (status 3) when it was looked at"},
      {"get-factory-throws", "get_factory let an exception out: no factory for you"},
      {"no-probe", "its model factory lacks a function"},
      {"no-descriptor", "its model factory lacks a function"},
      {"count-throws", "count let an exception out: no counting"},
      {"count-absurd", "it offers 4000000000 of kind model"},
      {"descriptor-null", "its descriptor is missing or too short"},
      {"id-null", "its id \"\" is not made of a-z"},
      {"id-bad", "its id \"Two Words\" is not made of a-z"},
      {"second-id-bad", "its id \"../up\" is not made of a-z"},
      {"twin-2", "the id \"twin\" is taken by " + (kFixtures / "plugins-bad/twin-1.so").string()},
  };
  const Registry registry({kFixtures / "plugins-bad"});
  const auto infos = listed(registry);
  for (const auto& [file, reason] : reasons) {
    CAPTURE(file);
    REQUIRE(infos.contains(file));
    CHECK_MESSAGE(contains(infos.at(file).refused, reason), infos.at(file).refused);
  }
  std::vector<std::string> usable;
  for (const auto& [file, info] : infos)
    if (info.refused.empty()) usable.push_back(info.id);
  CHECK(usable == std::vector<std::string>{"create-null", "create-of-short-table", "create-throws",
                                           "deinit-throws", "names-null", "newer-minor",
                                           "probe-throws", "twin"});
  CHECK(registry.model_ids() == usable);
  CHECK(registry.format_ids().empty());
  CHECK(infos.size() == reasons.size() + usable.size());
  CHECK(infos.at("newer-minor").abi == "1.999");
  CHECK(infos.at("other-major").abi == kOtherAbi);
  CHECK(infos.at("newer-minor").version == "2.3.4");
  CHECK(infos.at("newer-minor").kind == "model");
  CHECK(infos.at("names-null").version.empty());
}

TEST_CASE("a probe that throws is said so and counts as no") {
  const Registry registry({kFixtures / "plugins-bad"});
  Log log;
  CHECK(registry.probe(Json::object()).empty());
  CHECK_MESSAGE(contains(log.text(),
                         "probe-throws.so: model \"probe-throws\": probe let an "
                         "exception out"),
                log.text());
}

TEST_CASE("a probe is bounded: its score by 100, its reason by the buffer") {
  const Registry registry({kFixtures / "plugins-probing"});
  const auto matches = registry.probe(Json::object());
  REQUIRE(matches.size() == 1);
  CHECK(matches[0].score == 100);
  CHECK(matches[0].why == std::string(255, 'x'));
}

TEST_CASE("an adapter that cannot be made says which file failed") {
  const Registry registry({kFixtures / "plugins-bad"});
  const SmallSource source;
  const std::map<std::string, std::string> reasons{
      {"create-throws", "create-throws.so: model \"create-throws\": it let a C++ exception out"},
      {"create-null", "create-null.so: model \"create-null\": status 6 without a message"},
      {"create-of-short-table", "a function that every adapter has is missing"}};
  for (const auto& [id, reason] : reasons) {
    const std::string text = said([&, &id = id] { registry.create_model(source, id); });
    CHECK_MESSAGE(contains(text, reason), text);
    CHECK(contains(text, id + ".so"));
  }
}

TEST_CASE("unknown ids: the nearest, or where to look") {
  const Registry registry({kFixtures / "plugins-lying"});
  const SmallSource source;
  CHECK(said([&] { registry.create_model(source, "honst"); }) ==
        "--model-type \"honst\": no such model plugin, did you mean \"honest\"?");
  CHECK(said([&] { registry.create_format("honset", Json::object()); }) ==
        "no plugin offers the format \"honset\", did you mean \"honest\"?");
  const Registry none({});
  CHECK(contains(said([&] { none.create_format("int4", Json::object()); }),
                 "no format plugin was found in ; give --plugin-dir"));
}

TEST_CASE("without any plugin every error says where they were looked for") {
  const TempFolder empty;
  const fs::path missing = empty / "missing";
  const Registry registry({empty.path(), missing});
  const std::string where = "plugin was found in " + empty.path().string() + ", " +
                            missing.string() + " (no such folder); give --plugin-dir";
  const SmallSource source;
  for (const std::string& text : {said([&] { registry.create_model(source, "auto"); }),
                                  said([&] { registry.create_model(source, "olmoe"); }),
                                  said([&] { registry.create_format("int4", Json::object()); })})
    CHECK_MESSAGE(contains(text, where), text);
}

TEST_CASE("create() of one factory is never called twice at once") {
  const Registry registry({kFixtures / "plugins-counted"});
  std::vector<std::thread> threads;
  std::vector<std::string> errors(8);
  for (std::string& error : errors)
    threads.emplace_back(
        [&] { error = said([&] { registry.create_format("counted", Json::object()); }); });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) CHECK(error == "");
}

TEST_CASE("init comes first, deinit when the registry and all it made are gone") {
  Log log;
  auto registry = std::make_unique<Registry>(std::vector{kFixtures / "plugins-counted"});
  const std::string path = (kFixtures / "plugins-counted/counted.so").string();
  CHECK(log.text() == path + "\n");
  auto format = registry->create_format("counted", Json::object());
  registry.reset();
  CHECK(log.text() == path + "\n");
  format.reset();
  CHECK(log.text() == path + "\ndeinit\n");
}

TEST_CASE("folders: the given ones, then AQ_PLUGIN_PATH, and a given one must be there") {
  const fs::path a = kFixtures / "plugins-bad", b = kFixtures / "plugins-lying";
  const std::string list = "::" + b.string() + ":/no/such/folder:" + a.string() + ":";
  REQUIRE(setenv("AQ_PLUGIN_PATH", list.c_str(), 1) == 0);
  const auto folders = plugin_search_path({a});
  REQUIRE(unsetenv("AQ_PLUGIN_PATH") == 0);
  REQUIRE(folders.size() == 6);
  CHECK(folders[0] == a);
  CHECK(folders[1] == b);
  CHECK(folders[2] == "/no/such/folder");
  CHECK(folders[3] == a);
  CHECK(said([] { plugin_search_path({"/no/such/folder"}); }) ==
        "--plugin-dir /no/such/folder: no such folder");
  const Registry registry({b, b, b / "." / "../plugins-lying"});
  CHECK(registry.plugins().front().refused.empty());
  CHECK(registry.plugins().back().refused.empty());
}

}  // namespace aqhost
