#include <doctest/doctest.h>

#include <map>
#include <set>

#include "base/file.h"
#include "conformance/rules.h"
#include "plugin/elf.h"
#include "plugin/fixtures.h"
#include "plugin/said.h"
#include "plugin/small_source.h"
#include "temp_folder.h"
#include "whole_writer.h"

namespace aqhost {
namespace {

/// SmallSource as files.
void write_checkpoint(const std::filesystem::path& folder) {
  const SmallSource source;
  write_file(folder / "config.json", R"({"small": true})");
  WholeWriter writer(folder, source.tensors(), int64_t{1} << 30);
  for (const TensorInfo& info : source.tensors())
    writer.write(info.name, std::vector<std::byte>(static_cast<std::size_t>(info.numel() * 4)));
  writer.finish();
}

/// What is broken, by subject.
std::map<std::string, std::string> broken(const std::vector<Verdict>& verdicts) {
  std::map<std::string, std::string> lines;
  for (const Verdict& v : verdicts)
    if (v.result == Verdict::Result::kBroken) lines[v.subject] += v.rule + ": " + v.detail + "\n";
  return lines;
}

void check_found(const std::vector<Verdict>& verdicts,
                 const std::map<std::string, std::string>& expected) {
  const auto found = broken(verdicts);
  std::set<std::string> subjects;
  for (const Verdict& v : verdicts) subjects.insert(v.subject);
  for (const auto& [subject, rule] : expected) {
    CAPTURE(subject);
    const auto it = found.find(subject);
    REQUIRE(it != found.end());
    CHECK_MESSAGE(contains(it->second, rule), it->second);
    CHECK_MESSAGE(std::count(it->second.begin(), it->second.end(), '\n') <= 2, it->second);
  }
  CHECK(subjects.size() == expected.size() + 1);  // and "file"
}

}  // namespace

TEST_CASE("each sly format breaks the rule that it breaks") {
  check_found(
      check_plugin(kFixtures / "plugins-sly/sly-format.so", std::nullopt),
      {{"format writes-past", "older and newer hosts: it wrote past the"},
       {"format drops-fields", "older and newer hosts: it dropped a field"},
       {"format knows-every-extension", "is NULL: it gave one"},
       {"format scale-of-another-rule", "bit for bit: of small random numbers: a group's scale"},
       {"format rounds-another-way", "bit for bit: of small random numbers: "},
       {"format needs-codes", "may be left out of quantize: it crashed (Segmentation fault)"},
       {"format takes-any-shape", "wrong shapes and types are refused: fit: a weight of one"},
       {"format one-thread-only", "at the same time give what a single call gives"},
       {"format packed-without-end", "that it does not have is refused"},
       {"format forgets-a-scale", "pack and unpack are inverse: 1 x 16: group parameters"},
       {"format crashes-on-zeros",
        "for any weights, parameters are finite and codes are within their bits: it crashed "
        "(Aborted)"}});
}

TEST_CASE("each sly model breaks the rule that it breaks") {
  const TempFolder folder;
  write_checkpoint(folder.path());
  check_found(
      check_plugin(kFixtures / "plugins-sly/sly-model.so", folder.path()),
      {{"model claims-all", "of an unknown model: of {} it says 100"},
       {"model high-id-first", "route does what its description says"},
       {"model weighs-otherwise", "route does what its description says"},
       {"model takes-nan", "route does what its description says"},
       {"model finds-anything", "tensors that do not exist are not found: \"\" has a key"},
       {"model names-anything", "its description, modules and names hold for the checkpoint"},
       {"model describes-any-layer", "are errors: describe_ffn of a layer that is not there"},
       {"model attention-that-nobody-runs", "has custom attention, and there is no aq.model.block"},
       {"model module-behind-the-last-crashes", "are errors: it crashed (Aborted)"},
       {"model writes-past", "older and newer hosts: it wrote past the"}});
}

TEST_CASE("a lie that the host finds is a broken rule, and the honest ones break none") {
  const TempFolder folder;
  write_checkpoint(folder.path());
  for (const char* file : {"lying-model.so", "lying-format.so"}) {
    const auto verdicts = check_plugin(kFixtures / "plugins-lying" / file, folder.path());
    const auto found = broken(verdicts);
    for (const Verdict& v : verdicts) {
      const bool honest = contains(v.subject, "honest") || v.subject == "file";
      CHECK_MESSAGE(found.contains(v.subject) != honest, to_line(v));
    }
    CHECK(!all_hold(verdicts));
  }
}

TEST_CASE("files that are no plugins, or more than plugins") {
  const auto line = [](const char* file) {
    const auto found = broken(check_plugin(kFixtures / "plugins-bad" / file, std::nullopt));
    return found.empty() ? "" : found.begin()->second;
  };
  CHECK(contains(line("not-elf.so"), "it is no 64-bit ELF shared library"));
  CHECK(contains(line("no-symbol.so"), "it exports nothing"));
  CHECK(contains(line("other-major.so"),
                 "of this ABI: it is built for plugin ABI " + kOtherAbi + ", this aqhost has 1."));
  CHECK(contains(line("init-crashes.so"), "it crashed (Aborted)"));
  CHECK(contains(line("init-exits.so"), "it ended the process (status 3)"));
  CHECK(contains(line("names-null.so"), "lacks a name, version, vendor or description"));
  CHECK(contains(said([] { check_plugin("/no/such.so", std::nullopt); }), "/no/such.so: no such"));
}

TEST_CASE("a library cut short is said so, wherever it is cut") {
  const std::string whole = read_file(kFixtures / "plugins-counted/counted.so");
  const TempFolder folder;
  for (const double part : {0.0, 0.001, 0.1, 0.5, 0.9, 0.999}) {
    const auto size = static_cast<std::size_t>(part * static_cast<double>(whole.size()));
    write_file(folder / "cut.so", whole.substr(0, size));
    CHECK(said([&] { read_dynamic(folder / "cut.so"); }) != "");
  }
  write_file(folder / "cut.so", whole);
  CHECK(read_dynamic(folder / "cut.so").exported == std::vector<std::string>{"aq_plugin_entry"});
}

}  // namespace aqhost
