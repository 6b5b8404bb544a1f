#include "engines/about.h"

#include <cstdlib>
#include <filesystem>

#include "files.h"
#include "json.h"
#include "status.h"

namespace vditc::internal {
namespace {

constexpr int64_t SEGMENTS_SCHEMA = 1;
constexpr uint64_t MOST = 16u << 20;

[[noreturn]] void wrong(const std::string& path, const std::string& key, const char* wanted) {
  throw Error(VDITC_ERROR_DAMAGED, path, "unreadable (" + key + ")", wanted, "build the engine again");
}

bool read(const std::string& path, const char* what, Json& found) {
  if (!std::filesystem::exists(path)) return false;
  found = Json::parse(read_file(path, MOST, what, what, "build the engine again"), path);
  return true;
}

}  // namespace

About read_about(const std::string& folder) {
  constexpr const char* WANTED = "what is said of the engine";
  const std::string path = folder + "/engine.json";
  About made;
  Json found;
  if (!read(path, WANTED, found)) return made;
  for (const char* key : {"module", "version"}) {
    if (!found[key].is(Json::TEXT)) wrong(path, key, WANTED);
  }
  if (!found["arch"].is(Json::LIST)) wrong(path, "arch", WANTED);
  made.known = true, made.module = found["module"].text, made.version = found["version"].text;
  for (const Json& arch : found["arch"].items) made.arch += (made.arch.empty() ? "" : ", ") + arch.text_or("?");
  made.weights = found["weights"].text_or("");
  const Json& options = found["options"];
  const auto asked = [&](const char* name) { return options[name].is(Json::BOOL) && options[name].truth; };
  made.embedded = asked("embed-plugins");
  made.host_code = made.embedded || asked("version-compatible");
  const Json& streaming = options["weight-streaming"];
  made.streams = !streaming.is(Json::NOTHING);
  made.budget = streaming.integer_or(-1);
  if (made.streams && streaming.is(Json::TEXT) && streaming.text != "auto") wrong(path, "weight-streaming", WANTED);
  if (asked("strip-weights") && made.weights.empty()) wrong(path, "weights", WANTED);
  return made;
}

Segments read_segments(const std::string& folder) {
  constexpr const char* WANTED = "the segments of an engine";
  const std::string path = folder + "/segments.json";
  Segments made;
  Json found;
  if (!read(path, WANTED, found)) {
    made.plans = {"model.plan"};
    return made;
  }
  const Json& schema = found["schema"];
  if (!schema.is(Json::INTEGER) || schema.integer != SEGMENTS_SCHEMA) {
    throw Error(VDITC_ERROR_SCHEMA, path, "schema " + schema.words(), "schema " + std::to_string(SEGMENTS_SCHEMA), "use the vditc that built the engine");
  }
  for (const Json& one : found["segments"].items) {
    const std::string name = one["name"].text_or("");
    if (name.empty() || name.find('/') != std::string::npos) wrong(path, "segments", WANTED);
    made.plans.push_back(name + ".plan");
  }
  for (const Json& one : found["outputs"].items) made.outputs.push_back(one.text_or(""));
  if (made.plans.empty()) wrong(path, "segments", WANTED);
  if (made.outputs.empty()) wrong(path, "outputs", WANTED);
  return made;
}

}  // namespace vditc::internal
