// What goes wrong inside the library: one exception type, which the C interface turns into a status and a text.
#pragma once
#include <stdexcept>
#include <string>

#include "vditc/vditc.h"

namespace vditc::internal {

// Says what was found, what was wanted, where, and what to do, in the words of the Python package's errors.
class Error : public std::runtime_error {
 public:
  Error(vditc_status status, const std::string& where, const std::string& found, const std::string& wanted, const std::string& fix)
      : std::runtime_error(where + ": found " + found + "; wanted " + wanted + "; " + fix), status(status) {}
  const vditc_status status;
};

// As printf makes it.
__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...);
// "found N bytes" is read easier with numbers as short as they can be: %.17g only where %.6g does not say the same.
std::string number(double value);
std::string joined(const std::string* first, size_t count, const char* between);

void set_last_error(const char* message) noexcept;
const char* last_error() noexcept;

void log(int32_t level, const std::string& message) noexcept;
bool logs(int32_t level) noexcept;
void set_log(vditc_log_fn log, void* user, int32_t level);

}  // namespace vditc::internal
