#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string_view>

/// An input, taken from its front; zeros when it is used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, std::size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }
  uint8_t byte() { return rest_.empty() ? uint8_t{0} : static_cast<uint8_t>(take(1)[0]); }
  /// A number below `end` (0 where that is 0).
  std::size_t below(std::size_t end) {
    const auto low = static_cast<std::size_t>(byte());
    const std::size_t number = end > 256 ? low + (static_cast<std::size_t>(byte()) << 8) : low;
    return end == 0 ? 0 : number % end;
  }
  std::string_view take(std::size_t most) {
    const std::string_view taken = rest_.substr(0, most);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  /// All before the next `end`, which is taken too.
  std::string_view until(char end) {
    const std::string_view taken = take(rest_.find(end));
    take(1);
    return taken;
  }

 private:
  std::string_view rest_;
};

/// Writes a new file without flushing it to the disk: a fuzzer does so a thousand times a second,
/// and ext4 flushes a file that is truncated and written anew.
inline void put_file(const std::filesystem::path& path, std::string_view content) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}
