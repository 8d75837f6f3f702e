// What the CUDA driver, run-time library and devices of this machine answer.
#include "gpu/cuda.h"
#include "gpu/device.h"

namespace hdxray {
namespace {

// Whether there is code for a device shows only when a kernel is looked up on it.
__global__ void probe() {}

// 13010 is 13.1
std::string version(int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

std::string why_no_cuda(int index) {
    int driver = 0, runtime = 0, count = 0;
    (void)cudaDriverGetVersion(&driver);  // leaves 0 where there is none
    (void)cudaRuntimeGetVersion(&runtime);
    const cudaError_t status = cudaGetDeviceCount(&count);
    (void)cudaGetLastError();
    if (driver == 0) return "no CUDA driver was found";
    if (status == cudaErrorInsufficientDriver) {
        return "the CUDA driver is for CUDA up to " + version(driver) + ", this build needs " + version(runtime);
    }
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) return "no CUDA device was found";
    if (status != cudaSuccess) {
        return std::string("the CUDA driver answered ") + cudaGetErrorName(status) + ", " + cudaGetErrorString(status);
    }
    if (index < 0 || index >= count) {
        return "there is no CUDA device " + std::to_string(index) + ", this process sees " + std::to_string(count);
    }
    try {
        const DeviceGuard guard(index);
        cudaFuncAttributes attributes;
        cuda_check(cudaFuncGetAttributes(&attributes, probe),
                   "this build (CUDA " HDXRAY_CUDA_NOTE ") has no code for it");
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

}  // namespace hdxray
