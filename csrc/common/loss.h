// The reconstruction loss on predicted patches, straight from the images, forward and backward.
#pragma once
#include "common/patches.h"

namespace hdxray {

// pred: [N, C * p * p] pred_dtype (f16, bf16, f32). patch_loss, mean, rstd: [N] f32 each, written. Rows at or past
// cu_seqlens[B] are slack: their predictions are not read, their patch_loss and gradient are zero.
// Returns the mean of patch_loss over the other rows (0 if there is none), summed in row order.
float loss_forward(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, float* patch_loss,
                   float* mean, float* rstd, int n_threads);

// pred, grad_pred: [N, C * p * p] pred_dtype; mean, rstd: [N] f32, as the forward pass left them. grad_pred is written:
// grad_loss * d loss / d pred.
void loss_backward(const Patches& patches, const void* pred, DType pred_dtype, const float* mean, const float* rstd,
                   float grad_loss, void* grad_pred, int n_threads);

// The same on a CUDA device, in `stream` (a cudaStream_t), without waiting; loss and grad_loss are
// the device's, [] f32. partials: [loss_partials(N)] f64, scratch.
void loss_forward_cuda(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, float* loss,
                       float* patch_loss, float* mean, float* rstd, double* partials, int device, uintptr_t stream);
void loss_backward_cuda(const Patches& patches, const void* pred, DType pred_dtype, const float* mean,
                        const float* rstd, const float* grad_loss, void* grad_pred, int device, uintptr_t stream);

// Sums that the first stage of the reduction leaves for the second: at most one for eight rows.
inline int64_t loss_partials(int64_t n_rows) {
    return (n_rows + 7) / 8;
}

}  // namespace hdxray
