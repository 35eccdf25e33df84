// Graphs of the bundle in TensorRT or TensorRT for RTX: the plans that `rism build` made.
//
// Plans are used as their builder wrote them. Stripped ones get their weights from the bundle
// by the ONNX file that the manifest names for it; to those that take their weights as inputs
// the bundle's own are bound.

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda.hpp"
#include "engine.hpp"
#include "error.hpp"

namespace rism {
namespace {

#ifdef RISM_TENSORRT_RTX
constexpr const char* target = "tensorrt-rtx";
#else
constexpr const char* target = "tensorrt";
#endif

#if defined(_WIN32)
constexpr const char* platform = "windows-x86_64";
#elif defined(__aarch64__)
constexpr const char* platform = "linux-aarch64";
#else
constexpr const char* platform = "linux-x86_64";
#endif

constexpr std::uint64_t plan_limit = std::uint64_t{1} << 40U;

/// Keeps what the library last complained of, for the message of an Error.
class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        try {
            const std::lock_guard<std::mutex> guard(lock_);
            last_ = message;
        } catch (...) {  // out of memory: the message is lost, its error is not
        }
    }
    std::string last() {
        const std::lock_guard<std::mutex> guard(lock_);
        return last_.empty() ? "no reason given" : last_;
    }

private:
    std::mutex lock_;
    std::string last_;
};

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) {
        dims.d[i] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(shape[i]);
    }
    return dims;
}

std::string text(const nvinfer1::Dims& dims) {
    std::string list;
    for (std::int32_t i = 0; i < dims.nbDims; ++i) {
        list += (i == 0 ? "" : " x ") + std::to_string(dims.d[i]);
    }
    return list;
}

/// Weights of the bundle, on the device once for all plans that take them.
class Weights {
public:
    explicit Weights(Bundle& bundle) : bundle_(bundle) {}

    void* place(const BoundWeight& weight) {
        const auto [found, is_new] =
            there_.try_emplace({weight.file, weight.offset, weight.length});
        void* to = found->second.reserve(weight.length);
        if (is_new) {
            const std::vector<char> bytes = bundle_.read(weight);
            check(cudaMemcpy(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice),
                  "copying a weight");
        }
        return to;
    }

private:
    Bundle& bundle_;
    std::map<std::tuple<std::string, std::uint64_t, std::uint64_t>, Buffer> there_;
};

/// The library's name of a weight's type, which `Bundle::weights` has checked.
nvinfer1::DataType type_of(const std::string& dtype) {
    if (dtype == "float16") return nvinfer1::DataType::kHALF;
    if (dtype == "bfloat16") return nvinfer1::DataType::kBF16;
    if (dtype == "float8_e4m3fn") return nvinfer1::DataType::kFP8;
    if (dtype == "int64") return nvinfer1::DataType::kINT64;
    if (dtype == "int32") return nvinfer1::DataType::kINT32;
    if (dtype == "bool") return nvinfer1::DataType::kBOOL;
    return nvinfer1::DataType::kFLOAT;
}

class TensorRtGraph : public Graph {
public:
    TensorRtGraph(const GraphSpec& spec, std::string file, cudaStream_t stream, Logger& logger,
                  Buffer& scratch, std::unique_ptr<nvinfer1::ICudaEngine> engine)
        : spec_(spec),
          file_(std::move(file)),
          stream_(stream),
          logger_(logger),
          scratch_(scratch),
          engine_(std::move(engine)),
          context_(engine_->createExecutionContext(
              nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED)) {
        if (!context_) throw Error("'" + file_ + "' has no context: " + logger_.last());
        for (const auto* side : {&spec_.inputs, &spec_.outputs}) {
            for (const auto& item : *side) check_type(item.second);
        }
    }

    /// Gives the plan the weights that it takes: all of its inputs but the graph's.
    void bind(const std::map<std::string, BoundWeight>& weights, Weights& device) {
        std::set<std::string> open;
        for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) open.insert(name);
        }
        for (const auto& item : spec_.inputs) open.erase(item.second.name);
        for (const auto& [name, weight] : weights) {
            const bool takes = open.erase(name) > 0;
            const nvinfer1::Dims dims = engine_->getTensorShape(name.c_str());
            if (!takes || engine_->getTensorDataType(name.c_str()) != type_of(weight.dtype) ||
                text(dims) != text(dims_of(weight.shape))) {
                throw Error("'" + file_ + "' takes no weight '" + name + "' of " + weight.dtype +
                            " " + text(dims_of(weight.shape)) + ", which its list has: build it again");
            }
            bind(name, device.place(weight));
        }
        if (!open.empty()) {
            throw Error("'" + file_ + "' takes the weight '" + *open.begin() +
                        "', which its list has not: build it again");
        }
    }

    Tensors run(const Tensors& inputs) override {
        for (const auto& [name, spec] : spec_.inputs) feed(spec.name, inputs.at(name));
        give_scratch();
        std::vector<std::pair<std::string, Tensor>> outputs;
        for (const auto& [name, spec] : spec_.outputs) outputs.emplace_back(name, output(spec));
        if (!context_->enqueueV3(stream_)) {
            throw Error("'" + file_ + "' failed: " + logger_.last());
        }
        Tensors results;
        for (auto& [name, tensor] : outputs) {
            void* from = buffers_[spec_.outputs.at(name).name].reserve(0);
            std::visit(
                [&](auto& list) {
                    check(cudaMemcpyAsync(list.data(), from, list.size() * sizeof(list[0]),
                                          cudaMemcpyDeviceToHost, stream_),
                          "copying a result");
                },
                tensor.values);
            results.emplace(name, std::move(tensor));
        }
        check(cudaStreamSynchronize(stream_), "running a graph");
        return results;
    }

    std::int64_t smallest_batch(const std::string& input) const override {
        const auto found = spec_.inputs.find(input);
        if (found == spec_.inputs.end()) return 1;
        const nvinfer1::Dims least = engine_->getProfileShape(
            found->second.name.c_str(), 0, nvinfer1::OptProfileSelector::kMIN);
        return least.nbDims > 0 ? least.d[0] : 1;
    }

private:
    void check_type(const TensorSpec& spec) {
        const nvinfer1::DataType type = engine_->getTensorDataType(spec.name.c_str());
        const bool same = (spec.dtype == "float32" && type == nvinfer1::DataType::kFLOAT) ||
                          (spec.dtype == "int64" && type == nvinfer1::DataType::kINT64);
        if (engine_->getTensorIOMode(spec.name.c_str()) == nvinfer1::TensorIOMode::kNONE || !same) {
            throw Error("'" + file_ + "' has no '" + spec.name + "' of type " + spec.dtype +
                        ", which its graph has: build it again");
        }
    }

    void feed(const std::string& name, const Tensor& tensor) {
        const nvinfer1::Dims dims = dims_of(tensor.shape);
        if (!context_->setInputShape(name.c_str(), dims)) {
            const auto limit = [&](nvinfer1::OptProfileSelector end) {
                return text(engine_->getProfileShape(name.c_str(), 0, end));
            };
            throw Error("'" + file_ + "' takes '" + name + "' of " +
                        limit(nvinfer1::OptProfileSelector::kMIN) + " to " +
                        limit(nvinfer1::OptProfileSelector::kMAX) + ", not of " + text(dims) +
                        ": build it with other --shapes");
        }
        std::visit(
            [&](const auto& list) {
                const std::size_t bytes = list.size() * sizeof(list[0]);
                void* to = buffers_[name].reserve(bytes);
                check(cudaMemcpyAsync(to, list.data(), bytes, cudaMemcpyHostToDevice, stream_),
                      "copying an input");
                bind(name, to);
            },
            tensor.values);
    }

    /// Memory for these shapes: at the profile's largest it can be ten times as much.
    void give_scratch() {
        const std::size_t bytes = context_->updateDeviceMemorySizeForShapes();
        if (bytes > 0) {
            context_->setDeviceMemoryV2(scratch_.reserve(bytes), static_cast<std::int64_t>(bytes));
        } else if (engine_->getDeviceMemorySizeV2() > 0) {  // 0 is its word for an error, too
            throw Error("'" + file_ + "' does not say how much memory these shapes take: " +
                        logger_.last());
        }
    }

    /// A host tensor of the output's shape, which is known once all inputs have theirs.
    Tensor output(const TensorSpec& spec) {
        const nvinfer1::Dims dims = context_->getTensorShape(spec.name.c_str());
        Tensor tensor;
        std::size_t elements = 1;
        for (std::int32_t i = 0; i < dims.nbDims; ++i) {
            if (dims.d[i] < 0) throw Error("'" + file_ + "' leaves the size of '" + spec.name + "' open");
            tensor.shape.push_back(dims.d[i]);
            elements *= static_cast<std::size_t>(dims.d[i]);
        }
        std::size_t size = sizeof(float);
        if (spec.dtype == "int64") {
            tensor.values = std::vector<std::int64_t>(elements);
            size = sizeof(std::int64_t);
        } else {
            tensor.values = std::vector<float>(elements);
        }
        bind(spec.name, buffers_[spec.name].reserve(elements * size));
        return tensor;
    }

    void bind(const std::string& name, void* data) {
        if (!context_->setTensorAddress(name.c_str(), data)) {
            throw Error("'" + file_ + "' refuses memory for '" + name + "': " + logger_.last());
        }
    }

    const GraphSpec& spec_;
    std::string file_;
    cudaStream_t stream_;
    Logger& logger_;
    Buffer& scratch_;
    std::map<std::string, Buffer> buffers_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;  // goes before its engine
};

/// Such as 10.14.1.48, as the manifest has it.
std::string library_version() {
    return std::to_string(getInferLibMajorVersion()) + "." +
           std::to_string(getInferLibMinorVersion()) + "." +
           std::to_string(getInferLibPatchVersion()) + "." +
           std::to_string(getInferLibBuildVersion());
}

/// Whether plans for a platform run on this one.
bool serves(const std::string& name) {
    if (name == platform) return true;
#ifdef RISM_TENSORRT_RTX
    // Its plans know no operating system, only the processor.
    const auto portable = [](const std::string& one) {
        return one == "linux-x86_64" || one == "windows-x86_64";
    };
    return portable(name) && portable(platform);
#else
    return false;
#endif
}

std::string compute_capability() {
    int device = 0, major = 0, minor = 0;
    if (const cudaError_t status = cudaGetDevice(&device); status != cudaSuccess) {
        throw Error(std::string(target) + " " + library_version() + " finds no GPU to run on (" +
                    cudaGetErrorString(status) + "): install or update NVIDIA's driver, see nvidia-smi");
    }
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "the GPU");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "the GPU");
    return std::to_string(major) + "." + std::to_string(minor);
}

/// Why an engine cannot be used here; empty if it can. Asks for the GPU only if all else fits.
std::string misfit(const EngineVariant& engine) {
    if (engine.target != target) return "is for " + engine.target + ", not " + target;
    if (!serves(engine.platform)) return "is for " + engine.platform + ", not " + platform;
    if (engine.version != library_version()) {
        return "was built by " + engine.version + ", the library here is " + library_version();
    }
    const std::string capability = compute_capability();
    const auto& known = engine.compute_capabilities;
    if (std::find(known.begin(), known.end(), capability) == known.end()) {
        std::string list;
        for (const auto& one : known) list += (list.empty() ? "" : ", ") + one;
        return "is for compute capability " + list + ", this GPU has " + capability;
    }
    return "";
}

/// The engine of that name, or the first that fits.
const EngineVariant& choose(const Bundle& bundle, const std::string& wanted) {
    std::string why;
    for (const EngineVariant& engine : bundle.engines) {
        if (!wanted.empty() && engine.name != wanted) continue;
        const std::string reason = misfit(engine);
        if (reason.empty()) return engine;
        why += "; '" + engine.name + "' " + reason;
    }
    throw Error("the bundle has no engine " +
                (wanted.empty() ? "for this machine" : "'" + wanted + "' that fits") + why +
                ": build one here with `rism build BUNDLE --target " + target + "`");
}

class TensorRtEngine : public Engine {
public:
    TensorRtEngine(Bundle& bundle, const std::string& wanted)
        : bundle_(bundle), variant_(choose(bundle, wanted)), weights_(bundle) {
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        if (!runtime_) throw Error(std::string(target) + " cannot start: " + logger_.last());
    }

    bool has(const std::string& name) const override {
        return bundle_.graphs.count(name) > 0 && variant_.graphs.count(name) > 0;
    }

    std::unique_ptr<Graph> load(const std::string& name) override {
        const auto found = variant_.graphs.find(name);
        if (found == variant_.graphs.end()) {
            throw Error("engine '" + variant_.name + "' has no graph '" + name +
                        "': build it with `rism build BUNDLE --target " + target + "`");
        }
        const PlanSpec& plan = found->second;
        std::unique_ptr<nvinfer1::ICudaEngine> engine;
        {
            const std::vector<char> bytes = bundle_.read(plan.file, plan_limit);
            engine.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
        }
        if (!engine) {
            throw Error("'" + plan.file + "' cannot be loaded by " + target + " " +
                        library_version() + " (" + logger_.last() + "): copy the bundle again, or "
                        "build it here with `rism build BUNDLE --target " + target + "`");
        }
        if (variant_.stripped) refit(*engine, plan);
        // All on the GPU: this reader has no budget of memory.
        if (variant_.streamed &&
            !engine->setWeightStreamingBudgetV2(engine->getStreamableWeightsSize())) {
            throw Error("'" + plan.file + "' does not keep its weights on the GPU (" +
                        logger_.last() + "): build it without --stream-weights");
        }
        auto graph = std::make_unique<TensorRtGraph>(bundle_.graph(name), plan.file, stream_,
                                                     logger_, scratch_, std::move(engine));
        graph->bind(plan.weights.empty() ? std::map<std::string, BoundWeight>{}
                                         : bundle_.weights(plan.weights),
                    weights_);
        return graph;
    }

    std::string describe() const override {
        return variant_.name + ", " + target + " " + library_version();
    }

private:
    void refit(nvinfer1::ICudaEngine& engine, const PlanSpec& plan) {
        const std::string file = bundle_.file(plan.refit).string();
        bundle_.verify_weights();
        const std::unique_ptr<nvinfer1::IRefitter> refitter(
            nvinfer1::createInferRefitter(engine, logger_));
        const std::unique_ptr<nvonnxparser::IParserRefitter> parser(
            refitter ? nvonnxparser::createParserRefitter(*refitter, logger_) : nullptr);
        if (!parser || !parser->refitFromFile(file.c_str()) || !refitter->refitCudaEngine()) {
            throw Error("'" + plan.file + "' cannot be given its weights: " + logger_.last());
        }
    }

    Bundle& bundle_;
    const EngineVariant& variant_;
    Weights weights_;
    Buffer scratch_;  // of whichever graph runs: one stream runs them one after another
    Logger logger_;  // outlives all that logs to it
    Stream stream_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

}  // namespace

std::unique_ptr<Engine> make_engine(Bundle& bundle, const std::string& variant) {
    return std::make_unique<TensorRtEngine>(bundle, variant);
}

}  // namespace rism
