#include "base/sha256.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {

std::string sha256_of(const std::filesystem::path& path) {
  const InputFile file(path);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  bool ok = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  std::vector<std::byte> buffer(std::size_t{1} << 18);
  for (int64_t at = 0; ok && at < file.size(); at += static_cast<int64_t>(buffer.size())) {
    const auto part = std::span(buffer).first(
        std::min(buffer.size(), static_cast<std::size_t>(file.size() - at)));
    file.read(at, part);
    ok = EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
  }
  if (!ok || EVP_DigestFinal_ex(context.get(), digest.data(), &size) != 1)
    fail("{}: OpenSSL cannot compute its SHA-256", path.string());
  std::string text;
  for (unsigned int i = 0; i < size; i++) text += fmt::format("{:02x}", digest[i]);
  return text;
}

}  // namespace aqhost
