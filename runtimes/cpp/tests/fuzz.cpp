// libFuzzer's targets, chosen by VDITC_FUZZ_NAME: whatever the bytes are, there is an answer, and never a crash.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "bundle.h"
#include "files.h"
#include "safetensors.h"
#include "schedulers/solvers.h"
#include "status.h"
#include "text/cleaning.h"
#include "text/tokenizer.h"
#include "video_decoder.h"

using namespace vditc::internal;

namespace {

// A folder of this process's own.
const std::string& folder() {
  static const std::string made = [] {
    char name[] = "/tmp/vditc-fuzz-XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    return std::string(name);
  }();
  return made;
}

void write(const std::string& path, const uint8_t* data, size_t size) {
  FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(data, 1, size, file) != size || std::fclose(file) != 0) std::abort();
}

void try_it(const uint8_t* data, size_t size) {
#if defined(VDITC_FUZZ_manifest)
  write(folder() + "/manifest.json", data, size);
  const auto bundle = Bundle::open(folder());
  bundle->verify(1, nullptr);
  bundle->inputs();
#elif defined(VDITC_FUZZ_safetensors)
  const std::string path = folder() + "/x.safetensors";
  write(path, data, size);
  const Safetensors file(path);
  uint64_t sum = 0;
  for (const auto& [name, view] : file.tensors()) {
    for (uint64_t i = 0; i < view.bytes; ++i) sum += static_cast<const uint8_t*>(view.data)[i];  // all of it is there
  }
  if (sum > size * 255 * (file.tensors().size() + 1)) std::abort();
#elif defined(VDITC_FUZZ_path)
  const std::string found = inside(folder(), std::string(reinterpret_cast<const char*>(data), size), "fuzz");
  if (found.rfind(folder(), 0) != 0 || found.find("/../") != std::string::npos) std::abort();
#elif defined(VDITC_FUZZ_scheduler)
  const Json config = Json::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
  walk_of(config, 1 + static_cast<int64_t>(size % 50), Given(), "fuzz");
#elif defined(VDITC_FUZZ_decoder)
  const VideoPlan plan = VideoPlan::read(Json::parse({reinterpret_cast<const char*>(data), size}, "fuzz"), "fuzz");
  const VideoDecoder decoder(plan, false, "fuzz");
  for (const int64_t frames : {1, 2, 5, 33}) {
    if (decoder.size({plan.channels(), frames, 2, 3}).width != static_cast<uint64_t>(3 * plan.stride)) std::abort();
  }
#elif defined(VDITC_FUZZ_tokenizer)
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t prompt = all.find('\n');  // behind the file
  write(folder() + "/tokenizer.json", data, std::min(prompt, size));
  const std::string words(prompt < size ? all.substr(prompt + 1) : "a Red kite\u0301 's <s> 12");
  Tokenizer::open(folder() + "/tokenizer.json")->tokenize({cleaned(words, {"html", "whitespace"}), words, ""});
#else
#error "say which"
#endif
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    try_it(data, size);
  } catch (const Error&) {
  } catch (const std::bad_alloc&) {
  }
  return 0;
}
