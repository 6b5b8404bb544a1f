// What the interface does not show: hashes by every way of computing them, no memory taken by a step, JSON. Arguments: a bundle, a conditioning.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "check.h"
#include "conditioning.h"
#include "dtype.h"
#include "json.h"
#include "session.h"
#include "sha256.h"
#include "status.h"
#include "workers.h"

namespace {
std::atomic<uint64_t> allocations{0};
}

// Every way to memory of C++ in this program.
void* operator new(size_t size) {
  ++allocations;
  if (void* made = std::malloc(size ? size : 1)) return made;
  throw std::bad_alloc();
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size ? size : 1);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

using namespace vditc::internal;

namespace {

std::string hashed(const std::string& text, size_t piece) {
  Sha256 digest;
  for (size_t at = 0; at < text.size(); at += piece) digest.add(text.data() + at, std::min(piece, text.size() - at));
  return digest.hex();
}

void hashes() {
  // FIPS 180-4's own examples.
  CHECK(hashed("abc", 1) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hashed("", 1) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hashed("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 7) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(hashed(std::string(1000000, 'a'), 4093) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  const sha256::Compress own = sha256::processor_compress();
  std::printf("sha256 by %s\n", own ? "the processor's instructions" : "plain C++");
  uint8_t blocks[64 * 5];
  uint32_t a[8] = {1, 2, 3, 4, 5, 6, 7, 8}, b[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  for (size_t i = 0; i < sizeof blocks; ++i) blocks[i] = static_cast<uint8_t>(i * 167 + i / 7);
  sha256::compress_plain(a, blocks, 5);
  if (own) {
    own(b, blocks, 5);
    CHECK(std::memcmp(a, b, sizeof a) == 0);
  }
}

void json() {
  const Json made = Json::parse("{\"a\": [1, -2.5, \"\\u00e9\", true, null], \"b\": {\"a\": 1, \"a\": 2, \"c\": 18446744073709551615}}", "here");
  CHECK(made["a"].items.size() == 5 && made["a"].items[1].real == -2.5 && made["a"].items[2].text == "é" && made["a"].items[3].truth);
  CHECK(made["b"].members.size() == 2 && made["b"]["a"].integer == 2 && made["b"]["c"].is(Json::REAL) && made["b"]["d"].is(Json::NOTHING));
  bool refused = false;
  try {
    Json::parse("[1, 2", "here");
  } catch (const Error& error) {
    refused = error.status == VDITC_ERROR_DAMAGED && std::strstr(error.what(), "here: found no JSON") == error.what();
  }
  CHECK(refused);
}

// Between the first step and the last nothing is taken.
void steps_take_no_memory(const char* bundle, const char* conditioning) {
  const auto opened = Bundle::open(bundle);
  const Clips clips = Conditioning(std::string(conditioning)).snapshot();
  for (const char* solver : {"", "DPMSolverMultistepScheduler"}) {
    for (const int32_t passes : {VDITC_PASSES_BATCHED, VDITC_PASSES_TWO}) {
      for (const char* cache : {"", "30%"}) {
        if (*solver && *cache) continue;  // the cache is of the bundle's own walk
        SessionOptions options;
        options.backend = "null", options.solver = solver, options.passes = passes, options.step_cache = cache, options.threads = 2;
        Session session(opened, options);
        uint64_t first = 0, last = 0;
        session.sample(
            clips,
            [&](const Done& done) {
              if (done.steps == 1) first = allocations;
              last = allocations;
              return true;
            },
            [](const std::vector<float>&) {});
        CHECK(first > 0 && last == first);
      }
    }
  }
}

void blocks_cover_everything() {
  for (const size_t size : {size_t{1}, Workers::BLOCK, 4 * Workers::BLOCK, 9 * Workers::BLOCK + 5}) {
    Workers workers(3);
    workers.prepare(size);
    std::vector<int> seen(size);
    for (int again = 0; again < 50; ++again) {
      workers.run(size, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) ++seen[i];
      });
    }
    for (const int times : seen) CHECK(times == 50);
  }
}

void floats() {
  for (uint32_t code = 0; code < 65536; ++code) {  // there and back
    for (const int32_t dtype : {VDITC_F16, VDITC_BF16}) {
      const auto half = static_cast<uint16_t>(code);
      uint16_t back = 0;
      float wide = 0;
      convert(&half, dtype, &wide, VDITC_F32, 1);
      convert(&wide, VDITC_F32, &back, dtype, 1);
      CHECK(back == half || std::isnan(wide));
    }
  }
  const struct {
    float value;
    uint16_t half;
  } cases[] = {{65504.0f, 0x7bff}, {65519.9f, 0x7bff}, {65520.0f, 0x7c00}, {5.9604645e-8f, 1}, {2.9802322e-8f, 0}, {2.9802326e-8f, 1}, {1.00048828125f, 0x3c00},
               {1.00146484375f, 0x3c02}, {-0.0f, 0x8000}};
  for (const auto& one : cases) {
    uint16_t made = 0;
    convert(&one.value, VDITC_F32, &made, VDITC_F16, 1);
    CHECK(made == one.half);
  }
}

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 3);
  hashes();
  json();
  floats();
  blocks_cover_everything();
  steps_take_no_memory(arguments[1], arguments[2]);
  return 0;
}
