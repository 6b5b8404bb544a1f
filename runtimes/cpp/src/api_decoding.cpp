#include "api.h"
#include "session.h"

using namespace vditc::internal;

namespace {

LatentShape shape_of(const int64_t* latent_shape) {
  const int64_t* from = &required(latent_shape, "latent_shape");
  return {from[0], from[1], from[2], from[3]};
}

}  // namespace

extern "C" {

vditc_status vditc_session_frames(vditc_session* session, const int64_t latent_shape[4], uint64_t* frames, uint64_t* height, uint64_t* width) {
  return guarded([&] {
    const VideoSize size = of_handle<Session>(session, "session")->video_size(shape_of(latent_shape));
    if (frames != nullptr) *frames = size.frames;
    if (height != nullptr) *height = size.height;
    if (width != nullptr) *width = size.width;
  });
}

vditc_status vditc_session_decode(vditc_session* handle, const float* latents, uint64_t bytes, const int64_t latent_shape[4],
                                  vditc_frames_fn on_frames, void* user) {
  return guarded([&] {
    const auto session = of_handle<Session>(handle, "session");
    required(latents, "latents");
    required(on_frames, "on_frames");
    const LatentShape shape = shape_of(latent_shape);
    const int64_t count = elements(shape.data(), shape.size());
    if (count < 0 || bytes / sizeof(float) != static_cast<uint64_t>(count) || bytes % sizeof(float) != 0) {
      throw Error(VDITC_ERROR_ARGUMENT, "latents", text("%llu bytes", static_cast<unsigned long long>(bytes)),
                  "float32 " + shape_words({shape.begin(), shape.end()}), "give one clip, and its shape");
    }
    session->decode(latents, shape, [&](const Shown& shown) {
      vditc_frames said{};
      said.abi_version = VDITC_ABI_VERSION, said.struct_size = sizeof said;
      said.first = shown.first, said.count = shown.count, said.total = shown.size.frames;
      said.height = shown.size.height, said.width = shown.size.width;
      said.pixels = shown.pixels, said.bytes = shown.count * shown.size.height * shown.size.width * 3;
      return on_frames(user, &said) == 0;
    });
  });
}
}
