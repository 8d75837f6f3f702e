// The CUDA kernels' bodies run on the CPU, block by block and lane by lane, for tests on machines without a GPU.
// Pointers are the CPU's; ids and cu_seqlens may hold anything, as on a GPU.
#pragma once
#include "common/loss.h"
#include "common/patches.h"
#include "common/view.h"

namespace hdxray {

// Shapes and dtypes are those of gather_cuda and scatter_cuda (common/gather.h), loss_cuda and scale_loss_gradient_cuda
// (common/loss.h), the latter with any number of threads.
void emulate_gather(const Patches& patches, void* rows, DType row_dtype);
void emulate_scatter(const Patches& patches, const void* grad_rows, DType row_dtype);
void emulate_loss(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss,
                  const float* grad_loss, const LossOutputs& out);
void emulate_scale_loss_gradient(const LossGradient& gradient, int64_t n_threads);

// As view_cuda.
void emulate_view(const Patches& patches, const View& view, void* pixels);

// image_of_row for rows [first, first + n): what the search in cu_seqlens ([batch + 1] int32) finds, to images ([n]
// int32).
void emulate_image_of_row(const int32_t* cu_seqlens, int32_t batch, int64_t first, int64_t n, int32_t* images);

}  // namespace hdxray
