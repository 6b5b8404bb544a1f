#include "files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "status.h"

namespace vditc::internal {
namespace fs = std::filesystem;

std::string inside(const std::string& root, const std::string& name, const std::string& where) {
  const auto leaves = [&] {
    if (name.empty() || name.find('\0') != std::string::npos || name[0] == '/') return true;
    for (const fs::path& part : fs::path(name)) {
      if (part == "..") return true;
    }
    std::error_code trouble;
    const fs::path top = fs::weakly_canonical(root, trouble), found = trouble ? top : fs::weakly_canonical(fs::path(root) / name, trouble);
    if (trouble) return true;
    return std::mismatch(top.begin(), top.end(), found.begin(), found.end()).first != top.end();
  };
  if (leaves()) {
    throw Error(VDITC_ERROR_PATH, where, "path '" + std::string(name.c_str()) + "'", "a relative path inside the bundle",
                "do not use this bundle: its manifest points outside");
  }
  return (fs::path(root) / name).string();
}

int64_t file_size(const std::string& path) {
  struct stat about;
  return ::stat(path.c_str(), &about) == 0 && S_ISREG(about.st_mode) ? static_cast<int64_t>(about.st_size) : -1;
}

namespace {

struct Opened {
  int file;
  uint64_t size;
  ~Opened() {
    if (file >= 0) ::close(file);
  }
};

Opened opened(const std::string& path, const char* what, const char* wanted, const char* fix) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat about;
  if (file < 0 || ::fstat(file, &about) != 0 || !S_ISREG(about.st_mode)) {
    const std::string found = file < 0 ? text("no readable %s (%s)", what, std::strerror(errno)) : "no regular file";
    if (file >= 0) ::close(file);
    throw Error(VDITC_ERROR_NOT_FOUND, path, found, wanted, fix);
  }
  return Opened{file, static_cast<uint64_t>(about.st_size)};
}

}  // namespace

std::string read_file(const std::string& path, uint64_t most, const char* what, const char* wanted, const char* fix) {
  const Opened file = opened(path, what, wanted, fix);
  if (file.size > most) {
    throw Error(VDITC_ERROR_DAMAGED, path, text("%llu bytes", static_cast<unsigned long long>(file.size)), wanted, fix);
  }
  std::string made(file.size, '\0');
  size_t done = 0;
  while (done < made.size()) {
    const ssize_t got = ::read(file.file, &made[done], made.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(VDITC_ERROR_IO, path, text("an error while reading (%s)", std::strerror(errno)), wanted, "check the disk");
    if (got == 0) break;  // cut short meanwhile
    done += static_cast<size_t>(got);
  }
  made.resize(done);
  return made;
}

Mapped::Mapped(const std::string& path, const char* wanted, const char* fix) {
  const Opened file = opened(path, "file", wanted, fix);
  if (file.size == 0) return;
  void* found = ::mmap(nullptr, file.size, PROT_READ, MAP_PRIVATE, file.file, 0);
  if (found == MAP_FAILED) throw Error(VDITC_ERROR_IO, path, text("no map of it (%s)", std::strerror(errno)), wanted, "check the file system");
  data_ = static_cast<const uint8_t*>(found);
  size_ = file.size;
}

Mapped::Mapped(Mapped&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapped& Mapped::operator=(Mapped&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapped::~Mapped() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

NewFile::NewFile(const std::string& path) : path_(path) {
  const fs::path whole(path);
  temporary_ = (whole.parent_path() / ("." + whole.filename().string() + text(".%ld.partial", static_cast<long>(::getpid())))).string();
  file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file_ < 0) failed();
}

NewFile::~NewFile() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(temporary_.c_str());
}

void NewFile::add(const void* data, uint64_t bytes) {
  const auto* at = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(file_, at, bytes > (1u << 24) ? 1u << 24 : static_cast<size_t>(bytes));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) failed();
    at += done, bytes -= static_cast<uint64_t>(done);
  }
}

void NewFile::done() {
  if (::close(file_) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int cause = errno;
    ::unlink(temporary_.c_str());
    file_ = -1;
    errno = cause;
    failed();
  }
  file_ = -1;
}

void NewFile::failed() {
  throw Error(VDITC_ERROR_IO, path_, text("no way to write (%s)", std::strerror(errno)), "a folder and a disk with room",
              "free some space, or write elsewhere");
}

}  // namespace vditc::internal
