// The reconstruction loss on predicted patches, straight from the images, forward and backward.
#pragma once
#include "gather.h"

namespace hdxray {

// patch_loss, mean, rstd: [N] f32 each. Returns the mean of patch_loss (0 if there is no row), summed in row order.
float loss_forward(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, float* patch_loss,
                   float* mean, float* rstd, int n_threads);

// grad_pred [N, C * p * p], dtype of pred = grad_loss * d loss / d pred; mean and rstd as the forward pass left them.
void loss_backward(const Patches& patches, const void* pred, DType pred_dtype, const float* mean, const float* rstd,
                   float grad_loss, void* grad_pred, int n_threads);

}  // namespace hdxray
