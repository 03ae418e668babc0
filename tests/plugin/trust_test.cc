// Which files are taken for plugins of the user's own, and that what was checked is what is loaded.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <map>

#include "base/sha256.h"
#include "plugin/fixtures.h"
#include "plugin/library.h"
#include "plugin/registry.h"
#include "plugin/said.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

namespace fs = std::filesystem;
const fs::path kCounted = kFixtures / "plugins-counted/counted.so";
constexpr uid_t kStranger = 12345;

void set_mode(const fs::path& path, mode_t mode) { REQUIRE(::chmod(path.c_str(), mode) == 0); }
void give(const fs::path& path, uid_t user) {
  REQUIRE(::lchown(path.c_str(), user, static_cast<gid_t>(-1)) == 0);
}

/// top/middle/folder/plugin.so, a plugin, and top/links/plugin.so, a link to it.
struct Tree {
  TempFolder temp;
  const fs::path top = temp / "top", middle = top / "middle", folder = middle / "folder",
                 links = top / "links", file = folder / "plugin.so", link = links / "plugin.so";

  Tree() {
    fs::create_directories(folder);
    fs::create_directories(links);
    fs::copy(kCounted, file);
    fs::create_symlink(file, link);
    for (const fs::path& path : {top, middle, folder, links, file}) set_mode(path, 0755);
  }
};

/// Why the one plugin in `folder` is refused, "" if it is not.
std::string refusal(const fs::path& folder, ScanOptions options = {}) {
  const Registry registry({folder}, options);
  REQUIRE(registry.plugins().size() == 1);
  return registry.plugins().front().refused;
}

}  // namespace

TEST_CASE("a plugin that another user may exchange is refused, unless it is trusted") {
  struct Case {
    const char* name;
    void (*change)(const Tree&);
    const fs::path Tree::*found_in;  // the folder that is scanned
    std::string expected;            // of the message; $ stands for the top folder. Empty: it loads
  };
  const std::vector<Case> cases{
      {"as it should be", [](const Tree&) {}, &Tree::folder, ""},
      {"reached by a link", [](const Tree&) {}, &Tree::links, ""},
      {"file of the group", [](const Tree& t) { set_mode(t.file, 0775); }, &Tree::folder,
       "$/middle/folder/plugin.so may be written to by its group (mode 775)"},
      {"file of all", [](const Tree& t) { set_mode(t.file, 0757); }, &Tree::folder,
       "$/middle/folder/plugin.so may be written to by others (mode 757)"},
      {"file of all, by a link", [](const Tree& t) { set_mode(t.file, 0757); }, &Tree::links,
       "take that right away (chmod go-w $/middle/folder/plugin.so), or give --trust-plugins"},
      {"sticky file", [](const Tree& t) { set_mode(t.file, 01757); }, &Tree::folder,
       "$/middle/folder/plugin.so may be written to by others (mode 1757)"},
      {"folder of the group", [](const Tree& t) { set_mode(t.folder, 0775); }, &Tree::folder,
       "$/middle/folder may be written to by its group (mode 775)"},
      {"folder above", [](const Tree& t) { set_mode(t.middle, 0777); }, &Tree::folder,
       "$/middle may be written to by others (mode 777)"},
      {"two of them are both told",
       [](const Tree& t) { set_mode(t.middle, 0777), set_mode(t.folder, 0777); }, &Tree::folder,
       "(chmod go-w $/middle $/middle/folder)"},
      {"sticky folder", [](const Tree& t) { set_mode(t.middle, 01777); }, &Tree::folder, ""},
      {"folder of the link", [](const Tree& t) { set_mode(t.links, 0777); }, &Tree::links,
       "$/links may be written to by others (mode 777)"},
      {"folder of the link's file", [](const Tree& t) { set_mode(t.folder, 0777); }, &Tree::links,
       "$/middle/folder may be written to by others (mode 777)"},
      {"folder of a link to a folder",
       [](const Tree& t) {
         fs::create_directory(t.top / "open");
         fs::create_directory_symlink(t.folder, t.top / "open/way");
         fs::remove(t.link);
         fs::create_symlink(t.top / "open/way/plugin.so", t.link);
         set_mode(t.top / "open", 0777);
       },
       &Tree::links, "$/open may be written to by others (mode 777)"},
      {"a relative link with ..",
       [](const Tree& t) {
         fs::remove(t.link);
         fs::create_symlink("../middle/../middle/folder/plugin.so", t.link);
         set_mode(t.middle, 0777);
       },
       &Tree::links, "$/middle may be written to by others (mode 777)"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const Tree tree;
    c.change(tree);
    std::string expected = c.expected;
    for (std::size_t at; (at = expected.find('$')) != std::string::npos;)
      expected.replace(at, 1, tree.top.string());
    const std::string text = refusal(tree.*c.found_in);
    CHECK_MESSAGE((expected.empty() ? text.empty() : contains(text, expected)), text);
    CHECK(refusal(tree.*c.found_in, {.trust = true}) == "");
  }
}

TEST_CASE("a plugin, a folder above it or a link to it that another user owns is refused") {
  if (::geteuid() != 0) {
    MESSAGE("SKIPPED: only root can give files away");
    return;
  }
  for (const auto mine :
       {&Tree::file, &Tree::folder, &Tree::middle, &Tree::top, &Tree::link, &Tree::links}) {
    const Tree tree;
    give(tree.*mine, kStranger);
    const std::string text = refusal(tree.links);
    CHECK_MESSAGE(contains(text, (tree.*mine).string() + " belongs to user 12345"), text);
    CHECK(contains(text, "make root or yourself the owner (chown), or give --trust-plugins"));
    CHECK(refusal(tree.links, {.trust = true}) == "");
  }
}

TEST_CASE("what is no file to be loaded is refused, and the others load") {
  const Tree tree;
  fs::create_symlink("nowhere", tree.folder / "dangling.so");
  fs::create_symlink("loop.so", tree.folder / "loop.so");
  fs::create_directory(tree.folder / "folder.so");
  REQUIRE(::mkfifo((tree.folder / "fifo.so").c_str(), 0644) == 0);
  const std::map<std::string, std::string> expected{
      {"dangling.so", "cannot be opened: " + (tree.folder / "nowhere").string() + ": No such file"},
      {"loop.so", "cannot be opened: Too many levels of symbolic links"},
      {"fifo.so", "is no regular file"},
      {"plugin.so", ""}};
  for (const bool trust : {false, true}) {
    const Registry registry({tree.folder}, {.trust = trust});
    CHECK(registry.plugins().size() == expected.size());
    for (const PluginInfo& info : registry.plugins()) {
      const std::string& text = expected.at(fs::path(info.path).filename());
      CHECK_MESSAGE((text.empty() == info.refused.empty()), info.refused);
      if (!trust) CHECK_MESSAGE(contains(info.refused, text), info.refused);
    }
    CHECK(registry.format_ids() == std::vector<std::string>{"counted"});
  }
}

TEST_CASE("what was opened is what is hashed and loaded, whatever its name comes to mean") {
  const Tree tree;
  const auto opened = std::make_shared<PluginFile>(tree.file, false);
  fs::rename(tree.file, tree.folder / "away");
  fs::copy(kFixtures / "plugins-bad/no-factory.so", tree.file);
  CHECK(opened->sha256() == sha256_of(kCounted));
  Library library(opened);
  CHECK(library.factory(AQ_QUANTIZER_FACTORY_ID) != nullptr);
  const Registry registry({kFixtures / "plugins-counted"});
  CHECK(registry.plugins().at(0).sha256 == sha256_of(kCounted));
}

TEST_CASE("a descriptor's number that is used again does not bring back an earlier library") {
  const auto is_counted = [](const Library& library) {
    return library.factory(AQ_QUANTIZER_FACTORY_ID) != nullptr;
  };
  const auto load = [](const fs::path& file) {
    return std::make_unique<Library>(std::make_shared<PluginFile>(file, true));
  };
  const fs::path other = kFixtures / "plugins-bad/no-factory.so";
  for (int i = 0; i < 3; i++) {
    const auto first = load(kCounted);
    auto second = load(kCounted);  // the same library, under another descriptor's name
    second.reset();                // which stays one of its names
    const auto third = load(other);
    CHECK(is_counted(*first));
    CHECK(!is_counted(*third));
  }
  CHECK(!is_counted(*load(other)));
  CHECK(is_counted(*load(kCounted)));
}

TEST_CASE("of a plugin of another ABI major nothing runs, not even its constructors") {
  const TempFolder folder;
  const fs::path trace = folder / "trace";
  REQUIRE(setenv("AQ_TRACE", trace.c_str(), 1) == 0);
  const std::string built_for = "it is built for plugin ABI " + kOtherAbi;
  for (const bool probe : {true, false}) {
    const auto file =
        std::make_shared<PluginFile>(kFixtures / "plugins-constructing/constructing.so", true);
    CHECK(contains(said([&] { const Library library(file); }), built_for));
    fs::create_directories(folder / "only");
    fs::copy(file->path(), folder / "only/x.so", fs::copy_options::overwrite_existing);
    CHECK(contains(refusal(folder / "only", {.probe = probe}), built_for));
    CHECK(!fs::exists(trace));
  }
  // the same of our major: its constructor does run
  {
    const Library library(std::make_shared<PluginFile>(
        kFixtures / "plugins-constructing/constructing-ours.so", true));
  }
  CHECK(fs::exists(trace));
  REQUIRE(unsetenv("AQ_TRACE") == 0);
}

}  // namespace aqhost
