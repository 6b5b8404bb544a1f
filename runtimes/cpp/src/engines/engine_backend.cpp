// A target of a bundle: its engines of the transformer, text encoders and VAE decoder.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "backends/engines.h"
#include "engines/device_runs.h"
#include "files.h"
#include "status.h"

namespace vditc::internal {
namespace {

constexpr const char* BUILT = "built";

// The transformer of one expert.
class EngineDenoiser : public Denoiser {
 public:
  EngineDenoiser(std::shared_ptr<Cuda> cuda, std::unique_ptr<EngineChain> chain, std::string where)
      : runs_(std::move(cuda), std::move(chain), 1), where_(std::move(where)) {}

  void resize(const Call& call) override {
    const std::vector<Port>& ports = runs_.inputs();
    std::vector<Shape> shapes;
    places_.assign(call.shapes.size(), Place());
    step_ = ports.size();
    for (size_t p = 0; p < ports.size(); ++p) {
      const auto found = std::find_if(call.specs->begin(), call.specs->end(), [&](const InputSpec& spec) { return spec.name == ports[p].name; });
      if (found != call.specs->end()) {
        const auto index = static_cast<size_t>(found - call.specs->begin());
        shapes.push_back(call.shapes[index]);
        Place& place = places_[index];
        place.port = static_cast<int>(p), place.dtype = found->dtype, place.count = static_cast<size_t>(elements(shapes.back()));
        if (place.dtype != ports[p].dtype) place.host.assign(call.runs, std::vector<uint8_t>(place.count * dtype_size(place.dtype)));
      } else if (ports[p].name == "step") {
        step_ = p;
        shapes.push_back({1});
      } else {
        throw Error(VDITC_ERROR_ENGINE, where_, "an input " + ports[p].name + " that the bundle does not know", "the model's inputs, and step",
                    "build the engine again");
      }
    }
    if (places_[0].port < 0) {
      throw Error(VDITC_ERROR_ENGINE, where_, "an engine that does not take " + (*call.specs)[0].name, "the latents among its inputs", "build the engine again");
    }
    runs_.resize(shapes, call.runs);
    prediction_.dtype = runs_.outputs()[0].dtype;
    if (runs_.output_shape(0) != call.prediction) {
      throw Error(VDITC_ERROR_ENGINE, where_, runs_.outputs()[0].name + " " + shape_words(runs_.output_shape(0)), shape_words(call.prediction),
                  "build the engine again");
    }
    prediction_.count = static_cast<size_t>(elements(call.prediction));
    prediction_.host.assign(prediction_.dtype == VDITC_F32 ? 0 : call.runs, std::vector<float>(prediction_.count));
  }

  void* input(size_t run, size_t index) override {
    Place& place = places_[index];
    if (place.port < 0) return nullptr;
    return place.host.empty() ? runs_.input(run, static_cast<size_t>(place.port)) : place.host[run].data();
  }

  void changed(size_t run, size_t index) override {
    const Place& place = places_[index];
    if (place.port < 0) return;
    const auto port = static_cast<size_t>(place.port);
    if (!place.host.empty()) convert(place.host[run].data(), place.dtype, runs_.input(run, port), runs_.inputs()[port].dtype, place.count);
    runs_.changed(run, port);
  }

  void begin(size_t run, int64_t step) override {
    if (step_ < runs_.inputs().size()) {
      convert(&step, VDITC_I64, runs_.input(run, step_), runs_.inputs()[step_].dtype, 1);
      runs_.changed(run, step_);
    }
    runs_.begin(run);
  }

  const float* result(size_t run) override {
    runs_.finish(run);
    if (prediction_.host.empty()) return static_cast<const float*>(runs_.output(run, 0));
    convert(runs_.output(run, 0), prediction_.dtype, prediction_.host[run].data(), VDITC_F32, prediction_.count);
    return prediction_.host[run].data();
  }

 private:
  struct Place {
    int port = -1;  // of the engine; -1: it does not take this input
    int32_t dtype = 0;
    size_t count = 0;
    std::vector<std::vector<uint8_t>> host;  // of every run, where the engine takes another type
  };
  struct Prediction {
    int32_t dtype = 0;
    size_t count = 0;
    std::vector<std::vector<float>> host;  // of every run, where the engine gives another type
  };
  DeviceRuns runs_;
  std::string where_;
  std::vector<Place> places_;
  size_t step_ = 0;  // port; as many as there are: none
  Prediction prediction_;
};

// A graph of a text encoder or a VAE decoder.
class EngineGraph : public Program {
 public:
  EngineGraph(std::shared_ptr<Cuda> cuda, std::unique_ptr<EngineChain> chain, std::string where)
      : runs_(std::move(cuda), std::move(chain), 0), where_(std::move(where)) {}

  void run(const std::vector<vditc_tensor>& inputs, std::vector<Output>& outputs) override {
    const std::vector<Port>& ports = runs_.inputs();
    shapes_.clear(), feeds_.clear();
    for (const Port& port : ports) {
      const auto found = std::find_if(inputs.begin(), inputs.end(), [&](const vditc_tensor& tensor) { return tensor.name != nullptr && port.name == tensor.name; });
      if (found == inputs.end()) wrong("no " + port.name, "all inputs of the engine");
      shapes_.emplace_back(found->shape, found->shape + found->rank);
      feeds_.push_back(&*found);
    }
    runs_.resize(shapes_, 1);
    for (size_t i = 0; i < ports.size(); ++i) {
      convert(feeds_[i]->data, feeds_[i]->dtype, runs_.input(0, i), ports[i].dtype, static_cast<size_t>(elements(shapes_[i])));
      runs_.changed(0, i);
    }
    runs_.begin(0);
    runs_.finish(0);
    for (Output& output : outputs) {
      const std::vector<Port>& made = runs_.outputs();
      const auto found = output.name.empty() ? made.begin() : std::find_if(made.begin(), made.end(), [&](const Port& port) { return port.name == output.name; });
      if (found == made.end()) wrong("no output " + output.name, "all outputs of the graph");
      const auto index = static_cast<size_t>(found - made.begin());
      if (runs_.output_shape(index) != output.shape) wrong(found->name + " " + shape_words(runs_.output_shape(index)), shape_words(output.shape));
      output.data.resize(static_cast<size_t>(elements(output.shape)));
      convert(runs_.output(0, index), found->dtype, output.data.data(), VDITC_F32, output.data.size());
    }
  }

 private:
  DeviceRuns runs_;
  std::string where_;
  std::vector<Shape> shapes_;
  std::vector<const vditc_tensor*> feeds_;
  [[noreturn]] void wrong(const std::string& found, const std::string& wanted) const {
    throw Error(VDITC_ERROR_ENGINE, where_, found, wanted, "build the engine again");
  }
};

class EngineBackend : public Backend {
 public:
  EngineBackend(const Bundle& bundle, const std::string& asked, int device, int64_t weight_budget)
      : cuda_(std::make_shared<Cuda>(device)), target_(asked.empty() ? target_here(bundle) : asked), weight_budget_(weight_budget), library_(engine_library()) {}

  std::unique_ptr<Denoiser> open(const Bundle& expert, size_t) override {
    const Target& target = target_of(expert);
    const std::string folder = "engines/" + target_;
    if (target.status != BUILT) not_built(expert.path() + "/" + folder);
    const Json& plugins = expert.manifest()["targets"][target_]["plugins"];
    std::vector<PluginName> wanted;
    for (const auto& [name, layers] : plugins["operators"].members) {  // "vditc.QLinear": how many layers
      wanted.push_back({name.substr(name.rfind('.') + 1), plugins["version"].text_or(""), plugins["namespace"].text_or("")});
    }
    if (!target.library.empty() && wanted.empty()) expert.damaged("a plugin library of no operators", "those that the engine wants of it");
    const std::string library = target.library.empty() ? "" : inside(expert.path(), target.library, "bundle " + expert.path());
    auto chain = load(expert, folder, weight_budget_, library, std::move(wanted));
    return std::make_unique<EngineDenoiser>(cuda_, std::move(chain), expert.path() + "/" + folder);
  }

  std::unique_ptr<Program> program(const Bundle& bundle, const std::string& component, const std::string& graph) override {
    const Json& about = bundle.manifest()["components"][component]["targets"][target_]["graphs"][graph]["engine"];
    const std::string folder = "components/" + component + "/engines/" + target_ + "/" + graph;
    if (about["status"].text_or("") != BUILT) not_built(bundle.path() + "/" + folder);
    return std::make_unique<EngineGraph>(cuda_, load(bundle, folder, -1, "", {}), bundle.path() + "/" + folder);
  }

  std::vector<InputSpec> inputs(const Bundle& bundle) const override { return bundle.inputs(target_); }
  bool built() const override { return true; }

 private:
  std::shared_ptr<Cuda> cuda_;
  std::string target_;
  int64_t weight_budget_;
  std::shared_ptr<EngineLibrary> library_;

  const Target& target_of(const Bundle& bundle) const {
    for (const Target& target : bundle.targets()) {
      if (target.name == target_) return target;
    }
    bundle.damaged("no target " + target_, "the target of the whole bundle");
  }

  std::string target_here(const Bundle& bundle) const {
    std::string known;
    for (const Target& target : bundle.targets()) {
      if (target.status != BUILT || target.backend != engine_module()) continue;
      for (const Json& arch : bundle.manifest()["targets"][target.name]["arch"].items) {
        if (arch.text_or("") == cuda_->arch()) return target.name;
        known += (known.empty() ? "" : ", ") + arch.text_or("?");
      }
    }
    throw Error(VDITC_ERROR_NO_DEVICE, "bundle " + bundle.path(), std::string("engines of ") + engine_module() + " for " + (known.empty() ? "no GPU" : known),
                "an engine for this machine's " + cuda_->arch() + " (" + cuda_->name() + ")",
                "build one here (engines/TARGET/build.sh and `vditc collect`, or `vditc build`), or name a backend");
  }

  [[noreturn]] void not_built(const std::string& folder) const {
    throw Error(VDITC_ERROR_NOT_FOUND, folder, "no engine", "one that was built for target " + target_,
                "build it on the device with its build.sh and `vditc collect` it, or use `vditc build`");
  }

  // `budget`: of the GPU for streamed weights, -1: what the engine was built with.
  std::unique_ptr<EngineChain> load(const Bundle& bundle, const std::string& folder, int64_t budget, const std::string& library,
                                    std::vector<PluginName> wanted) const {
    const std::string where = "bundle " + bundle.path(), root = inside(bundle.path(), folder, where);
    const auto listed = [&](const std::string& name) {  // whatever says how to load an engine is a file that the manifest hashes
      if (bundle.file(name) == nullptr) bundle.damaged("no file " + name + " in the manifest", "all files of the engine");
      return inside(bundle.path(), name, where);
    };
    for (const char* name : {"engine.json", "segments.json"}) {
      if (std::filesystem::exists(root + "/" + name)) listed(folder + "/" + name);
    }
    const Segments segments = read_segments(root);
    Plan plan;
    plan.about = read_about(root);
    plan.library = library, plan.wanted = std::move(wanted), plan.weight_budget = budget;
    if (!plan.about.weights.empty()) plan.weights = listed((std::filesystem::path(folder) / plan.about.weights).lexically_normal().string());
    if (budget >= 0 && !plan.about.streams) {
      throw Error(VDITC_ERROR_ARGUMENT, root, text("a weight budget of %lld bytes", static_cast<long long>(budget)), "an engine that streams its weights",
                  "leave it out, or build with --engine weight-streaming");
    }
    const Cuda::Current current(*cuda_);  // engines are destroyed with it too
    std::vector<std::unique_ptr<Engine>> engines;
    for (const std::string& name : segments.plans) {
      plan.path = listed(folder + "/" + name);
      engines.push_back(library_->load(plan, *cuda_));
    }
    return std::make_unique<EngineChain>(std::move(engines), segments.outputs, root);
  }
};

}  // namespace

std::unique_ptr<Backend> engine_backend(const Bundle& bundle, const std::string& target, int device, int64_t weight_budget) {
  for (const Target& one : bundle.targets()) {
    if (one.name != target || one.backend == engine_module()) continue;
    throw Error(VDITC_ERROR_UNSUPPORTED, "bundle " + bundle.path(), "target " + target + " of " + one.backend,
                std::string("a target of ") + engine_module() + ": this library was built with " + engine_headers(),
                one.backend == "onnxruntime" ? "use a target with engines, or `vditc run`" : "build libvditc with that product's folder in TENSORRT_ROOT");
  }
  return std::make_unique<EngineBackend>(bundle, target, device, weight_budget);
}


}  // namespace vditc::internal
