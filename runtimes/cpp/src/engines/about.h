// Files beside an engine: engine.json, what it was built with (vditc.runtimes.built_with), and segments.json (vditc.segments).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace vditc::internal {

struct PluginName {
  std::string name, version, space;
};

struct About {
  bool known = false;  // that there is an engine.json
  std::string module, version, arch;  // arch: "sm_80, sm_90"
  std::string weights;                // file with the stripped weights, relative to the engine's folder; "": they are in the engine
  bool host_code = false;             // machine code of the host is in it
  bool embedded = false;              // its plugins are
  bool streams = false;               // weights, from the host's memory
  int64_t budget = -1;                // of the GPU for them; -1: what TensorRT finds best

  std::string words() const { return module + " " + version + " for " + arch; }
};

struct Segments {
  std::vector<std::string> plans;    // files, in order; one of an engine that is not cut
  std::vector<std::string> outputs;  // of the whole model; none where the engine itself says it
};

// Of the engine's folder. Error VDITC_ERROR_DAMAGED for a file that does not say it, VDITC_ERROR_SCHEMA for segments of another schema.
About read_about(const std::string& folder);
Segments read_segments(const std::string& folder);

}  // namespace vditc::internal
