// Loads engines: TensorRT's library, the plugin library, the plan, weights that were stripped or are streamed.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "files.h"
#include "status.h"
#include "tensorrt/trt_engine.h"

namespace vditc::internal {
namespace {

using RuntimeMaker = void* (*)(void* logger, int32_t version);
using RefitterMaker = void* (*)(void* engine, void* logger, int32_t version);
using ParserRefitterMaker = void* (*)(void* refitter, void* logger, int version);

[[noreturn]] void missing(const std::string& found, const std::string& wanted) {
  throw Error(VDITC_ERROR_ENGINE, "engines", found, wanted, "install it, or name its file in VDITC_TENSORRT_LIBRARY");
}

template <class Function>
Function function_of(void* library, const char* name, const std::string& path) {
  void* found = dlsym(library, name);
  if (found == nullptr) missing("no " + std::string(name) + " in " + path, product::HEADERS);
  return reinterpret_cast<Function>(found);
}

class Trt : public EngineLibrary {
 public:
  Trt() {
    const char* own = std::getenv("VDITC_TENSORRT_LIBRARY");
    path_ = own != nullptr && *own != '\0' ? own : product::RUNTIME;
    library_ = dlopen(path_.c_str(), RTLD_NOW);  // never closed: it does not take that well
    if (library_ == nullptr) {
      const char* why = dlerror();
      missing(why == nullptr ? path_ + ", which does not load" : why, product::HEADERS);
    }
    const int32_t version = function_of<int32_t (*)()>(library_, "getInferLibVersion", path_)();
    version_ = text("%s %d.%d.%d", product::MODULE, version / 10000, version / 100 % 100, version % 100);
    if (version / 10000 != product::MAJOR) {  // its objects lie otherwise in memory: any call would be a crash
      throw Error(VDITC_ERROR_ENGINE, path_, version_, std::string("a library of the major version of ") + product::HEADERS + ", which this one was built with",
                  "install that, or build libvditc with the headers of the other");
    }
    make_runtime_ = function_of<RuntimeMaker>(library_, "createInferRuntime_INTERNAL", path_);
  }

  std::unique_ptr<Engine> load(const Plan& plan, const Cuda& cuda) override {
    const About& about = plan.about;
    logger().forget();
    std::shared_ptr<nvinfer1::IRuntime> runtime(static_cast<nvinfer1::IRuntime*>(make_runtime_(&logger(), NV_TENSORRT_VERSION)));
    if (!runtime) missing(version_ + ", which makes no runtime" + logger().words(), std::string(product::HEADERS) + ", which this library was built with");
    if (about.host_code) runtime->setEngineHostCodeAllowed(true);
    if (!plan.library.empty() && !about.embedded) load_plugins(*runtime, plan);
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    {
      const Mapped file(plan.path, "an engine", "build it on the device, or copy the whole bundle");
      engine.reset(runtime->deserializeCudaEngine(file.data(), file.size()));
    }
    if (!engine) {
      throw Error(VDITC_ERROR_ENGINE, plan.path, version_ + " on " + cuda.arch() + ", which does not load it" + logger().words(),
                  about.known ? "what it was built with: " + about.words() : "an engine of " + version_ + " for " + cuda.arch(),
                  "build it again here, or install that version");
    }
    if (!plan.weights.empty()) refit(*engine, plan);
    if (about.streams) stream_weights(*engine, plan);
    return std::make_unique<TrtEngine>(std::move(runtime), std::move(engine), logger(), plan.path, about.streams);
  }

 private:
  std::string path_, version_;
  void* library_ = nullptr;
  RuntimeMaker make_runtime_ = nullptr;

  static Logger& logger() {
    static Logger* one = new Logger;  // TensorRT keeps the first one as long as the process lives
    return *one;
  }

  void load_plugins(nvinfer1::IRuntime& runtime, const Plan& plan) const {
    nvinfer1::IPluginRegistry& registry = runtime.getPluginRegistry();
    const auto lacking = [&] {
      std::string made;
      for (const PluginName& one : plan.wanted) {
        if (registry.getCreator(one.name.c_str(), one.version.c_str(), one.space.c_str()) != nullptr) continue;
        made += (made.empty() ? "" : ", ") + one.space + "." + one.name + " version " + one.version;
      }
      return made;
    };
    std::string wanted = lacking();  // a host may have loaded them
    if (wanted.empty()) return;
    const bool loaded = std::filesystem::is_regular_file(plan.library) && registry.loadLibrary(plan.library.c_str()) != nullptr;
    if (loaded && (wanted = lacking()).empty()) return;
    throw Error(VDITC_ERROR_PLUGIN, plan.library + ", " + version_, loaded ? "no " + wanted + " in it" : "a library that does not load" + logger().words(),
                "the plugins " + wanted, "build it for this machine: vditc plugins build");
  }

  void stream_weights(nvinfer1::ICudaEngine& engine, const Plan& plan) const {
    const int64_t asked = plan.weight_budget >= 0 ? plan.weight_budget : plan.about.budget;
    const int64_t budget = asked < 0 ? engine.getWeightStreamingAutomaticBudget() : std::min(asked, engine.getStreamableWeightsSize());
    if (engine.setWeightStreamingBudgetV2(budget)) return;
    throw Error(VDITC_ERROR_DEVICE_MEMORY, plan.path, text("a budget of %lld bytes for weights that it does not take", static_cast<long long>(budget)) + logger().words(),
                "free memory on the GPU", "free some of it, or give a smaller weight budget");
  }

  // Puts the weights of the lowered graph back into an engine that was built without them.
  void refit(nvinfer1::ICudaEngine& engine, const Plan& plan) const {
#if defined(VDITC_REFITS)
    const auto trouble = [&](const std::string& found) {
      return Error(VDITC_ERROR_ENGINE, plan.path, found + logger().words(), "the engine's weights, from " + plan.weights,
                   "copy the whole bundle, or build the engine again");
    };
    if (!std::filesystem::is_regular_file(plan.weights)) throw trouble("no such file");
    void* parser = dlopen((std::filesystem::path(path_).parent_path() / product::PARSER).c_str(), RTLD_NOW);  // beside the other, in wheels
    if (parser == nullptr) parser = dlopen(product::PARSER, RTLD_NOW);
    if (parser == nullptr) missing(std::string("no ") + product::PARSER, "the parser, which reads weights of an engine that has none");
    const auto make_refitter = function_of<RefitterMaker>(library_, "createInferRefitter_INTERNAL", path_);
    const auto make_reader = function_of<ParserRefitterMaker>(parser, "createNvOnnxParserRefitter_INTERNAL", product::PARSER);
    const std::unique_ptr<nvinfer1::IRefitter> refitter(static_cast<nvinfer1::IRefitter*>(make_refitter(&engine, &logger(), NV_TENSORRT_VERSION)));
    if (!refitter) throw trouble("an engine that cannot be refitted");
    const std::unique_ptr<nvonnxparser::IParserRefitter> reader(
        static_cast<nvonnxparser::IParserRefitter*>(make_reader(refitter.get(), &logger(), NV_ONNX_PARSER_VERSION)));
    if (!reader || !reader->refitFromFile(plan.weights.c_str())) throw trouble("a graph that does not fit");
    if (const int32_t lacking = refitter->getMissingWeights(0, nullptr)) throw trouble(text("a graph that lacks %d of them", lacking));
    if (!refitter->refitCudaEngine()) throw trouble("weights that it does not take");
#else
    (void)engine;
    throw Error(VDITC_ERROR_UNSUPPORTED, plan.path, "an engine without weights", "a library that was built with NvOnnxParser.h",
                "build libvditc with all headers of TensorRT in TENSORRT_ROOT, or the engine without strip-weights");
#endif
  }
};

}  // namespace

std::shared_ptr<EngineLibrary> engine_library() { return std::make_shared<Trt>(); }
const char* engine_module() { return product::MODULE; }
std::string engine_headers() { return product::HEADERS; }

}  // namespace vditc::internal
