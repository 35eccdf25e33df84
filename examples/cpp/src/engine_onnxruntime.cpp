// Graphs of the bundle in ONNX Runtime, on the CPU.
//
// Another execution provider is one call on the session options; name it yourself, and let
// it fail where it is missing: what falls back silently computes on the CPU for years.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <numeric>

#include "engine.hpp"
#include "error.hpp"

namespace rism {
namespace {

template <typename T>
Ort::Value view(const std::vector<T>& values, const std::vector<std::int64_t>& shape) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    // ONNX Runtime takes inputs by a pointer that is not const, and does not write to them.
    return Ort::Value::CreateTensor<T>(memory, const_cast<T*>(values.data()), values.size(),
                                       shape.data(), shape.size());
}

template <typename T>
std::vector<T> copy(const Ort::Value& value) {
    const T* data = value.GetTensorData<T>();
    return {data, data + value.GetTensorTypeAndShapeInfo().GetElementCount()};
}

// Since 1.29 ONNX Runtime sends Microsoft what it runs, unless this is set before it starts. What
// you set yourself stays.
Ort::Env silent_env() {
#ifdef _WIN32
    if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) {
        _putenv_s("ORT_DISABLE_TELEMETRY", "1");
    }
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
    return Ort::Env{ORT_LOGGING_LEVEL_FATAL, "rism"};  // errors are thrown, once
}

class OnnxGraph : public Graph {
public:
    OnnxGraph(const Ort::Env& env, const std::string& file, const GraphSpec& spec)
        : spec_(spec), session_(env, file.c_str(), Ort::SessionOptions{}) {}

    Tensors run(const Tensors& inputs) override {
        std::vector<Ort::Value> given;
        std::vector<const char*> takes, gives;
        for (const auto& [name, tensor] : inputs) {
            const auto spec = spec_.inputs.find(name);
            if (spec == spec_.inputs.end()) continue;
            takes.push_back(spec->second.name.c_str());
            given.push_back(std::visit(
                [&, &shape = tensor.shape](const auto& list) { return view(list, shape); },
                tensor.values));
        }
        for (const auto& item : spec_.outputs) gives.push_back(item.second.name.c_str());
        std::vector<Ort::Value> found;
        try {
            found = session_.Run(Ort::RunOptions{}, takes.data(), given.data(), given.size(),
                                 gives.data(), gives.size());
        } catch (const Ort::Exception& problem) {
            throw Error("'" + spec_.file + "' failed: " + problem.what());
        }
        Tensors outputs;
        auto value = found.begin();
        for (const auto& item : spec_.outputs) {
            const auto info = value->GetTensorTypeAndShapeInfo();
            Tensor tensor{info.GetShape(), {}};
            if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
                tensor.values = copy<float>(*value);
            } else if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
                tensor.values = copy<std::int64_t>(*value);
            } else {
                throw Error("'" + spec_.file + "' gave '" + item.first +
                            "' of another type than its manifest lists: export the bundle again");
            }
            outputs.emplace(item.first, std::move(tensor));
            ++value;
        }
        return outputs;
    }

private:
    const GraphSpec& spec_;
    Ort::Session session_;
};

class OnnxEngine : public Engine {
public:
    explicit OnnxEngine(Bundle& bundle) : bundle_(bundle) {
        if (bundle.precision == "bfloat16") {
            throw Error("the bundle computes in bfloat16, which ONNX Runtime does on CUDA only: "
                        "export with --precision fp32, or build this program with TensorRT");
        }
    }

    bool has(const std::string& name) const override { return bundle_.graphs.count(name) > 0; }

    std::unique_ptr<Graph> load(const std::string& name) override {
        const GraphSpec& spec = bundle_.graph(name);
        const std::string file = bundle_.file(spec.file).string();
        bundle_.verify_weights();  // a graph names its weights itself
        try {
            return std::make_unique<OnnxGraph>(env_, file, spec);
        } catch (const Ort::Exception& problem) {
            throw Error("'" + spec.file + "' cannot be loaded: " + problem.what());
        }
    }

    std::string describe() const override {
        return std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() + ", CPU";
    }

private:
    Bundle& bundle_;
    Ort::Env env_ = silent_env();
};

}  // namespace

std::unique_ptr<Engine> make_engine(Bundle& bundle, const std::string& variant) {
    if (!variant.empty()) {
        throw Error("this program runs ONNX graphs and takes no --engine: build it with "
                    "-DRISM_ENGINE=tensorrt for that");
    }
    return std::make_unique<OnnxEngine>(bundle);
}

}  // namespace rism
