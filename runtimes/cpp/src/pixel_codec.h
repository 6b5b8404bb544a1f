// The fixed codec of the bundled models, which has no weights (vditc.codec is the same in Python): a block of `block` x `block` grey pixels is
// `block`^2 channels, minus `mean`, over `std`.
#pragma once
#include "decoder.h"
#include "json.h"

namespace vditc::internal {

class PixelCodec : public Decoder {
 public:
  static constexpr const char* NAME = "PixelShuffleCodec";
  static PixelCodec read(const Json& config, const std::string& file);
  VideoSize size(const LatentShape& shape) const override;
  // Frame by frame, grey as red, green and blue.
  void decode(const Decoding& clip, Workers& workers) const override;

 private:
  int64_t block_ = 1;
  float mean_ = 0, std_ = 1;
};

}  // namespace vditc::internal
