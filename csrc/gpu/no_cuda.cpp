// In place of the .cu files in a build without CUDA. Apart from why_no_cuda nothing in here is reached: on_cuda() has
// refused the device before.
#include <stdexcept>
#include <string>

#include "common/gather.h"
#include "common/loss.h"
#include "common/mask_plan.h"
#include "common/view.h"
#include "gpu/device.h"

namespace hdxray {
namespace {
[[noreturn]] void refuse(int device) {
    throw std::invalid_argument("device " + std::to_string(device) + ": " + why_no_cuda(device));
}
}  // namespace

std::string why_no_cuda(int /*index*/) {
    return std::string("this build of the core has CPU paths only (CUDA ") + HDXRAY_CUDA_NOTE + ")";
}

void mask_plan_counts_cuda(const MaskPlanSpec& /*spec*/, int32_t* /*keep_cu*/, int32_t* /*predict_cu*/, int device,
                           uintptr_t /*stream*/) {
    refuse(device);
}

void mask_plan_ids_cuda(const MaskPlanSpec& /*spec*/, const int32_t* /*keep_cu*/, const int32_t* /*predict_cu*/,
                        const PlanIds& /*out*/, int device, uintptr_t /*stream*/) {
    refuse(device);
}

void gather_cuda(const Patches& /*patches*/, void* /*rows*/, DType /*row_dtype*/, int device, uintptr_t /*stream*/) {
    refuse(device);
}

void scatter_cuda(const Patches& /*patches*/, const void* /*grad_rows*/, DType /*row_dtype*/, int device,
                  uintptr_t /*stream*/) {
    refuse(device);
}

void view_cuda(const Patches& /*patches*/, const View& /*view*/, void* /*pixels*/, int device, uintptr_t /*stream*/) {
    refuse(device);
}

void loss_cuda(const Patches& /*patches*/, const void* /*pred*/, DType /*pred_dtype*/, bool /*norm_pix_loss*/,
               const float* /*grad_loss*/, const LossOutputs& /*out*/, int device, uintptr_t /*stream*/) {
    refuse(device);
}

void scale_loss_gradient_cuda(const LossGradient& /*gradient*/, int device, uintptr_t /*stream*/) {
    refuse(device);
}

}  // namespace hdxray
