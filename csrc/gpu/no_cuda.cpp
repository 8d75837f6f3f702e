// In place of csrc/gpu/gather.cu and csrc/gpu/loss.cu in a build without CUDA; on_cuda() has refused the device before.
#include <stdexcept>

#include "common/loss.h"
#include "gpu/device.h"

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

void loss_forward_cuda(const Patches& /*patches*/, const void* /*pred*/, DType /*pred_dtype*/, bool /*norm_pix_loss*/,
                       float* /*loss*/, float* /*patch_loss*/, float* /*mean*/, float* /*rstd*/, double* /*partials*/,
                       int device, uintptr_t /*stream*/) {
    refuse(device);
}

void loss_backward_cuda(const Patches& /*patches*/, const void* /*pred*/, DType /*pred_dtype*/, const float* /*mean*/,
                        const float* /*rstd*/, const float* /*grad_loss*/, void* /*grad_pred*/, int device,
                        uintptr_t /*stream*/) {
    refuse(device);
}

}  // namespace hdxray
