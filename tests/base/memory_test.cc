#include "base/memory.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <vector>

#include "base/file.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

constexpr int64_t kMb = 1'000'000;

TEST_CASE("the peak of memory counts touched pages and does not fall") {
  const int64_t before = peak_memory_bytes();
  CHECK(before > kMb);
  { const std::vector<char> block(64 * kMb, 1); }
  CHECK(peak_memory_bytes() >= before);
  CHECK(peak_memory_bytes() > 64 * kMb);
  CHECK(anonymous_memory_bytes() > 0);
}

TEST_CASE("a control group's limit is the minimum from the group up to the root") {
  const TempFolder root;
  const auto write = [&](const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root / file).parent_path());
    write_file(root / file, text);
  };
  const auto limit = [&](std::string_view groups) {
    return cgroup_memory_limit(groups, root.path(), 8000 * kMb);
  };
  write("a/memory.max", "max\n");
  write("a/b/memory.max", "500000000\n");
  write("a/b/c/memory.max", "max\n");
  write("a/b/d/memory.max", "300000000\n");
  write("a/b/e/memory.max", "9000000000\n");
  write("memory/x/memory.limit_in_bytes", "200000000\n");
  write("memory/y/memory.limit_in_bytes", "9223372036854771712\n");  // no limit, in version 1
  CHECK(limit("0::/\n") == 0);
  CHECK(limit("0::/a\n") == 0);
  CHECK(limit("0::/a/b/c\n") == 500 * kMb);
  CHECK(limit("0::/a/b/d\n") == 300 * kMb);
  CHECK(limit("0::/a/b/e\n") == 500 * kMb);
  CHECK(limit("0::/a/b/not-seen/from/here\n") == 500 * kMb);
  CHECK(limit("12:cpu,cpuacct:/x\n4:memory:/x\n1:name=systemd:/x\n0::/\n") == 200 * kMb);
  CHECK(limit("4:memory:/y\n0::/\n") == 0);
  CHECK(limit("4:hugetlb,memory:/x\n") == 200 * kMb);
  CHECK(limit("") == 0);
  CHECK(limit("nonsense\n:\n") == 0);
  write("memory.max", "100000000\n");  // as a container sees its own group
  CHECK(limit("0::/\n") == 100 * kMb);
}

TEST_CASE("the available memory is a part of the machine's") {
  const int64_t physical = int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
  CHECK(available_memory_bytes() > 0);
  CHECK(available_memory_bytes() < physical);
}

}  // namespace
}  // namespace aqhost
