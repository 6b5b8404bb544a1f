// A bundle on disk: its manifest, checked, and its files (vditc.bundle is the same in Python).
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dtype.h"
#include "handles.h"
#include "json.h"

namespace vditc::internal {

class Tokenizer;

struct FileEntry {
  std::string name;
  uint64_t bytes = 0;
  std::string sha256;
  bool operator==(const FileEntry& other) const { return bytes == other.bytes && sha256 == other.sha256; }
};

struct Dim {
  int64_t size = 0;  // 0: named
  std::string axis;
};

// What a graph takes: `vditc.adapter.InputSpec`.
struct InputSpec {
  std::string name;
  int32_t dtype = 0;
  std::vector<Dim> dims;
  std::string fill;  // "normal", "timestep", "mask", "ids", or "" where `value` is the default
  double value = 0;
  bool batched() const { return !dims.empty() && dims[0].axis == "batch"; }
  std::string dims_words() const;
};

struct Range {
  int64_t smallest = 0, best = 0, greatest = 0;
};

struct Target {
  std::string name, backend, status, version, arch, library;
  uint64_t plan_bytes = 0;
};

using OnProgress = std::function<bool(uint64_t done, uint64_t total)>;  // false: stop

class Bundle : public Object {
 public:
  // Reads the manifest and checks names and sizes of all files; hashes are left to `verify`.
  static std::shared_ptr<Bundle> open(const std::string& path);

  // Hashes what was not hashed yet, on some threads (0: one for each core). False when it was stopped.
  bool verify(int threads, const OnProgress& progress);

  const std::string& path() const { return path_; }
  const std::string& text() const { return text_; }
  const Json& manifest() const { return manifest_; }
  const std::vector<FileEntry>& files() const { return files_; }
  const FileEntry* file(const std::string& name) const;  // nullptr: not listed
  const std::vector<Target>& targets() const { return targets_; }
  const std::vector<std::shared_ptr<Bundle>>& experts() const { return experts_; }
  const std::vector<int64_t>& first_steps() const { return first_steps_; }  // of the experts

  // What the model takes, the latents first; Error for a manifest that does not say it.
  const std::vector<InputSpec>& inputs() const;
  // Inputs of a target's engine, `step` among them.
  std::vector<InputSpec> inputs(const std::string& target) const;
  // Of an axis; nullptr: not known.
  const Range* range(const std::string& axis) const;
  // Of the folder `components/FOLDER`, read once.
  std::shared_ptr<const Tokenizer> tokenizer(const std::string& folder) const;
  [[noreturn]] void damaged(const std::string& found, const std::string& wanted) const;

 private:
  Bundle() = default;
  void read(const std::string& path);
  void read_experts();
  void check_files() const;
  void check_within(const Bundle& outer) const;
  std::vector<InputSpec> specs(const Json& list, const std::string& where) const;

  std::string path_, text_;
  Json manifest_;
  std::vector<FileEntry> files_;
  std::vector<Target> targets_;
  std::vector<std::pair<std::string, Range>> profile_;
  std::vector<std::shared_ptr<Bundle>> experts_;
  std::vector<int64_t> first_steps_;
  mutable std::mutex lock_;  // of what follows
  mutable std::vector<InputSpec> inputs_;
  std::vector<char> verified_;
  mutable std::mutex tokenizers_lock_;
  mutable std::map<std::string, std::shared_ptr<const Tokenizer>> tokenizers_;
};

}  // namespace vditc::internal
