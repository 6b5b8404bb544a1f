// Runs a fuzz target without libFuzzer, for compilers that have none: everything in the corpus, then changes of it, by chance, for some seconds.
//   PROGRAM [-max_total_time=SECONDS] [-seed=N] [other options of libFuzzer, which mean nothing here] FOLDER...
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t LARGEST = 1 << 16;
const char* const WORDS[] = {"{}", "[]", "null", "-1", "1e999", "18446744073709551615", "\"\"", "../", "\xC3", "\xED\xA0\x80", "\\u0000", "NaN"};

Bytes changed(Bytes made, const std::vector<Bytes>& corpus, std::mt19937_64& chance) {
  const auto below = [&](size_t n) { return n ? static_cast<size_t>(chance() % n) : 0; };
  for (size_t times = 1 + below(4); times > 0; --times) {
    const size_t at = below(made.size() + 1), length = below(made.size() - at + 1);
    const auto here = made.begin() + static_cast<std::ptrdiff_t>(at), end = here + static_cast<std::ptrdiff_t>(length);
    const Bytes& other = corpus[below(corpus.size())];
    switch (below(6)) {
      case 0: made.erase(here, end); break;
      case 1: made.insert(here, static_cast<uint8_t>(chance())); break;
      case 2: if (at < made.size()) made[at] ^= static_cast<uint8_t>(1u << below(8)); break;
      case 3: { const Bytes again(here, end); made.insert(here, again.begin(), again.end()); break; }
      case 4: { const char* word = WORDS[below(std::size(WORDS))]; made.insert(here, word, word + std::strlen(word)); break; }
      default: made.erase(here, made.end()); made.insert(made.end(), other.begin() + static_cast<std::ptrdiff_t>(below(other.size() + 1)), other.end());
    }
    if (made.size() > LARGEST) made.resize(LARGEST);
  }
  return made;
}

}  // namespace

int main(int count, char** arguments) {
  double seconds = 10;
  uint64_t seed = 1, runs = 0;
  std::vector<Bytes> corpus{Bytes()};
  for (int i = 1; i < count; ++i) {
    const std::string said = arguments[i];
    if (said.rfind("-max_total_time=", 0) == 0) seconds = std::atof(said.c_str() + 16);
    if (said.rfind("-seed=", 0) == 0) seed = std::strtoull(said.c_str() + 6, nullptr, 10);
    if (said[0] == '-') continue;
    std::vector<std::filesystem::path> files(std::filesystem::directory_iterator(said), {});
    std::sort(files.begin(), files.end());
    for (const auto& path : files) {
      std::ifstream file(path, std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  for (const Bytes& one : corpus) LLVMFuzzerTestOneInput(one.data(), one.size());
  std::mt19937_64 chance(seed);
  for (; passed() < seconds; ++runs) {
    const Bytes one = changed(corpus[chance() % corpus.size()], corpus, chance);
    LLVMFuzzerTestOneInput(one.data(), one.size());
  }
  std::fprintf(stderr, "%zu of the corpus, %llu changes of them in %.0f s\n", corpus.size(), static_cast<unsigned long long>(runs), passed());
  return 0;
}
