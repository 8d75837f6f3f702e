// Rows of pixels of the chosen patches, normalised, in the element order of MAE's patchify; and the gradient back to
// images.
#pragma once
#include "common/patches.h"

namespace hdxray {

// rows: [N, C * p * p] row_dtype (f16, bf16, f32), written: pixel * scale + shift, computed in fp32, rounded once; zeros
// in slack, the rows at or past cu_seqlens[B].
void gather(const Patches& patches, void* rows, DType row_dtype, int n_threads);

// grad_rows: [N, C * p * p] row_dtype (f16, bf16, f32). The images of `patches`, [B, C, H, W] f16, bf16 or f32, are
// written, at the listed patches only, slack left out: gradient of the row's element * scale.
void scatter(const Patches& patches, const void* grad_rows, DType row_dtype, int n_threads);

// The same on a CUDA device, in `stream` (a cudaStream_t), without waiting. Rows whose id lies outside the grid are
// as slack: zero in gather and left out by scatter.
void gather_cuda(const Patches& patches, void* rows, DType row_dtype, int device, uintptr_t stream);
void scatter_cuda(const Patches& patches, const void* grad_rows, DType row_dtype, int device, uintptr_t stream);

}  // namespace hdxray
