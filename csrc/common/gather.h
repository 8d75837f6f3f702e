// Rows of pixels of the chosen patches, normalised, in the element order of MAE's patchify; and the gradient back to
// images.
#pragma once
#include <cstdint>

#include "cpu/kernels.h"

namespace hdxray {

// Packed patches of a batch of images, as the caller describes them.
struct Patches {
    PatchSource source;
    int64_t batch, n_rows;
    int32_t grid_h;
    DType dtype;  // of the images

    int64_t row_size() const { return static_cast<int64_t>(source.channels) * source.patch_size * source.patch_size; }
};

// Throws std::invalid_argument unless sizes are in range and pointers are there. All that can be known of patches on a
// GPU without waiting for it: there the kernels stay inside the buffers whatever ids and cu_seqlens hold.
void check_shapes(const Patches& patches);

// check_shapes, and every id and cu_seqlens entry is legal; for pointers of the CPU.
void check_patches(const Patches& patches);

// rows [N, C * p * p] (row_dtype) = pixel * scale + shift, computed in fp32, rounded once.
void gather(const Patches& patches, void* rows, DType row_dtype, int n_threads);

// The images of `patches` are written, at the listed patches only: gradient of the row's element * scale.
void scatter(const Patches& patches, const void* grad_rows, DType row_dtype, int n_threads);

// The same on a CUDA device, in `stream` (a cudaStream_t), without waiting. Rows at or past cu_seqlens[B], and rows
// whose id lies outside the grid, are zero in gather and left out by scatter.
void gather_cuda(const Patches& patches, void* rows, DType row_dtype, int device, uintptr_t stream);
void scatter_cuda(const Patches& patches, const void* grad_rows, DType row_dtype, int device, uintptr_t stream);

}  // namespace hdxray
