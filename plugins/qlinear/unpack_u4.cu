#include "qlinear/unpack_launch.h"

namespace vditc::qlinear {

Status launch_u4(int tactic, bool packed, UnpackArguments& arguments, cudaStream_t stream) {
  return launch_weights<U4>(tactic, packed, arguments, stream);
}

}  // namespace vditc::qlinear
