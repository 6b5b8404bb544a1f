// A clip that a prompt tells of, in place of a saved conditioning.
#ifndef PROMPTS_HPP
#define PROMPTS_HPP

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>

#include "vditc/vditc.hpp"

constexpr const char* PROMPT_USAGE =
    "  --prompt TEXT     what the clip shows, in place of a conditioning\n"
    "  --negative TEXT   what it is to lead away from [default: nothing]\n"
    "  --size FxHxW      frames, height, width of the latents, with --prompt [default: the bundle's]\n";

struct Prompt {
  std::string text, negative, size;
  bool given = false;

  // Where the value of an option goes; nullptr for other options.
  std::string* option(const std::string& word) {
    given = given || word == "--prompt";
    return word == "--prompt" ? &text : word == "--negative" ? &negative : word == "--size" ? &size : nullptr;
  }
  // Whether `size` is three whole numbers, or not given.
  bool size_fits() const {
    std::array<int64_t, 4> shape{};
    return size.empty() || read(shape);
  }
  // One clip of the bundle's size, or the prompt's.
  vditc::Conditioning clip(const vditc::Bundle& bundle) const {
    const vditc_bundle_info about = bundle.info();
    std::array<int64_t, 4> shape{about.latent_shape[0], about.latent_shape[1], about.latent_shape[2], about.latent_shape[3]};
    if (!size.empty()) read(shape);
    return vditc::Conditioning(shape, {0});
  }

 private:
  bool read(std::array<int64_t, 4>& shape) const {
    long long frames = 0, height = 0, width = 0;
    int end = 0;
    const int count = std::sscanf(size.c_str(), "%6lldx%6lldx%6lld%n", &frames, &height, &width, &end);
    shape[1] = frames, shape[2] = height, shape[3] = width;
    return count == 3 && end == static_cast<int>(size.size()) && frames > 0 && height > 0 && width > 0;
  }
};

#endif
