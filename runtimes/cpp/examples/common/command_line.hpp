// What example hosts in C++ do with their words and with Ctrl-C.
#ifndef COMMAND_LINE_HPP
#define COMMAND_LINE_HPP

#include <pthread.h>
#include <signal.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "vditc/vditc.hpp"

struct Usage : std::runtime_error {
  Usage(const std::string& found, const std::string& wanted) : std::runtime_error("found " + found + "; wanted " + wanted) {}
};

inline uint64_t whole_number(const std::string& option, const std::string& text, uint64_t least, uint64_t greatest) {
  errno = 0;
  char* end = nullptr;
  const uint64_t value = std::strtoull(text.c_str(), &end, 10);
  if (text.empty() || text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < least || value > greatest) {
    throw Usage(option + " " + text, "a whole number, " + std::to_string(least) + " to " + std::to_string(greatest));
  }
  return value;
}

// The first clip's noise, one more for each further clip.
inline void set_seeds(vditc::Conditioning& conditioning, uint64_t first) {
  std::vector<uint64_t> seeds(conditioning.clips());
  for (size_t i = 0; i < seeds.size(); ++i) seeds[i] = first + i;
  conditioning.set_seeds(seeds);
}

// Every thread that is made from now on leaves Ctrl-C to the one that waits for these.
inline sigset_t block_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

#endif
