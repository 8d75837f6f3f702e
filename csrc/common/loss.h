// The reconstruction loss on predicted patches, straight from the images: in one pass over pixels and predictions the
// loss, and its gradient where that is wanted.
#pragma once
#include "common/patches.h"

namespace hdxray {

// What a pass leaves; null is not wanted.
struct LossOutputs {
    float* loss;        // [] f32: the mean of patch_loss over the real rows, 0 if there is none
    float* patch_loss;  // [N] f32: mean squared error of each row; wanted wherever loss is
    void* grad_pred;    // [N, C * p * p] of the predictions' dtype: grad_loss * d loss / d pred
    double* partials;   // [N] f64, scratch: sums that the first stage leaves for the second; with loss, on CUDA only
};

// pred: [N, C * p * p] pred_dtype (f16, bf16, f32). grad_loss: [] f32, or null for 1. Rows at or past cu_seqlens[B] are
// slack: their predictions count for nothing, their patch_loss and gradient are zero.
void loss(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, const float* grad_loss,
          const LossOutputs& out, int n_threads);

// The gradient that a pass left for a grad_loss of 1, multiplied by another, [] f32, where it lies. Where that is 1,
// nothing is touched; slack is left as it is.
struct LossGradient {
    void* grad_pred;  // [N, row_size] of dtype
    DType dtype;      // f16, bf16, f32
    int64_t n_rows, row_size;
    const int32_t* cu_seqlens;  // [B + 1]
    int64_t batch;
    const float* grad_loss;  // [] f32
};
void scale_loss_gradient(const LossGradient& gradient, int n_threads);

// The same on a CUDA device, in `stream` (a cudaStream_t), without waiting: all pointers are the device's.
void loss_cuda(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, const float* grad_loss,
               const LossOutputs& out, int device, uintptr_t stream);
void scale_loss_gradient_cuda(const LossGradient& gradient, int device, uintptr_t stream);

// What both sides ask of their arguments, values on a device apart; throw std::invalid_argument.
void check_loss(const Patches& patches, const void* pred, bool norm_pix_loss, const LossOutputs& out);
void check_loss_gradient(const LossGradient& gradient);

}  // namespace hdxray
