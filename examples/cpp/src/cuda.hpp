// What the engine needs of CUDA: errors as exceptions, a stream, memory.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <string>

#include "error.hpp"

namespace rism {

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw Error(std::string(what) + " failed: " + cudaGetErrorString(status));
    }
}

class Stream {
public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a CUDA stream"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    operator cudaStream_t() const { return stream_; }  // NOLINT: it stands for one

private:
    cudaStream_t stream_ = nullptr;
};

/// Device memory that only grows.
class Buffer {
public:
    Buffer() = default;
    ~Buffer() { cudaFree(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* reserve(std::size_t bytes) {
        bytes = std::max<std::size_t>(bytes, 1);
        if (bytes > size_) {
            cudaFree(data_);
            data_ = nullptr;
            size_ = 0;
            check(cudaMalloc(&data_, bytes), "device memory");
            size_ = bytes;
        }
        return data_;
    }

private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace rism
