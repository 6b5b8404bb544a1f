#include "status.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace vditc::internal {
namespace {

thread_local std::string message_of_thread;

struct Log {
  std::mutex lock;
  vditc_log_fn tell = nullptr;
  void* user = nullptr;
  int32_t level = 0;
};
Log& the_log() {
  static Log* log = new Log;  // never destroyed: threads may log while the process ends
  return *log;
}

}  // namespace

std::string text(const char* format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  std::vector<char> made(length < 0 ? 1 : static_cast<size_t>(length) + 1);
  std::vsnprintf(made.data(), made.size(), format, again);
  va_end(again);
  return std::string(made.data());
}

std::string number(double value) {
  char made[32];
  std::snprintf(made, sizeof made, "%.6g", value);
  if (std::strtod(made, nullptr) != value && !std::isnan(value)) std::snprintf(made, sizeof made, "%.17g", value);
  return made;
}

std::string joined(const std::string* first, size_t count, const char* between) {
  std::string made;
  for (size_t i = 0; i < count; ++i) made += (i ? between : "") + first[i];
  return made;
}

void set_last_error(const char* message) noexcept {
  try {
    message_of_thread = message;
  } catch (...) {
    message_of_thread.clear();  // no memory for words
  }
}

const char* last_error() noexcept { return message_of_thread.c_str(); }

bool logs(int32_t level) noexcept {
  Log& log = the_log();
  std::lock_guard<std::mutex> hold(log.lock);
  return log.tell != nullptr && level <= log.level;
}

void log(int32_t level, const std::string& message) noexcept {
  Log& log = the_log();
  vditc_log_fn tell = nullptr;
  void* user = nullptr;
  {
    std::lock_guard<std::mutex> hold(log.lock);
    if (level <= log.level) tell = log.tell, user = log.user;
  }
  if (tell != nullptr) tell(user, level, message.c_str());  // without the lock: it may call the library
}

void set_log(vditc_log_fn tell, void* user, int32_t level) {
  Log& log = the_log();
  std::lock_guard<std::mutex> hold(log.lock);
  log.tell = tell, log.user = user, log.level = level;
}

}  // namespace vditc::internal
