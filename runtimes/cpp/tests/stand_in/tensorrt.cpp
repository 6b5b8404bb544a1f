// libnvinfer.so for tests: engines are text files, and compute
//
//   output[i] = first input[i mod its size] / 2 + sum over the other inputs k = 1, 2, ... of 2^-k mean(input k)
//
// in float64, rounded once to the output's type, on the stand-in of the driver. A plan says
//
//   stand-in 10.3.0 sm_90,sm_80      version and GPUs that it loads on
//   plugin QLinear 1 vditc           what must be registered
//   input hidden_states f32 4        name, type, the greatest size of its first axis
//   output velocity f16              of the first input's shape, or with more: its axes, numbers or the first input's axis N as @N, @NxFACTOR or
//                                    @NxFACTORmLESS
//   scratch 4096                     bytes that it fills with rubbish, for every unit of the first input's first axis
//   host-code | refit                is loaded only if that is allowed; runs only if weights are put back
//   streams                          cannot be recorded
//   no-context | no-size             makes no context; does not say what scratch memory it takes
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "NvInferRuntime.h"
#include "NvOnnxParser.h"
#include "dtype.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace nvinfer1;
namespace in = vditc::internal;

struct Tensor {
  std::string name;
  DataType type;
  int32_t dtype;
  int64_t most = 0;                // of an input's first axis
  std::vector<std::string> axes;  // of an output
};

const std::map<std::string, std::pair<DataType, int32_t>> TYPES{
    {"f32", {DataType::kFLOAT, VDITC_F32}}, {"f16", {DataType::kHALF, VDITC_F16}}, {"bf16", {DataType::kBF16, VDITC_BF16}},
    {"i64", {DataType::kINT64, VDITC_I64}}, {"i32", {DataType::kINT32, VDITC_I32}}, {"fp8", {DataType::kFP8, 0}}};

template <class Function>
Function of_driver(const char* name) {
  static void* library = dlopen(std::getenv("VDITC_CUDA_DRIVER"), RTLD_NOW);
  return reinterpret_cast<Function>(dlsym(library, name));
}

void count(const char* name, int64_t value) { of_driver<void (*)(const char*, int64_t)>("stand_in_set")(name, value); }
void fault_unless(bool right) {
  if (!right) of_driver<void (*)()>("stand_in_fault")();
}
// Objects of TensorRT are made and destroyed with their GPU on the thread, children before their parents.
struct Child {
  explicit Child(int* siblings) : siblings(siblings) {
    ++*siblings;
    fault_unless(of_driver<int (*)()>("stand_in_current")());
  }
  ~Child() {
    --*siblings;
    fault_unless(of_driver<int (*)()>("stand_in_current")());
  }
  int* siblings;
};

struct About {
  std::vector<Tensor> inputs, outputs;
  size_t scratch = 0;
  bool context = true, refit = false, streams = false, sizeless = false;
};

class Context : public IExecutionContext {
 public:
  Context(const About& about, int* siblings) : about_(about), child_(siblings) {}

  bool setInputShape(char const* name, Dims const& dims) noexcept override {
    for (const Tensor& input : about_.inputs) {
      if (input.name != name) continue;
      if (dims.nbDims > 0 && dims.d[0] > input.most) return false;
      shapes_[name].assign(dims.d, dims.d + dims.nbDims);
      return true;
    }
    return false;
  }
  Dims getTensorShape(char const* name) const noexcept override {
    for (const Tensor& output : about_.outputs) {
      if (output.name == name) return dims_of(output, shapes_.at(about_.inputs[0].name));
    }
    return {};
  }
  static Dims dims_of(const Tensor& output, const in::Shape& first) {
    Dims made{};
    made.nbDims = static_cast<int32_t>(output.axes.empty() ? first.size() : output.axes.size());
    for (int32_t i = 0; i < made.nbDims; ++i) {
      const std::string axis = output.axes.empty() ? "@" + std::to_string(i) : output.axes[static_cast<size_t>(i)];
      int of = 0, factor = 1, less = 0;
      const bool scaled = std::sscanf(axis.c_str(), "@%dx%dm%d", &of, &factor, &less) > 0;
      made.d[i] = scaled ? first.at(static_cast<size_t>(of)) * factor - less : std::stoll(axis);
    }
    return made;
  }
  size_t updateDeviceMemorySizeForShapes() noexcept override {
    return about_.sizeless ? 0 : about_.scratch * static_cast<size_t>(shapes_.at(about_.inputs[0].name).at(0));
  }
  void setDeviceMemoryV2(void* memory, int64_t size) noexcept override { scratch_ = memory, scratch_bytes_ = static_cast<size_t>(size); }
  bool setTensorAddress(char const* name, void* data) noexcept override { return addresses_[name] = data, true; }

  bool enqueueV3(cudaStream_t stream) noexcept override {
    const size_t needs = updateDeviceMemorySizeForShapes();
    if (needs > scratch_bytes_) return false;
    std::function<void()> work = [about = about_, shapes = shapes_, addresses = addresses_, scratch = scratch_, needs] {
      if (needs) std::memset(scratch, 0xA5, needs);
      std::vector<double> first;
      double added = 0;
      for (size_t k = 0; k < about.inputs.size(); ++k) {
        const Tensor& input = about.inputs[k];
        std::vector<double> values(static_cast<size_t>(in::elements(shapes.at(input.name))));
        in::convert(addresses.at(input.name), input.dtype, values.data(), VDITC_F64, values.size());
        double sum = 0;
        for (const double value : values) sum += value;
        if (k) added += std::ldexp(sum / static_cast<double>(values.size()), -static_cast<int>(k));
        else first = values;
      }
      for (const Tensor& output : about.outputs) {
        size_t size = 1;
        const Dims dims = dims_of(output, shapes.at(about.inputs[0].name));
        for (int32_t i = 0; i < dims.nbDims; ++i) size *= static_cast<size_t>(dims.d[i]);
        std::vector<double> values(size);
        for (size_t i = 0; i < size; ++i) values[i] = first[i % first.size()] / 2 + added;
        in::convert(values.data(), VDITC_F64, addresses.at(output.name), output.dtype, size);
      }
    };
    if (about_.streams && of_driver<int (*)(cudaStream_t)>("cuStreamSynchronize")(stream) != 0) return fault_unless(false), false;
    return of_driver<int (*)(cudaStream_t, const std::function<void()>&)>("stand_in_launch")(stream, work) == 0;
  }

 private:
  About about_;
  Child child_;
  std::map<std::string, in::Shape> shapes_;
  std::map<std::string, void*> addresses_;
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
};

class Engine : public ICudaEngine {
 public:
  Engine(About about, int* siblings, ILogger& logger) : about(std::move(about)), child_(siblings), logger_(logger) {}
  ~Engine() override { fault_unless(contexts_ == 0); }
  About about;
  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(about.inputs.size() + about.outputs.size()); }
  char const* getIOTensorName(int32_t index) const noexcept override { return tensor(static_cast<size_t>(index)).name.c_str(); }
  DataType getTensorDataType(char const* name) const noexcept override { return tensor(index(name)).type; }
  TensorIOMode getTensorIOMode(char const* name) const noexcept override {
    return index(name) < about.inputs.size() ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
    if (!about.context) logger_.log(ILogger::Severity::kERROR, "Requested amount of GPU memory could not be allocated");
    return about.context && !about.refit && strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED ? new Context(about, &contexts_) : nullptr;
  }
  int64_t getStreamableWeightsSize() const noexcept override { return 1000; }
  int64_t getDeviceMemorySizeV2() const noexcept override { return static_cast<int64_t>(about.scratch); }
  bool setWeightStreamingBudgetV2(int64_t budget) noexcept override {
    fault_unless(contexts_ == 0);  // a context was made for another
    return count("budget", budget), budget != 13;
  }
  int64_t getWeightStreamingAutomaticBudget() const noexcept override { return 700; }

 private:
  Child child_;
  ILogger& logger_;
  int contexts_ = 0;
  const Tensor& tensor(size_t i) const { return i < about.inputs.size() ? about.inputs[i] : about.outputs[i - about.inputs.size()]; }
  size_t index(const std::string& name) const {
    size_t i = 0;
    while (tensor(i).name != name) ++i;
    return i;
  }
};

class Registry : public IPluginRegistry {
 public:
  std::set<std::string> known;
  PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept override {
    std::ifstream file(path);
    std::string line;
    of_driver<void (*)(const char*, int64_t)>("stand_in_add")("libraries", 1);
    if (!std::getline(file, line) || line != "stand-in plugins") return nullptr;
    while (std::getline(file, line)) known.insert(line);
    return this;
  }
  IPluginCreatorInterface* getCreator(AsciiChar const* name, AsciiChar const* version, AsciiChar const* space) noexcept override {
    static struct : IPluginCreatorInterface {
    } one;
    return known.count(std::string(name) + " " + version + " " + space) ? &one : nullptr;
  }
};

class Runtime : public IRuntime {
 public:
  explicit Runtime(ILogger& logger) : logger_(logger) {}
  ~Runtime() override { fault_unless(engines_ == 0); }
  void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code_ = allowed; }
  IPluginRegistry& getPluginRegistry() noexcept override { return registry_; }

  ICudaEngine* deserializeCudaEngine(void const* blob, size_t size) noexcept override {
    std::istringstream file(std::string(static_cast<const char*>(blob), size));
    std::string line, word, name, type;
    About about;
    const auto refuse = [&](const std::string& why) { return logger_.log(ILogger::Severity::kERROR, why.c_str()), nullptr; };
    const std::string here = "sm_" + std::to_string(of_driver<int64_t (*)(const char*)>("stand_in_get")("arch"));
    bool whole = false;
    while (std::getline(file, line)) {
      std::istringstream words(line);
      words >> word;
      if (word == "stand-in") {
        words >> name >> type;
        if (name != "10.3.0") return refuse("The engine plan file is of version " + name);
        if (type.find(here) == std::string::npos) return refuse("The engine was built for " + type);
        whole = true;
      } else if (word == "plugin") {
        if (const std::string wanted = line.substr(7); registry_.known.count(wanted) == 0) return refuse("no creator of " + wanted);
      } else if (word == "input" || word == "output") {
        words >> name >> type;
        Tensor tensor{name, TYPES.at(type).first, TYPES.at(type).second, 0, {}};
        if (word == "input") words >> tensor.most;
        while (word == "output" && words >> type) tensor.axes.push_back(type);
        (word == "input" ? about.inputs : about.outputs).push_back(tensor);
      } else if (word == "scratch") {
        words >> about.scratch;
      } else if (word == "host-code") {
        if (!host_code_) return refuse("host code is not allowed");
      } else if (word == "no-context") {
        about.context = false;
      } else if (word == "refit") {
        about.refit = true;
      } else if (word == "streams") {
        about.streams = true;
      } else if (word == "no-size") {
        about.sizeless = true;
      }
    }
    return whole ? new Engine(about, &engines_, logger_) : refuse("not an engine");
  }

 private:
  ILogger& logger_;
  Registry registry_;
  int engines_ = 0;
  bool host_code_ = false;
};

class Refitter : public IRefitter {
 public:
  explicit Refitter(Engine& engine) : engine_(engine) {}
  bool read = false, whole = true;
  int32_t getMissingWeights(int32_t, char const**) noexcept override { return whole ? 0 : 2; }
  bool refitCudaEngine() noexcept override { return engine_.about.refit = !read, read; }

 private:
  Engine& engine_;
};

class ParserRefitter : public nvonnxparser::IParserRefitter {
 public:
  explicit ParserRefitter(Refitter& refitter) : refitter_(refitter) {}
  bool refitFromFile(char const* path) noexcept override {
    std::ifstream file(path);
    std::string said;
    std::getline(file, said);
    refitter_.whole = said != "some weights";
    return refitter_.read = said == "weights" || said == "some weights";
  }

 private:
  Refitter& refitter_;
};

}  // namespace

EXPORT int32_t getInferLibVersion() {
  const char* own = std::getenv("STAND_IN_VERSION");
  return own ? std::atoi(own) : NV_TENSORRT_VERSION;
}
EXPORT void* createInferRuntime_INTERNAL(void* logger, int32_t version) {
  return version == NV_TENSORRT_VERSION ? new Runtime(*static_cast<ILogger*>(logger)) : nullptr;
}
EXPORT void* createInferRefitter_INTERNAL(void* engine, void*, int32_t) {
  return new Refitter(static_cast<Engine&>(*static_cast<ICudaEngine*>(engine)));
}
EXPORT void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void*, int) {
  return new ParserRefitter(static_cast<Refitter&>(*static_cast<IRefitter*>(refitter)));
}
