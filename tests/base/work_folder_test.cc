#include "base/work_folder.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "temp_folder.h"
#include "work_folder_content.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

using doctest::Contains;

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

TEST_CASE("what commit() frees is what the replaced files take that exist") {
  const TempFolder root;
  const fs::path out = root / "out";
  fs::create_directory(out);
  for (const char* name : {"a", "mine"}) write_file(out / name, std::string(100'000, 'x'));
  WorkFolder staged(out, {"a", "gone"});
  CHECK(staged.replaced_bytes() >= 100'000);
  CHECK(staged.replaced_bytes() < 200'000);
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
  write_file(root / "out.work/progress/states-shared-123.json", "");  // of several processes
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
