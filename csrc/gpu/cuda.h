// CUDA calls that are always checked, and the guard that makes a device current for one call. For .cu files only: what
// the other files call is declared in headers that know nothing of CUDA, with the stream as an integer.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace hdxray {

// Throws std::runtime_error("<what>: <name of the error>, <its text>") unless `status` is success.
inline void cuda_check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // an error that does not stick must not surface in a later call
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

// To be called after every <<<>>>: bad launch arguments and missing kernel images show here, at no cost.
inline void check_launch(const char* kernel) {
    cuda_check(cudaGetLastError(), kernel);
}

// Makes `device` current while it lives, then the one that was current before. Several GPUs in one process work because
// of this: a launch goes to the current device, and the stream must belong to it.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        cuda_check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) {
            cuda_check(cudaSetDevice(device), "cudaSetDevice");
            changed_ = true;
        }
    }
    ~DeviceGuard() {
        if (changed_) (void)cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

inline cudaStream_t stream_of(uintptr_t stream) {
    return reinterpret_cast<cudaStream_t>(stream);
}

constexpr int kWarpSize = 32;

}  // namespace hdxray
