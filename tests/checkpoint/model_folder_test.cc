#include "checkpoint/model_folder.h"

#include <doctest/doctest.h>
#include <stdlib.h>  // setenv is POSIX, <cstdlib> need not have it

#include <map>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "temp_folder.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

constexpr const char* kCommit = "0123456789abcdef0123456789abcdef01234567";

/// The variables that say where the cache is, unset until this ends.
class CacheVariables {
 public:
  CacheVariables() {
    for (const char* name :
         {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) {
      const char* value = ::getenv(name);
      before_[name] = value == nullptr ? std::nullopt : std::optional<std::string>(value);
      ::unsetenv(name);
    }
  }
  ~CacheVariables() {
    for (const auto& [name, value] : before_)
      value ? ::setenv(name.c_str(), value->c_str(), 1) : ::unsetenv(name.c_str());
  }
  CacheVariables(const CacheVariables&) = delete;
  CacheVariables& operator=(const CacheVariables&) = delete;

  void set(const char* name, const std::string& value) const { ::setenv(name, value.c_str(), 1); }

 private:
  std::map<std::string, std::optional<std::string>> before_;
};

/// A cache with the model org/model, in the layout of the Hub's client: files are links to blobs.
class Cache {
 public:
  Cache() {
    variables_.set("HF_HUB_CACHE", folder_.path().string());
    fs::create_directories(repository() / "blobs");
    fs::create_directories(repository() / "refs");
    fs::create_directories(snapshot());
    write_file(repository() / "refs/main", kCommit);
    add("config.json", "{}");
    add("tokenizer.json", "{}");
    add("model.safetensors", "");
  }

  void add(const std::string& name, const std::string& content) const {
    write_file(repository() / "blobs" / ("blob-of-" + name), content);
    fs::create_symlink("../../blobs/blob-of-" + name, snapshot() / name);
  }
  const fs::path& path() const { return folder_.path(); }
  fs::path repository() const { return folder_ / "models--org--model"; }
  fs::path snapshot() const { return repository() / "snapshots" / kCommit; }

 private:
  CacheVariables variables_;
  TempFolder folder_;
};

TEST_CASE("the cache is where the Hub's client has it") {
  const CacheVariables variables;
  variables.set("HOME", "/home/me");
  CHECK(hub_cache() == "/home/me/.cache/huggingface/hub");
  variables.set("XDG_CACHE_HOME", "/xdg");
  CHECK(hub_cache() == "/xdg/huggingface/hub");
  variables.set("HF_HOME", "~/hf");
  CHECK(hub_cache() == "/home/me/hf/hub");
  variables.set("HUGGINGFACE_HUB_CACHE", "/old");
  CHECK(hub_cache() == "/old");
  variables.set("HF_HUB_CACHE", "/new");
  CHECK(hub_cache() == "/new");
  variables.set("HF_HUB_CACHE", "");
  CHECK(hub_cache() == "/old");
}

TEST_CASE("a model is found by its id, its repository and its snapshot") {
  const Cache cache;
  for (const std::string& given : {std::string("org/model"), "org/model@" + std::string(kCommit),
                                   std::string("org/model@main"), cache.repository().string(),
                                   cache.repository().string() + "/", cache.snapshot().string()}) {
    CAPTURE(given);
    const fs::path found = find_model(given, ModelPart::kWeights);
    CHECK(fs::equivalent(found, cache.snapshot()));
    CHECK(hub_id(found) == "org/model");
  }
  fs::create_directories(cache.repository() / "refs/refs/pr");
  write_file(cache.repository() / "refs/refs/pr/1", std::string(kCommit) + "\n");
  CHECK(find_model("org/model@refs/pr/1", ModelPart::kWeights) == cache.snapshot());
}

TEST_CASE("a model that the cache lacks is an error with the command that fetches it") {
  const Cache cache;
  const auto refused = [&](const std::string& given, ModelPart part, const std::string& command) {
    CHECK_THROWS_WITH_AS(find_model(given, part), doctest::Contains(command.c_str()), Error);
  };
  refused("org/other", ModelPart::kWeights,
          "org/other: there is no such folder, and the cache " + cache.path().string() +
              " has no model of this id; hf download org/other fetches it");
  refused("org/other", ModelPart::kConfig, "; hf download org/other config.json fetches it");
  refused("org/model@v2", ModelPart::kWeights,
          "of this id in the revision v2; hf download org/model "
          "--revision v2 fetches it");
  fs::remove(cache.repository() / "refs/main");
  refused(cache.repository().string(), ModelPart::kWeights, "no snapshot that refs/main names");
}

TEST_CASE("a snapshot that is not complete is an error, unless the rest is not needed") {
  const Cache cache;
  const auto refused = [&](const std::string& file) {
    for (const std::string& given : {std::string("org/model"), cache.snapshot().string()})
      CHECK_THROWS_WITH_AS(find_model(given, ModelPart::kWeights),
                           doctest::Contains((file + " is missing; hf download org/model").c_str()),
                           Error);
    CHECK(fs::equivalent(find_model("org/model", ModelPart::kConfig), cache.snapshot()));
  };
  SUBCASE("no weights") {
    fs::remove(cache.snapshot() / "model.safetensors");
    refused("model.safetensors");
  }
  SUBCASE("a link to nothing") {
    fs::remove(cache.repository() / "blobs/blob-of-tokenizer.json");
    refused("tokenizer.json");
    CHECK_THROWS_WITH_AS(find_model("org/model", ModelPart::kTokenizer),
                         doctest::Contains("tokenizer.json is missing"), Error);
  }
  SUBCASE("a shard of the index") {
    fs::remove(cache.snapshot() / "model.safetensors");
    cache.add("1.safetensors", "");
    cache.add("model.safetensors.index.json",
              R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
    refused("2.safetensors");
  }
}

TEST_CASE("folders come before ids, and other names are left to the reader") {
  const Cache cache;
  const TempFolder here;
  const fs::path before = fs::current_path();
  fs::current_path(here.path());
  fs::create_directories("org/model");
  CHECK(find_model("org/model", ModelPart::kWeights) == "org/model");
  CHECK(hub_id("org/model").empty());
  fs::current_path(before);
  for (const char* given : {"nowhere", "./nowhere", "a/b/c", "../x", "org/../model", "/no/where",
                            "", "org/model@", "org/model@../x", "models--a--b"})
    CHECK(find_model(given, ModelPart::kWeights) == given);
}

}  // namespace
}  // namespace aqhost
