#include "base/sha256.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace {

class Sha256 {
 public:
  explicit Sha256(std::string what) : what_(std::move(what)) {
    require(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }

  void add(std::span<const std::byte> bytes) {
    require(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1);
  }

  std::string digits() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int size = 0;
    require(EVP_DigestFinal_ex(context_.get(), digest.data(), &size) == 1);
    std::string text;
    for (unsigned int i = 0; i < size; i++) text += fmt::format("{:02x}", digest[i]);
    return text;
  }

 private:
  void require(bool ok) const {
    if (!ok) fail("{}: OpenSSL cannot compute its SHA-256", what_);
  }

  std::string what_;  // for messages
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_{EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free};
};

}  // namespace

std::string sha256_of(const InputFile& file, int64_t size) {
  Sha256 sum(file.path().string());
  std::vector<std::byte> buffer(std::size_t{1} << 18);
  for (int64_t at = 0; at < size; at += static_cast<int64_t>(buffer.size())) {
    const auto part =
        std::span(buffer).first(std::min(buffer.size(), static_cast<std::size_t>(size - at)));
    file.read(at, part);
    sum.add(part);
  }
  return sum.digits();
}

std::string sha256_of(const std::filesystem::path& path) {
  const InputFile file(path);
  return sha256_of(file, file.size());
}

std::string sha256_of(std::span<const std::byte> bytes) {
  Sha256 sum("memory");
  sum.add(bytes);
  return sum.digits();
}

}  // namespace aqhost
