// Memory-mapped safetensors files, checked before anything is read from them.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "dtype.h"
#include "files.h"
#include "handles.h"

namespace vditc::internal {

struct TensorView {
  int32_t dtype = 0;
  Shape shape;
  const void* data = nullptr;  // rows contiguous, not always aligned
  uint64_t bytes = 0;
};

class Safetensors : public Object {
 public:
  explicit Safetensors(const std::string& path);
  const std::string path;
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  Mapped file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Writes a whole file or none, tensors in the order in which the safetensors library lays them out.
void write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors);

}  // namespace vditc::internal
