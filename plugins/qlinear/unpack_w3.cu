#include "qlinear/unpack_launch.h"

namespace vditc::qlinear {

Status launch_w3(int tactic, bool packed, UnpackArguments& arguments, cudaStream_t stream) {
  return launch_weights<W3>(tactic, packed, arguments, stream);
}

}  // namespace vditc::qlinear
