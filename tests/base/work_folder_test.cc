#include "base/work_folder.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "temp_folder.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

using doctest::Contains;

const std::string kOurs = R"({"generator":"aqhost"})";

/// Every file below a folder, with its content, as "a=1 sub/b=2".
std::string content_of(const fs::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (!entry.is_directory())
      files.push_back(entry.path().lexically_relative(folder).string() + "=" +
                      read_file(entry.path()));
  std::sort(files.begin(), files.end());
  std::string text;
  for (const std::string& file : files) text += (text.empty() ? "" : " ") + file;
  return text;
}

std::ptrdiff_t entries(const fs::path& folder) {
  return std::distance(fs::directory_iterator(folder), {});
}

/// The message with which commit() fails.
std::string failure(WorkFolder& staged) {
  try {
    staged.commit();
  } catch (const Error& e) {
    return e.what();
  }
  return "no failure";
}

TEST_CASE(
    "commit() turns the result into the target; without it, nothing is left, not even parents") {
  const TempFolder root;
  {
    const WorkFolder staged(root / "new/sub/out");
    write_file(staged.result() / "a", "1");
  }
  CHECK(fs::is_empty(root.path()));
  WorkFolder staged(root / "new/sub/out/");  // its parents are created
  write_file(staged.result() / "a", "1");
  CHECK(!fs::exists(root / "new/sub/out"));
  staged.commit();
  CHECK(read_file(root / "new/sub/out/a") == "1");
  CHECK(entries(root / "new/sub") == 1);
}

TEST_CASE("a target that cannot be written is refused before any work and not changed") {
  const TempFolder root;
  write_file(root / "file", "mine");
  fs::create_directory(root / "full");
  write_file(root / "full/a", "mine");
  fs::create_symlink("nowhere", root / "dangling");
  fs::create_symlink("file", root / "link-to-file");
  const std::vector<std::pair<const char*, const char*>> cases{
      {"file", "file: exists and is no folder"},
      {"link-to-file", "link-to-file: exists and is no folder"},
      {"file/out", "file/out: cannot be made: Not a directory"},
      {"full", "full: already exists and is not empty"},
      {"full/", "already exists and is not empty"},
      {"full/.", "already exists and is not empty"},
      {"dangling", "dangling: is a link to nowhere, which does not exist"},
      {"dangling/", "is a link to nowhere, which does not exist"},
  };
  for (const auto& [target, message] : cases) {
    CAPTURE(target);
    CHECK_THROWS_WITH_AS(WorkFolder(root / target), Contains(message), Error);
  }
  CHECK_THROWS_WITH_AS(WorkFolder("/proc/out"), Contains("/proc/out: cannot be made: "), Error);
  CHECK_THROWS_WITH_AS(WorkFolder("/"), Contains("already exists and is not empty"), Error);
  CHECK(entries(root.path()) == 4);
  CHECK(read_file(root / "file") == "mine");
  CHECK(read_file(root / "full/a") == "mine");
}

TEST_CASE("an empty folder is written to and stays the same folder, by any path") {
  for (const char* kind : {"plain", "link", "dot", "with lost+found", "current"}) {
    CAPTURE(kind);
    const TempFolder root;
    fs::create_directory(root / "out");
    const std::string name = kind;
    fs::path target = root / "out";
    if (name == "link") fs::create_directory_symlink("out", target = root / "link");
    if (name == "dot") target = root / "out/.";
    if (name == "with lost+found")
      fs::create_directory(root / "out/lost+found");  // a mounted volume
    const fs::path before = fs::current_path();
    if (name == "current") {
      fs::current_path(root / "out");
      target = ".";
    }
    const int held = ::open((root / "out").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    {
      const WorkFolder staged(target);
      write_file(staged.result() / "a", "1");
    }
    CHECK(WorkFolder::is_free(root / "out"));
    WorkFolder staged(target);
    write_file(staged.result() / "config.json", "1");
    fs::create_directory(staged.result() / "sub");
    write_file(staged.result() / "sub/b", "2");
    staged.commit();
    fs::current_path(before);
    CHECK(content_of(root / "out") == "config.json=1 sub/b=2");
    CHECK(content_of("/proc/self/fd/" + std::to_string(held) + "/") == content_of(root / "out"));
    CHECK(entries(root / "out") == (name == "with lost+found" ? 3 : 2));
    ::close(held);
  }
}

TEST_CASE("only what an earlier run wrote is replaced; the user's files stay") {
  const TempFolder root;
  fs::create_directories(root / "out/old-sub");
  fs::create_directories(root / "out/mine");
  for (const char* file : {"a", "stale", "old-sub/x", "mine/y", "README.md"})
    write_file(root / "out" / file, "before");
  WorkFolder staged(root / "out", {"a", "stale", "old-sub/x", "gone"});
  write_file(staged.result() / "a", "after");
  write_file(staged.result() / "b", "after");
  staged.check_replaceable({"a", "b"});
  staged.commit();
  CHECK(content_of(root / "out") == "README.md=before a=after b=after mine/y=before");
  CHECK(entries(root / "out") == 4);
  CHECK(entries(root.path()) == 1);
}

TEST_CASE("a target may be named by a path relative to the current folder") {
  const TempFolder root;
  const fs::path before = fs::current_path();
  fs::current_path(root.path());
  for (const char* name : {"out", "./other", "below/it/", "out/../third"}) {
    CAPTURE(name);
    WorkFolder staged(name);
    write_file(staged.result() / "a", "x");
    staged.commit();
    CHECK(read_file(fs::path(name) / "a") == "x");
  }
  fs::current_path(before);
}

TEST_CASE("a list of replaced files cannot lead out of the target") {
  const TempFolder root;
  fs::create_directories(root / "out");
  fs::create_directories(root / "elsewhere");
  for (const char* file : {"outside", "elsewhere/b", "out/a"}) write_file(root / file, "before");
  fs::create_directory_symlink("../elsewhere", root / "out/link");
  WorkFolder staged(root / "out", {"a", "../outside", (root / "outside").string(), "link/b", "",
                                   ".", "..", "x/../../outside"});
  write_file(staged.result() / "a", "after");
  staged.commit();
  CHECK(read_file(root / "outside") == "before");
  CHECK(read_file(root / "elsewhere/b") == "before");
  CHECK(read_file(root / "out/a") == "after");
}

TEST_CASE("a file of the user with a name that the run writes is refused, not replaced") {
  const TempFolder root;
  fs::create_directory(root / "out");
  write_file(root / "out/a", "before");
  write_file(root / "out/notes.json", "mine");
  const WorkFolder staged(root / "out", {"a"});
  CHECK_THROWS_WITH_AS(staged.check_replaceable({"a", "notes.json"}),
                       Contains("out/notes.json: was not written by an earlier"), Error);
  CHECK(read_file(root / "out/notes.json") == "mine");
}

TEST_CASE("a commit that fails changes nothing, keeps the result and says where") {
  SUBCASE("the target appeared") {
    const TempFolder root;
    fs::path kept;
    {
      WorkFolder staged(root / "out");
      write_file(kept = staged.result() / "weights", "hours");
      fs::create_directory(root / "out");
      write_file(root / "out/thesis.tex", "theirs");
      const std::string message = failure(staged);
      CHECK(message.find("out: appeared during the run") != std::string::npos);
      CHECK(message.find(staged.result().string()) != std::string::npos);
    }
    CHECK(content_of(root / "out") == "thesis.tex=theirs");
    CHECK(read_file(kept) == "hours");
  }
  SUBCASE("a file of the user appeared in it") {
    const TempFolder root;
    fs::create_directory(root / "out");
    fs::path kept;
    {
      WorkFolder staged(root / "out");
      write_file(kept = staged.result() / "weights", "hours");
      write_file(root / "out/weights", "theirs");
      CHECK(failure(staged).find("is kept in") != std::string::npos);
    }
    CHECK(read_file(root / "out/weights") == "theirs");
    CHECK(read_file(kept) == "hours");
  }
  SUBCASE("a later file cannot be moved: the earlier ones are moved back") {
    const TempFolder root;
    fs::create_directory(root / "out");
    write_file(root / "out/a", "before");
    write_file(root / "out/z", "theirs");  // the result has a folder of this name
    fs::path kept;
    {
      WorkFolder staged(root / "out", {"a"});
      write_file(staged.result() / "a", "after");
      fs::create_directory(staged.result() / "z");
      write_file(kept = staged.result() / "z/b", "hours");
      CHECK(failure(staged).find("is kept in") != std::string::npos);
    }
    CHECK(read_file(root / "out/a") == "before");
    CHECK(read_file(root / "out/z") == "theirs");
    CHECK(read_file(kept) == "hours");
  }
}

TEST_CASE("a work folder that was removed, moved or replaced is reported and not written to") {
  struct Case {
    const char* label;
    const char* named;  // in the message, below the root
    std::function<void(const fs::path& work)> change;
  };
  for (const bool inside : {false, true})
    for (const auto& [label, named, change] :
         {Case{"removed", "", [](const fs::path& work) { fs::remove_all(work); }},
          Case{"moved", "", [](const fs::path& work) { fs::rename(work, work.string() + "-2"); }},
          Case{"replaced", "",
               [](const fs::path& work) {
                 fs::rename(work, work.string() + "-2");
                 for (const char* folder : {"export", "progress"})
                   fs::create_directories(work / folder);
                 write_file(work / "export/weights", "mine");
               }},
          Case{"replaced by a link", "",
               [](const fs::path& work) {
                 fs::rename(work, work.string() + "-2");
                 fs::create_directory_symlink(work.string() + "-2", work);
               }},
          Case{"without its result", "/export",
               [](const fs::path& work) { fs::remove_all(work / "export"); }},
          Case{"without its progress", "/progress",
               [](const fs::path& work) { fs::remove_all(work / "progress"); }}}) {
      CAPTURE(label);
      CAPTURE(inside);
      const TempFolder root;
      if (inside) fs::create_directory(root / "out");
      const std::string work = (inside ? root / "out/.work" : root / "out.work").string();
      std::string before;
      {
        WorkFolder staged(root / "out");
        write_file(staged.result() / "weights", "hours");
        CHECK_NOTHROW(staged.check_in_place());
        change(work);
        before = content_of(root.path());
        CHECK(failure(staged).starts_with(work + named + ": this folder was removed, moved or "));
      }
      if (*named == '\0') CHECK(content_of(root.path()) == before);
    }
}

TEST_CASE("only the files that the manifest lists are removed, also unfinished ones") {
  const TempFolder root;
  const fs::path work = root / "out.work";
  {
    WorkFolder first(root / "out");
    first.write_manifest({{"generator", "aqhost"}}, {"a", "sub/b", "stale"});
    fs::create_directories(first.result() / "sub");
    fs::create_directories(first.result() / "photos");
    fs::create_directory_symlink("photos", first.result() / "link");
    for (const char* own : {"a.part", "sub/b", "stale"}) write_file(first.result() / own, "1");
    for (const char* mine : {"notes.txt", "sub/c", "photos/d"})
      write_file(first.result() / mine, "mine");
    write_file(first.progress() / "unit-00000.json", std::string(5000, ' '));
    write_file(first.progress() / "diary.txt", "mine");
    first.keep();
  }
  {
    const WorkFolder second(root / "out");
    CHECK(second.clearable_bytes() >= 5000);
    second.write_manifest({{"generator", "aqhost"}}, {"a", "sub/b"});
    CHECK(!fs::exists(second.result() / "stale"));
  }
  WorkFolder third(root / "out");
  third.clear();
  CHECK(content_of(work) ==
        "export/notes.txt=mine export/photos/d=mine export/sub/c=mine progress/diary.txt=mine");
  CHECK(fs::is_symlink(work / "export/link"));
}

TEST_CASE("the user's files in the result are set aside in the work folder, not committed") {
  for (const bool inside : {false, true}) {
    CAPTURE(inside);
    const TempFolder root;
    if (inside) fs::create_directory(root / "out");
    const fs::path work = inside ? root / "out/.work" : root / "out.work";
    WorkFolder staged(root / "out");
    const std::vector<std::string> files{"config.json", "sub/b"};
    staged.write_manifest({{"generator", "aqhost"}}, files);
    fs::create_directories(staged.result() / "sub");
    fs::create_directories(staged.path() / "not-exported");
    for (const std::string& file : files) write_file(staged.result() / file, "1");
    CHECK(staged.set_aside_others(files).empty());
    for (const char* mine : {"notes.txt", "sub/c"}) write_file(staged.result() / mine, "mine");
    CHECK(staged.set_aside_others(files) ==
          fmt::format("{}/export: notes.txt and 1 more were not written by the run and are not "
                      "part of the export, but now in {}/not-exported-2",
                      work.string(), work.string()));
    staged.commit();
    CHECK(content_of(work) == "not-exported-2/notes.txt=mine not-exported-2/sub/c=mine");
    fs::remove_all(work);
    CHECK(content_of(root / "out") == "config.json=1 sub/b=1");
  }
}

TEST_CASE("keep() leaves the folder of a run that fails later") {
  const TempFolder root;
  {
    WorkFolder staged(root / "out");
    write_file(staged.result() / "a", "1");
    staged.keep();
  }
  CHECK(content_of(root.path()) == "out.work/export/a=1");
}

TEST_CASE("the next run finds the work of an earlier one, and clear() removes it") {
  for (const bool inside : {false, true}) {
    CAPTURE(inside);
    const TempFolder root;
    if (inside) fs::create_directory(root / "out");
    const fs::path work = inside ? root / "out/.work" : root / "out.work";
    {
      WorkFolder first(root / "out");
      write_file(first.path() / WorkFolder::kManifest, kOurs);
      write_file(first.result() / "a", "1234");
      write_file(first.progress() / "unit-b", "1");
      first.keep();
    }
    CHECK(content_of(work) == "export/a=1234 manifest.json=" + kOurs + " progress/unit-b=1");
    CHECK(WorkFolder::of(root / "out") == work);
    { const WorkFolder unused(root / "out"); }  // as a run that is refused does
    CHECK(content_of(work) == "export/a=1234 manifest.json=" + kOurs + " progress/unit-b=1");
    write_file(work / "notes.txt", "mine");
    {
      WorkFolder cleared(root / "out");
      cleared.clear();
      CHECK(content_of(work) == "notes.txt=mine");
      write_file(cleared.result() / "c", "1");
    }
    CHECK(content_of(work) == "notes.txt=mine");
    fs::remove(work / "notes.txt");
    WorkFolder last(root / "out");
    write_file(last.result() / "config.json", "x");
    last.commit();
    CHECK(content_of(root / "out") == "config.json=x");
    CHECK(!fs::exists(work));
  }
}

TEST_CASE("the work folder of a run that was killed after its commit is removed") {
  for (const bool inside : {false, true}) {
    CAPTURE(inside);
    const TempFolder root;
    const fs::path work = inside ? root / "out/.work" : root / "out.work";
    fs::create_directories(work / "progress");
    fs::create_directories(root / "out");
    for (const fs::path& file :
         {root / "out/config.json", work / "progress/states-00000.safetensors"})
      write_file(file, "1");
    write_file(work / WorkFolder::kManifest, kOurs);
    CHECK_THROWS_WITH_AS(WorkFolder(root / "out"), Contains("already exists"), Error);
    CHECK(content_of(root.path()) == "out/config.json=1");
    CHECK(!fs::exists(work));
  }
}

TEST_CASE("the work folder of a run that was killed at its start can be used") {
  const TempFolder root;
  for (const char* folder : {"export", "progress"})
    fs::create_directories(root / "out.work" / folder);
  write_file(root / "out.work/manifest.json.part", "{\"vers");
  { const WorkFolder work(root / "out"); }
  CHECK(fs::is_empty(root.path()));
}

TEST_CASE(
    "a folder with the name of the work folder that is not aqhost's is refused and not changed") {
  const TempFolder root;
  fs::create_directories(root / "out.work/sub");
  write_file(root / "out.work/thesis.tex", "mine");
  write_file(root / "file.work", "mine");
  fs::create_directory_symlink("out.work", root / "link.work");
  CHECK_THROWS_WITH_AS(WorkFolder(root / "out"), Contains("is no work folder of aqhost"), Error);
  CHECK_THROWS_WITH_AS(WorkFolder(root / "file"), Contains("file.work"), Error);
  CHECK_THROWS_WITH_AS(WorkFolder(root / "link"), Contains("link.work: is no folder"), Error);
  CHECK(read_file(root / "out.work/thesis.tex") == "mine");
  CHECK(fs::is_directory(root / "out.work/sub"));
  CHECK(read_file(root / "file.work") == "mine");
}

TEST_CASE("a manifest of another program protects the files beside it") {
  for (const bool finished : {false, true}) {
    CAPTURE(finished);
    const TempFolder root;
    fs::create_directories(root / "web.work/progress");
    write_file(root / "web.work/manifest.json", R"({"name": "web app"})");
    write_file(root / "web.work/progress/diary.txt", "mine");
    if (finished) fs::create_directory(root / "web");
    if (finished) write_file(root / "web/readme", "mine");
    const std::string before = content_of(root.path());
    CHECK_THROWS_AS(WorkFolder(root / "web"), Error);
    CHECK(content_of(root.path()) == before);
  }
}

TEST_CASE("a commit that was killed half-way is taken back and done again") {
  const TempFolder root;
  fs::create_directories(root / "out");
  for (const char* file : {"config.json", "a"}) write_file(root / "out" / file, "before");
  write_file(root / "out/notes.md", "mine");
  {
    WorkFolder work(root / "out", {"config.json", "a"});
    write_file(work.path() / WorkFolder::kManifest, kOurs);
    for (const char* file : {"a", "b", "config.json"}) write_file(work.result() / file, "after");
    work.keep();
  }
  const fs::path work = root / "out/.work";  // the state after the third of five renames
  fs::create_directory(work / "replaced");
  write_file(work / "commit.json",
             R"({"before": ["config.json", "a"], "after": ["a", "b", "config.json"]})");
  for (const char* file : {"config.json", "a"})
    fs::rename(root / "out" / file, work / "replaced" / file);
  fs::rename(work / "export/a", root / "out/a");
  WorkFolder::undo_commit(root / "out");
  CHECK(read_file(root / "out/a") == "before");
  CHECK(read_file(root / "out/config.json") == "before");
  CHECK(read_file(work / "export/a") == "after");
  WorkFolder again(root / "out", {"config.json", "a"});
  again.commit();
  CHECK(content_of(root / "out") == "a=after b=after config.json=after notes.md=mine");
}

TEST_CASE("a target that is created between two tries does not hide the work folder beside it") {
  const TempFolder root;
  {
    WorkFolder first(root / "out");
    write_file(first.path() / WorkFolder::kManifest, kOurs);
    write_file(first.result() / "a", "1");
    first.keep();
  }
  fs::create_directory(root / "out");
  CHECK(WorkFolder::of(root / "out") == root / "out.work");
  WorkFolder second(root / "out");
  second.commit();
  CHECK(content_of(root.path()) == "out/a=1");
}

TEST_CASE("two runs cannot write to the same target, by any path") {
  const TempFolder root;
  fs::create_directory(root / "there");
  fs::create_directory_symlink("there", root / "link");
  const WorkFolder first(root / "out"), second(root / "there");
  for (const char* target : {"out", "out/", "./out", "there", "link", "there/."}) {
    CAPTURE(target);
    CHECK_THROWS_WITH_AS(WorkFolder(root / target),
                         Contains("another run of aqhost is writing to it"), Error);
  }
  CHECK(WorkFolder::is_locked(first.path()));
  const WorkFolder other(root / "out2");
}

}  // namespace
}  // namespace aqhost
