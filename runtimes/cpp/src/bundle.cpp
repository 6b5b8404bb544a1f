#include "bundle.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <set>
#include <thread>
#include <unordered_map>

#include "files.h"
#include "sha256.h"
#include "status.h"
#include "text/tokenizer.h"

namespace vditc::internal {
namespace {

constexpr int64_t SCHEMA = 1;
constexpr uint64_t MAX_MANIFEST = 256u << 20;
const char* const REQUIRED[] = {"vditc", "model", "recipe", "layers", "kept", "mean_bits", "sampling", "inputs", "profile",
                                "graph", "targets", "quality", "gate", "tools", "files", "schema"};
const char* const OPTIONAL[] = {"components", "experts"};

std::string longs(uint64_t n) { return std::to_string(n); }

}  // namespace

std::string InputSpec::dims_words() const {
  std::string made = "[";
  for (size_t i = 0; i < dims.size(); ++i) made += (i ? ", " : "") + (dims[i].axis.empty() ? std::to_string(dims[i].size) : dims[i].axis);
  return made + "]";
}

void Bundle::damaged(const std::string& found, const std::string& wanted) const {
  throw Error(VDITC_ERROR_DAMAGED, "bundle " + path_, found, wanted, "copy the bundle again, or compile it again");
}

std::shared_ptr<Bundle> Bundle::open(const std::string& path) {
  std::shared_ptr<Bundle> made(new Bundle);
  made->read(path);
  made->check_files();
  made->read_experts();
  for (const auto& expert : made->experts_) expert->check_within(*made);
  return made;
}

void Bundle::read(const std::string& path) {
  path_ = path;
  const std::string where = (std::filesystem::path(path) / "manifest.json").string();
  text_ = read_file(where, MAX_MANIFEST, "manifest", "a bundle", "compile one with `vditc compile`");
  manifest_ = Json::parse(text_, where);
  const Json& schema = manifest_["schema"];
  if (!manifest_.is(Json::OBJECT) || !schema.is(Json::INTEGER) || schema.integer != SCHEMA) {
    throw Error(VDITC_ERROR_SCHEMA, where, "schema " + schema.words(), "schema " + std::to_string(SCHEMA),
                manifest_["vditc"].is(Json::TEXT) ? "use vditc " + manifest_["vditc"].text + ", which wrote it" : "use a matching vditc");
  }
  const auto wrong = [&](const std::string& why) {
    throw Error(VDITC_ERROR_DAMAGED, where, "a manifest with wrong keys (" + why + ")", "a whole manifest", "compile again");
  };
  std::set<std::string> known(std::begin(OPTIONAL), std::end(OPTIONAL));
  for (const char* name : REQUIRED) {
    known.insert(name);
    if (manifest_.find(name) == nullptr) wrong(std::string("no ") + name);
  }
  for (const auto& [name, value] : manifest_.members) {
    if (known.count(name) == 0) wrong(name);
  }
  if (!manifest_["files"].is(Json::OBJECT)) wrong("files");
  for (const auto& [name, about] : manifest_["files"].members) {
    const Json &bytes = about["bytes"], &hash = about["sha256"];
    if (!bytes.is(Json::INTEGER) || bytes.integer < 0 || !hash.is(Json::TEXT)) wrong("files: " + name);
    files_.push_back({name, static_cast<uint64_t>(bytes.integer), hash.text});
  }
  verified_.assign(files_.size(), 0);
  for (const auto& [name, about] : manifest_["targets"].members) {
    const Json &engine = about["engine"], &arch = about["arch"];
    Target target;
    target.name = name, target.backend = about["backend"].text_or(""), target.status = engine["status"].text_or("");
    target.version = engine["version"].text_or(""), target.library = about["plugins"]["library"].text_or("");
    for (size_t i = 0; i < arch.items.size(); ++i) target.arch += (i ? "," : "") + arch.items[i].text_or("?");
    target.plan_bytes = static_cast<uint64_t>(std::max<int64_t>(0, engine["plan_bytes"].integer_or(0)));
    targets_.push_back(std::move(target));
  }
  for (const auto& [axis, sizes] : manifest_["profile"].members) {
    if (sizes.items.size() != 3 || !sizes.items[0].is(Json::INTEGER) || !sizes.items[1].is(Json::INTEGER) || !sizes.items[2].is(Json::INTEGER)) {
      wrong("profile: " + axis);
    }
    profile_.emplace_back(axis, Range{sizes.items[0].integer, sizes.items[1].integer, sizes.items[2].integer});
  }
}

void Bundle::check_files() const {
  for (const FileEntry& entry : files_) {
    const std::string file = inside(path_, entry.name, (std::filesystem::path(path_) / "manifest.json").string());
    const int64_t size = file_size(file);
    if (size < 0) damaged("no file " + entry.name, "every file that the manifest lists");
    if (static_cast<uint64_t>(size) != entry.bytes) {
      damaged(entry.name + " of " + longs(static_cast<uint64_t>(size)) + " bytes", longs(entry.bytes) + " bytes");
    }
  }
}

void Bundle::read_experts() {
  const Json& said = manifest_["experts"];
  if (manifest_.find("experts") != nullptr && !said.is(Json::OBJECT)) damaged("wrong experts (" + said.words() + ")", "path and first_step of each");
  const int64_t steps = static_cast<int64_t>(manifest_["sampling"]["schedule"]["timesteps"].items.size());
  for (const auto& [name, about] : said.members) {
    const Json &folder = about["path"], &first = about["first_step"];
    const int64_t least = first_steps_.empty() ? 0 : first_steps_.back();
    if (!folder.is(Json::TEXT) || !first.is(Json::INTEGER) || first.integer <= least || first.integer >= steps) {
      damaged("wrong experts (first_step " + first.words() + ")", "path and first_step of each");
    }
    std::shared_ptr<Bundle> expert(new Bundle);
    expert->read(inside(path_, folder.text, (std::filesystem::path(path_) / "manifest.json").string()));
    if (!expert->manifest_["experts"].members.empty()) damaged("experts of expert " + name, "experts of the whole model alone");
    experts_.push_back(std::move(expert));
    first_steps_.push_back(first.integer);
  }
}

void Bundle::check_within(const Bundle& outer) const {
  namespace fs = std::filesystem;
  const std::string within = fs::path(path_).lexically_relative(outer.path_).generic_string();
  std::unordered_map<std::string, const FileEntry*> listed;
  for (const FileEntry& entry : outer.files_) listed.emplace(entry.name, &entry);
  if (listed.count(within + "/manifest.json") == 0) {
    outer.damaged(within + "/manifest.json, which the manifest does not list", "every file of the expert");
  }
  for (const FileEntry& entry : files_) {
    inside(path_, entry.name, (fs::path(path_) / "manifest.json").string());
    const auto found = listed.find(within + "/" + entry.name);
    if (found == listed.end() || !(*found->second == entry)) {
      outer.damaged("another " + within + "/" + entry.name + " in the expert's manifest", "one entry for a file");
    }
  }
}

const FileEntry* Bundle::file(const std::string& name) const {
  const auto found = std::find_if(files_.begin(), files_.end(), [&](const FileEntry& entry) { return entry.name == name; });
  return found == files_.end() ? nullptr : &*found;
}

std::shared_ptr<const Tokenizer> Bundle::tokenizer(const std::string& folder) const {
  const std::string name = "components/" + folder + "/tokenizer.json";
  if (file(name) == nullptr) damaged("no " + name + " in the manifest", "the tokenizer of every text encoder");
  std::lock_guard<std::mutex> hold(tokenizers_lock_);
  std::shared_ptr<const Tokenizer>& made = tokenizers_[folder];
  if (!made) made = Tokenizer::open((std::filesystem::path(path_) / name).string());
  return made;
}

const Range* Bundle::range(const std::string& axis) const {
  for (const auto& [name, range] : profile_) {
    if (name == axis) return &range;
  }
  return nullptr;
}

bool Bundle::verify(int threads, const OnProgress& progress) {
  std::lock_guard<std::mutex> hold(lock_);  // two calls would only hash everything twice
  std::vector<size_t> order;
  uint64_t total = 0;
  for (size_t i = 0; i < files_.size(); ++i) {
    if (!verified_[i]) order.push_back(i), total += files_[i].bytes;
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return files_[a].bytes > files_[b].bytes; });
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done{0};
  std::atomic<bool> stop{false};
  std::vector<std::exception_ptr> errors(files_.size());
  const auto work = [&](bool tells) {
    for (size_t at; !stop && (at = next++) < order.size();) {
      const size_t i = order[at];
      try {
        const FileEntry& entry = files_[i];
        const std::string found = file_sha256((std::filesystem::path(path_) / entry.name).string(), entry.bytes, [&](uint64_t bytes) {
          const uint64_t so_far = done += bytes;
          if (tells && progress && !progress(so_far, total)) stop = true;
          return !stop.load();
        });
        if (stop && found.empty()) return;
        if (found != entry.sha256) damaged(entry.name + " with sha256 " + found.substr(0, 16) + "…", entry.sha256.substr(0, 16) + "…");
        verified_[i] = 1;
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  const size_t count = std::min<size_t>(threads > 0 ? static_cast<size_t>(threads) : cores, std::max<size_t>(1, order.size()));
  std::vector<std::thread> others;
  for (size_t i = 1; i < count; ++i) {
    try {
      others.emplace_back(work, false);
    } catch (const std::system_error&) {
      break;  // no more threads here: those that are there do it
    }
  }
  work(true);  // callbacks come on the caller's thread
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  if (stop) return false;
  return !progress || progress(total, total);
}

const std::vector<InputSpec>& Bundle::inputs() const {
  std::lock_guard<std::mutex> hold(lock_);
  if (inputs_.empty()) inputs_ = specs(manifest_["inputs"], "inputs");
  return inputs_;
}

std::vector<InputSpec> Bundle::inputs(const std::string& target) const {
  return specs(manifest_["targets"][target]["inputs"], "inputs of target " + target);
}

std::vector<InputSpec> Bundle::specs(const Json& list, const std::string& where) const {
  std::vector<InputSpec> made;
  for (const Json& about : list.items) {
    InputSpec spec;
    spec.name = about["name"].text_or("");
    spec.dtype = dtype_of_numpy(about["dtype"].text_or(""));
    for (const Json& dim : about["dims"].items) spec.dims.push_back({dim.integer_or(0), dim.text_or("")});
    // Manifests before fills were in them: the time has the name that every family gives it, and all else must be given.
    const Json& fill = about["fill"];
    spec.fill = fill.is_number() ? "" : fill.text_or(spec.name == "timestep" ? "timestep" : "normal");
    spec.value = fill.number_or(0);
    bool well = !spec.name.empty() && spec.dtype != 0 && !spec.dims.empty() && spec.dims.size() <= VDITC_MAX_RANK;
    for (const Dim& dim : spec.dims) well = well && (dim.axis.empty() ? dim.size > 0 : dim.size == 0);
    if (!well) damaged(where + " with " + about.words(), "name, dtype and dims of each");
    if (spec.name != "step" || where != "inputs") made.push_back(std::move(spec));
  }
  if (made.empty() || made[0].dims.size() != 5) damaged("no latents in " + where, "latents [batch, channels, frames, height, width] first");
  return made;
}

}  // namespace vditc::internal
