#include "base/work_folder_commit.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/work_folder.h"
#include "temp_folder.h"
#include "work_folder_content.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

using doctest::Contains;

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

}  // namespace
}  // namespace aqhost
