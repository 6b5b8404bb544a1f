// Files that are read: whole, mapped, and inside of a folder.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace vditc::internal {

// Of a folder; Error VDITC_ERROR_PATH for a name that is absolute, climbs out, goes through a link that does, or holds a zero byte.
std::string inside(const std::string& root, const std::string& name, const std::string& where);

// -1: no regular file.
int64_t file_size(const std::string& path);

// Error VDITC_ERROR_NOT_FOUND with `wanted` and `fix`; VDITC_ERROR_DAMAGED for more than `most` bytes.
std::string read_file(const std::string& path, uint64_t most, const char* what, const char* wanted, const char* fix);

// A read-only map of a whole file. Errors as above.
class Mapped {
 public:
  Mapped() = default;
  Mapped(const std::string& path, const char* wanted, const char* fix);
  Mapped(Mapped&& other) noexcept;
  Mapped& operator=(Mapped&& other) noexcept;
  ~Mapped();
  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

// Writes a whole file or none: to a temporary name beside it first.
class NewFile {
 public:
  explicit NewFile(const std::string& path);
  ~NewFile();
  void add(const void* data, uint64_t bytes);
  void done();

 private:
  [[noreturn]] void failed();
  std::string path_, temporary_;
  int file_;
};

}  // namespace vditc::internal
