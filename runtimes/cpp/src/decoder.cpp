#include "decoder.h"

#include <filesystem>

#include "files.h"
#include "pixel_codec.h"
#include "status.h"
#include "video_decoder.h"

namespace vditc::internal {
namespace {

constexpr const char *PLAN = "components/vae/decoder.json", *CODEC = "components/vae/config.json";
constexpr uint64_t MOST_BYTES = 16u << 20;
constexpr int64_t MOST_LATENTS = 1 << 16;  // of an axis

struct Description {
  std::string file;
  Json json;
};

std::string path_of(const Bundle& bundle, const char* name) {
  return inside(bundle.path(), name, (std::filesystem::path(bundle.path()) / "manifest.json").string());
}

// A listed file of the bundle; NOTHING where it has none.
Description read(const Bundle& bundle, const char* name) {
  if (bundle.file(name) == nullptr) return {};
  Description made{path_of(bundle, name), {}};
  const std::string text = read_file(made.file, MOST_BYTES, "description of a decoder", "what vditc writes", "compile the bundle again");
  made.json = Json::parse(text, made.file);
  return made;
}

bool is_codec(const Json& config) { return config["_class_name"].text_or("") == PixelCodec::NAME; }

}  // namespace

bool has_decoder(const Bundle& bundle) { return bundle.file(PLAN) != nullptr || is_codec(read(bundle, CODEC).json); }

int32_t frame_rate(const Bundle& bundle) {
  constexpr int32_t OWN = 8;  // of the bundled models, and where the manifest has none
  const Json& rate = bundle.manifest()["sampling"]["fps"];
  if (rate.is(Json::NOTHING) || is_codec(read(bundle, CODEC).json)) return OWN;
  const int64_t said = rate.integer_or(0);
  if (said < 1 || said > 1000) bundle.damaged("sampling.fps " + rate.words(), "a whole number, 1 to 1000");
  return static_cast<int32_t>(said);
}

std::unique_ptr<Decoder> open_decoder(const Bundle& bundle) {
  const Description codec = read(bundle, CODEC);
  if (is_codec(codec.json)) return std::make_unique<PixelCodec>(PixelCodec::read(codec.json, codec.file));
  const Description plan = read(bundle, PLAN);
  if (plan.file.empty()) {
    for (const char* name : {PLAN, CODEC}) {  // nobody hashed it
      if (file_size(path_of(bundle, name)) < 0) continue;
      bundle.damaged(std::string(name) + ", which the manifest does not list", "every file of the decoder");
    }
    throw Error(VDITC_ERROR_UNSUPPORTED, "bundle " + bundle.path(), "no decoder that vditc runs", "latents, or a bundle with one",
                "decode them with the model's own VAE");
  }
  const bool tiled = bundle.manifest()["components"]["vae"]["tiled"].truth;
  return std::make_unique<VideoDecoder>(VideoPlan::read(plan.json, plan.file), tiled, plan.file);
}

void check_latents(const LatentShape& shape, int64_t channels) {
  const std::string found = "latents " + shape_words({shape.begin(), shape.end()});
  for (const int64_t size : shape) {
    if (size < 1 || size > MOST_LATENTS) {
      throw Error(VDITC_ERROR_INPUT, "decoder", found,
                  "channels, frames, height and width of 1 to " + std::to_string(MOST_LATENTS) + " each", "correct the latents' shape");
    }
  }
  if (shape[0] != channels) {
    throw Error(VDITC_ERROR_INPUT, "decoder", found, std::to_string(channels) + " channels", "give latents of this bundle's model");
  }
}

}  // namespace vditc::internal
