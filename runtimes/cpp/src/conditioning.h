// What clips are sampled from (vditc.conditioning is the same in Python).
#pragma once
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle.h"
#include "dtype.h"
#include "handles.h"

namespace vditc::internal {

// A tensor that is kept alive by whoever holds it.
struct HostArray {
  int32_t dtype = 0;
  Shape shape;
  const uint8_t* data = nullptr;
  std::shared_ptr<const void> owner;
  explicit operator bool() const { return dtype != 0; }
  size_t count() const { return static_cast<size_t>(elements(shape)); }
};

// Of one moment: setters do not change what is being sampled.
struct Clips {
  int64_t latent_shape[4] = {0, 0, 0, 0};  // channels, frames, height, width
  std::vector<uint64_t> seeds;             // one a clip
  std::map<std::string, HostArray> inputs, empty;
  HostArray channels, known;
  std::vector<int64_t> known_frames;

  size_t count() const { return seeds.size(); }
  size_t latents() const;  // numbers of one clip
  // Size of every axis of the model's inputs but the batch. Error for two sizes of one axis, or a wrong number of axes.
  std::map<std::string, int64_t> sizes(const std::vector<InputSpec>& specs) const;
  // Error when something that the model takes is missing or does not fit, or something is not the model's.
  void check(const std::vector<InputSpec>& specs) const;
};

class Conditioning : public Object {
 public:
  explicit Conditioning(const std::string& path);
  Conditioning(const int64_t latent_shape[4], const uint64_t* seeds, size_t clips);

  Clips snapshot() const;
  void set_input(const std::string& name, const vditc_tensor& tensor);
  void set_empty(const std::string& name, const vditc_tensor& tensor);
  void set_channels(const vditc_tensor& tensor);
  void set_known(const vditc_tensor& tensor, const int64_t* frames, size_t count);

 private:
  mutable std::mutex lock_;
  Clips clips_;
  void check_shape() const;
  void check_extra(const char* what, const HostArray& array, int64_t channels) const;
  void check_known_frames() const;
};

}  // namespace vditc::internal
