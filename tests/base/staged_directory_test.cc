#include "base/staged_directory.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
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
std::string failure(StagedDirectory& staged) {
  try {
    staged.commit();
  } catch (const Error& e) {
    return e.what();
  }
  return "no failure";
}

TEST_CASE("a staged folder becomes its target on commit and is gone otherwise, parents too") {
  const TempFolder root;
  {
    const StagedDirectory staged(root / "new/sub/out");
    write_file(staged.path() / "a", "1");
  }
  CHECK(fs::is_empty(root.path()));
  StagedDirectory staged(root / "new/sub/out/");  // parents are made
  write_file(staged.path() / "a", "1");
  CHECK(!fs::exists(root / "new/sub/out"));
  staged.commit();
  CHECK(read_file(root / "new/sub/out/a") == "1");
  CHECK(entries(root / "new/sub") == 1);
}

TEST_CASE("what cannot be written to is refused before any work, and nothing of it is touched") {
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
    CHECK_THROWS_WITH_AS(StagedDirectory(root / target), Contains(message), Error);
  }
  CHECK_THROWS_WITH_AS(StagedDirectory("/proc/out"), Contains("/proc/out: cannot be made: "),
                       Error);
  CHECK_THROWS_WITH_AS(StagedDirectory("/"), Contains("already exists and is not empty"), Error);
  CHECK(entries(root.path()) == 4);
  CHECK(read_file(root / "file") == "mine");
  CHECK(read_file(root / "full/a") == "mine");
}

TEST_CASE("an empty folder is written into and stays the folder it was, by whatever path") {
  for (const char* kind : {"plain", "link", "dot", "with lost+found", "current"}) {
    CAPTURE(kind);
    const TempFolder root;
    fs::create_directory(root / "out");
    const std::string name = kind;
    fs::path target = root / "out";
    if (name == "link") fs::create_directory_symlink("out", target = root / "link");
    if (name == "dot") target = root / "out/.";
    if (name == "with lost+found") fs::create_directory(root / "out/lost+found");  // a volume
    const fs::path before = fs::current_path();
    if (name == "current") {
      fs::current_path(root / "out");
      target = ".";
    }
    const int held = ::open((root / "out").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    {
      const StagedDirectory staged(target);
      write_file(staged.path() / "a", "1");
    }
    CHECK(StagedDirectory::is_free(root / "out"));
    StagedDirectory staged(target);
    write_file(staged.path() / "config.json", "1");
    fs::create_directory(staged.path() / "sub");
    write_file(staged.path() / "sub/b", "2");
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
  StagedDirectory staged(root / "out", {"a", "stale", "old-sub/x", "gone"});
  write_file(staged.path() / "a", "after");
  write_file(staged.path() / "b", "after");
  staged.check();
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
    StagedDirectory staged(name);
    write_file(staged.path() / "a", "x");
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
  StagedDirectory staged(root / "out", {"a", "../outside", (root / "outside").string(), "link/b",
                                        "", ".", "..", "x/../../outside"});
  write_file(staged.path() / "a", "after");
  staged.commit();
  CHECK(read_file(root / "outside") == "before");
  CHECK(read_file(root / "elsewhere/b") == "before");
  CHECK(read_file(root / "out/a") == "after");
}

TEST_CASE("a file of the user's under a name that is written is refused, not replaced") {
  const TempFolder root;
  fs::create_directory(root / "out");
  write_file(root / "out/a", "before");
  write_file(root / "out/notes.json", "mine");
  StagedDirectory staged(root / "out", {"a"});
  write_file(staged.path() / "notes.json", "ours");
  CHECK_THROWS_WITH_AS(staged.check(), Contains("out/notes.json: was not written by an earlier"),
                       Error);
  CHECK(read_file(root / "out/notes.json") == "mine");
}

TEST_CASE("a commit that fails changes nothing, keeps the result and says where it is") {
  SUBCASE("the target appeared") {
    const TempFolder root;
    fs::path kept;
    {
      StagedDirectory staged(root / "out");
      write_file(kept = staged.path() / "weights", "hours");
      fs::create_directory(root / "out");
      write_file(root / "out/thesis.tex", "theirs");
      const std::string message = failure(staged);
      CHECK(message.find("out: appeared during the run") != std::string::npos);
      CHECK(message.find(staged.path().string()) != std::string::npos);
    }
    CHECK(content_of(root / "out") == "thesis.tex=theirs");
    CHECK(read_file(kept) == "hours");
  }
  SUBCASE("a file of the user's appeared in it") {
    const TempFolder root;
    fs::create_directory(root / "out");
    fs::path kept;
    {
      StagedDirectory staged(root / "out");
      write_file(kept = staged.path() / "weights", "hours");
      write_file(root / "out/weights", "theirs");
      CHECK(failure(staged).find("is kept in") != std::string::npos);
    }
    CHECK(read_file(root / "out/weights") == "theirs");
    CHECK(read_file(kept) == "hours");
  }
  SUBCASE("a later file cannot be moved: those before are moved back") {
    const TempFolder root;
    fs::create_directory(root / "out");
    write_file(root / "out/a", "before");
    write_file(root / "out/z", "theirs");  // where a folder is to be
    fs::path kept;
    {
      StagedDirectory staged(root / "out", {"a"});
      write_file(staged.path() / "a", "after");
      fs::create_directory(staged.path() / "z");
      write_file(kept = staged.path() / "z/b", "hours");
      CHECK(failure(staged).find("is kept in") != std::string::npos);
    }
    CHECK(read_file(root / "out/a") == "before");
    CHECK(read_file(root / "out/z") == "theirs");
    CHECK(read_file(kept) == "hours");
  }
}

TEST_CASE("a commit whose folder somebody has deleted does not say that it is kept") {
  for (const bool inside : {false, true}) {
    CAPTURE(inside);
    const TempFolder root;
    if (inside) fs::create_directory(root / "out");
    StagedDirectory staged(root / "out");
    write_file(staged.path() / "weights", "hours");
    fs::remove_all(staged.path());
    const std::string message = failure(staged);
    CAPTURE(message);
    CHECK(message.find("kept") == message.npos);
    CHECK(message.ends_with("The finished result was in " + staged.path().string() +
                            ", which no longer exists"));
  }
}

TEST_CASE("keep() leaves the folder of a run that fails later") {
  const TempFolder root;
  {
    StagedDirectory staged(root / "out");
    write_file(staged.path() / "a", "1");
    staged.keep();
  }
  CHECK(content_of(root.path()) == "out.part-1/a=1");
}

TEST_CASE("what a killed run left is told with its size, is not in the way and not touched") {
  for (const bool inside : {false, true}) {
    const TempFolder root;
    const fs::path left = inside ? root / "out/.part-1" : root / "out.part-1";
    fs::create_directories(left);
    write_file(left / "a", "1234");
    StagedDirectory staged(root / "out");
    CHECK(fs::is_empty(staged.path()));
    REQUIRE(staged.leftovers().size() == 1);
    CHECK(staged.leftovers()[0].path == fs::canonical(left));
    CHECK(staged.leftovers()[0].bytes == 4);
    write_file(staged.path() / "b", "1");
    staged.commit();
    CHECK(read_file(root / "out/b") == "1");
    CHECK(read_file(left / "a") == "1234");
  }
}

TEST_CASE("two runs do not write to one target, by whatever path") {
  const TempFolder root;
  fs::create_directory(root / "there");
  fs::create_directory_symlink("there", root / "link");
  const StagedDirectory first(root / "out"), second(root / "there");
  for (const char* target : {"out", "out/", "./out", "there", "link", "there/."}) {
    CAPTURE(target);
    CHECK_THROWS_WITH_AS(StagedDirectory(root / target),
                         Contains("another run of aqhost is writing to it"), Error);
  }
  const StagedDirectory other(root / "out2");
  CHECK(other.leftovers().empty());
}

}  // namespace
}  // namespace aqhost
