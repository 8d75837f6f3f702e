// In place of csrc/gather.cu and csrc/loss.cu in a build without CUDA; on_cuda() has refused the device before.
#include <stdexcept>

#include "device.h"
#include "gather.h"

namespace hdxray {
namespace {
[[noreturn]] void refuse(int device) {
    throw std::invalid_argument("device " + std::to_string(device) + ": " + why_no_cuda(device));
}
}  // namespace

void gather_cuda(const Patches& /*patches*/, void* /*rows*/, DType /*row_dtype*/, int device, uintptr_t /*stream*/) {
    refuse(device);
}

void scatter_cuda(const Patches& /*patches*/, const void* /*grad_rows*/, DType /*row_dtype*/, int device,
                  uintptr_t /*stream*/) {
    refuse(device);
}

}  // namespace hdxray
