// Launchers of the reconstruction loss; csrc/gpu/loss_body.h holds the kernels' bodies.
#include "common/check.h"
#include "common/dispatch.h"
#include "common/loss.h"
#include "gpu/cuda.h"
#include "gpu/loss_body.h"
#include "gpu/pixel_launch.h"

namespace hdxray {
namespace {

// First stage: the block's warps leave their rows' losses, and one thread adds them up in order. Every thread of the
// block must come here.
template <int kRows>
__device__ void leave_partial(const float* losses, double* partials) {
    __shared__ float of_block[kWarpsOfBlock * kRows];
    if (lane_of_warp() == 0) {
#pragma unroll
        for (int u = 0; u < kRows; ++u) of_block[threadIdx.x / kLanes * kRows + u] = losses[u];
    }
    __syncthreads();
    if (threadIdx.x == 0) partials[blockIdx.x] = sum_in_order(of_block, kWarpsOfBlock * kRows);
}

template <typename In, typename Pred, PixelLayout kLayout>
__global__ void __launch_bounds__(kThreads)
    loss_forward_wide(const __grid_constant__ LossKernelJob job, double* partials) {
    using Body = LossWide<In, Pred, kLayout>;
    const int64_t first_row = warp_of_grid() * Body::kRows;
    float losses[Body::kRows] = {};
    if (first_row < job.pixels.n_rows) Body::forward(job, first_row, lane_of_warp(), losses);
    leave_partial<Body::kRows>(losses, partials);
}

__global__ void __launch_bounds__(kThreads)
    loss_forward_any(const __grid_constant__ LossKernelJob job, DType in, DType pred, double* partials) {
    const int64_t row = warp_of_grid();
    float loss = 0.0f;
    if (row < job.pixels.n_rows) LossAny::forward(job, in, pred, row, lane_of_warp(), &loss);
    leave_partial<1>(&loss, partials);
}

// Second stage, one block. The number of real rows is read here, so that nobody waits for it.
__global__ void __launch_bounds__(kTotalThreads)
    loss_total(const __grid_constant__ PixelJob job, const double* partials, int64_t n_partials, float* loss) {
    __shared__ double sums[kTotalThreads];
    const int thread = static_cast<int>(threadIdx.x);
    sums[thread] = sum_of_thread(partials, n_partials, thread);
    for (int width = kTotalThreads / 2; width > 0; width /= 2) {
        __syncthreads();
        fold(sums, width, thread);
    }
    if (thread == 0) *loss = mean_loss(sums[0], job);
}

template <typename In, typename Pred, PixelLayout kLayout>
__global__ void __launch_bounds__(kThreads) loss_backward_wide(const __grid_constant__ LossKernelJob job) {
    using Body = LossWide<In, Pred, kLayout>;
    const int64_t first_row = warp_of_grid() * Body::kBackwardRows;
    if (first_row >= job.pixels.n_rows) return;
    Body::backward(job, first_row, static_cast<int32_t>(blockIdx.y) * kLanes + lane_of_warp(), lane_of_warp());
}

// Four blocks a multiprocessor leave it 64 registers; left to itself the compiler takes 32 and spills.
__global__ void __launch_bounds__(kThreads, 4)
    loss_backward_any(const __grid_constant__ LossKernelJob job, DType in, DType pred) {
    const int64_t row = warp_of_grid();
    if (row >= job.pixels.n_rows) return;
    LossAny::backward(job, in, pred, row, static_cast<int>(blockIdx.y), lane_of_warp());
}

dim3 grid(const LaunchShape& shape) {
    return {static_cast<unsigned>(shape.x), static_cast<unsigned>(shape.y), 1};
}

template <typename In, typename Pred>
struct LaunchForward {
    static void run(const Patches& patches, DType pred_dtype, const LossKernelJob& given, double* partials, float* loss,
                    cudaStream_t stream) {
        const LossPlan plan = plan_loss<In, Pred>(patches, given);
        const LossKernelJob& job = plan.job;
        if (patches.n_rows > 0) {
            if (plan.wide && patches.source.packed) {
                if constexpr (sizeof(In) == 1) {
                    loss_forward_wide<In, Pred, PixelLayout::kPacked>
                        <<<grid(plan.forward), kThreads, 0, stream>>>(job, partials);
                }
            } else if (plan.wide) {
                loss_forward_wide<In, Pred, PixelLayout::kImages>
                    <<<grid(plan.forward), kThreads, 0, stream>>>(job, partials);
            } else {
                loss_forward_any<<<grid(plan.forward), kThreads, 0, stream>>>(job, patches.dtype, pred_dtype, partials);
            }
            check_launch("loss_forward");
        }
        loss_total<<<1, kTotalThreads, 0, stream>>>(job.pixels, partials, plan.forward.x, loss);
        check_launch("loss_total");
    }
};

template <typename In, typename Pred>
struct LaunchBackward {
    static void run(const Patches& patches, DType pred_dtype, const LossKernelJob& given, cudaStream_t stream) {
        const LossPlan plan = plan_loss<In, Pred>(patches, given);
        if (plan.wide && patches.source.packed) {
            if constexpr (sizeof(In) == 1) {
                loss_backward_wide<In, Pred, PixelLayout::kPacked>
                    <<<grid(plan.backward), kThreads, 0, stream>>>(plan.job);
            }
        } else if (plan.wide) {
            loss_backward_wide<In, Pred, PixelLayout::kImages><<<grid(plan.backward), kThreads, 0, stream>>>(plan.job);
        } else {
            loss_backward_any<<<grid(plan.backward), kThreads, 0, stream>>>(plan.job, patches.dtype, pred_dtype);
        }
        check_launch("loss_backward");
    }
};

}  // namespace

void loss_forward_cuda(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, float* loss,
                       float* patch_loss, float* mean, float* rstd, double* partials, int device, uintptr_t stream) {
    const LossKernelJob job = forward_job(patches, pred, norm_pix_loss, loss, patch_loss, mean, rstd, partials);
    const DeviceGuard guard(device);
    for_pixel_dtypes<LaunchForward>(patches.dtype, pred_dtype, patches, pred_dtype, job, partials, loss,
                                    stream_of(stream));
}

void loss_backward_cuda(const Patches& patches, const void* pred, DType pred_dtype, const float* mean,
                        const float* rstd, const float* grad_loss, void* grad_pred, int device, uintptr_t stream) {
    const LossKernelJob job = backward_job(patches, pred, mean, rstd, grad_loss, grad_pred);
    if (patches.n_rows == 0) return;
    const DeviceGuard guard(device);
    for_pixel_dtypes<LaunchBackward>(patches.dtype, pred_dtype, patches, pred_dtype, job, stream_of(stream));
}

}  // namespace hdxray
