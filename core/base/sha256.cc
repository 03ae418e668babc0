#include "base/sha256.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {

std::string sha256_of(const std::filesystem::path& path) {
  const MappedFile file(path);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  if (EVP_Digest(file.bytes().data(), file.bytes().size(), digest.data(), &size, EVP_sha256(),
                 nullptr) != 1)
    fail("{}: OpenSSL cannot compute its SHA-256", path.string());
  std::string text;
  for (unsigned int i = 0; i < size; i++) text += fmt::format("{:02x}", digest[i]);
  return text;
}

}  // namespace aqhost
