// The names of TensorRT that the example calls, around one network: an image of (1, 3, h, w) to
// (1, h / 8 * w / 8, 3), each value the bytes of scratch memory that the run was given.
//
// A "plan" is a line: bytes of memory at most, bytes a pixel, and how many runs know their size.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <sstream>
#include <string>

namespace nvinfer1 {

enum class DataType { kFLOAT, kHALF, kBF16, kFP8, kINT64, kINT32, kBOOL };
enum class TensorIOMode { kNONE, kINPUT, kOUTPUT };
enum class OptProfileSelector { kMIN, kOPT, kMAX };
enum class ExecutionContextAllocationStrategy { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };

struct Dims {
    std::int32_t nbDims;
    std::int64_t d[8];
};

class ILogger {
public:
    enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING };
    virtual ~ILogger() = default;
    virtual void log(Severity severity, const char* message) noexcept = 0;
};

class IExecutionContext {
public:
    IExecutionContext(ILogger& logger, std::int64_t bytes, int known)
        : logger_(logger), bytes_(bytes), known_(known) {}
    bool setInputShape(const char*, const Dims& dims) {
        image_ = dims;
        return true;
    }
    bool setTensorAddress(const char* name, void* data) {
        (std::string(name) == "image" ? input_ : output_) = static_cast<float*>(data);
        return true;
    }
    Dims getTensorShape(const char*) const { return {3, {1, image_.d[2] * image_.d[3] / 64, 3}}; }
    std::size_t updateDeviceMemorySizeForShapes() {
        if (known_-- <= 0) {
            logger_.log(ILogger::Severity::kERROR, "no shapes");
            return 0;
        }
        return static_cast<std::size_t>(needed());
    }
    void setDeviceMemoryV2(void* memory, std::int64_t size) {
        memory_ = memory;
        given_ = size;
    }
    bool enqueueV3(cudaStream_t) {
        if (needed() > 0 && (memory_ == nullptr || given_ < needed())) return false;
        if (needed() > 0) std::memset(memory_, 1, static_cast<std::size_t>(given_));
        const Dims dims = getTensorShape("");
        for (std::int64_t i = 0; i < dims.d[1] * 3; ++i) output_[i] = static_cast<float>(given_);
        return input_ != nullptr;
    }

private:
    std::int64_t needed() const { return bytes_ * image_.d[2] * image_.d[3]; }

    ILogger& logger_;
    std::int64_t bytes_;
    int known_;
    Dims image_{};
    float *input_ = nullptr, *output_ = nullptr;
    void* memory_ = nullptr;
    std::int64_t given_ = 0;
};

class ICudaEngine {
public:
    ICudaEngine(ILogger& logger, const std::string& plan) : logger_(logger) {
        std::istringstream(plan) >> most_ >> bytes_ >> known_;
    }
    IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy how = ExecutionContextAllocationStrategy::kSTATIC) {
        if (how == ExecutionContextAllocationStrategy::kSTATIC) {
            void* memory = nullptr;  // of the largest shape, whatever is run
            cudaMalloc(&memory, static_cast<std::size_t>(most_));
            cudaFree(memory);
        }
        return new IExecutionContext(logger_, bytes_, known_);
    }
    std::int64_t getDeviceMemorySizeV2() const { return most_; }
    std::int64_t getStreamableWeightsSize() const { return 1000; }
    bool setWeightStreamingBudgetV2(std::int64_t bytes) {
        if (known_ != 7) return true;
        logger_.log(ILogger::Severity::kERROR, "no room for 1000 bytes");
        return bytes != 1000;
    }
    std::int32_t getNbIOTensors() const { return 2; }
    const char* getIOTensorName(std::int32_t index) const { return index == 0 ? "image" : "clean"; }
    TensorIOMode getTensorIOMode(const char* name) const {
        return std::string(name) == "image" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(const char*) const { return DataType::kFLOAT; }
    Dims getTensorShape(const char*) const { return {4, {1, 3, -1, -1}}; }
    Dims getProfileShape(const char*, std::int32_t, OptProfileSelector end) const {
        const std::int64_t side = end == OptProfileSelector::kMIN ? 8 : 256;
        return {4, {1, 3, side, side}};
    }

private:
    ILogger& logger_;
    std::int64_t most_ = 0, bytes_ = 0;
    int known_ = 0;
};

class IRuntime {
public:
    explicit IRuntime(ILogger& logger) : logger_(logger) {}
    ICudaEngine* deserializeCudaEngine(const void* data, std::size_t size) {
        return new ICudaEngine(logger_, std::string(static_cast<const char*>(data), size));
    }

private:
    ILogger& logger_;
};

class IRefitter {
public:
    bool refitCudaEngine() { return true; }
};

inline IRuntime* createInferRuntime(ILogger& logger) { return new IRuntime(logger); }
inline IRefitter* createInferRefitter(ICudaEngine&, ILogger&) { return new IRefitter; }

}  // namespace nvinfer1

inline std::int32_t getInferLibMajorVersion() { return 10; }
inline std::int32_t getInferLibMinorVersion() { return 14; }
inline std::int32_t getInferLibPatchVersion() { return 1; }
inline std::int32_t getInferLibBuildVersion() { return 48; }
