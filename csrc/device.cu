#include "cuda.h"
#include "device.h"

namespace hdxray {
namespace {

// Whether there is code for a device shows only when a kernel is looked up on it.
__global__ void probe() {}

}  // namespace

std::string why_no_cuda(int index) {
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
        (void)cudaGetLastError();
        return std::string("no usable CUDA device or driver was found (") + cudaGetErrorString(status) + ")";
    }
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
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
