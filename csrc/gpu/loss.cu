// Launchers of the reconstruction loss; csrc/gpu/loss_body.h holds the kernels' bodies.
#include "common/check.h"
#include "common/dispatch.h"
#include "common/loss.h"
#include "gpu/cuda.h"
#include "gpu/loss_body.h"
#include "gpu/pixel_launch.h"

namespace hdxray {
namespace {

// First stage: each warp leaves the sum of its rows' losses, if somebody asks for the loss.
// Three blocks a multiprocessor leave a thread 80 registers; left to itself the compiler takes less and spills.
template <typename In, typename Pred, PixelLayout kLayout>
__global__ void __launch_bounds__(kThreads, 3) loss_wide(const __grid_constant__ LossKernelJob job, double* partials) {
    using Body = LossWide<In, Pred, kLayout>;
    const int64_t warp = warp_of_grid();
    if (warp * Body::kRows >= job.pixels.n_rows) return;
    const double sum = Body::run(job, warp * Body::kRows, lane_of_warp());
    if (lane_of_warp() == 0 && partials != nullptr) partials[warp] = sum;
}

__global__ void __launch_bounds__(kThreads)
    loss_any(const __grid_constant__ LossKernelJob job, DType in, DType pred, double* partials) {
    const int64_t row = warp_of_grid();
    if (row >= job.pixels.n_rows) return;
    const double loss = LossAny::run(job, in, pred, row, lane_of_warp());
    if (lane_of_warp() == 0 && partials != nullptr) partials[row] = loss;
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

template <typename T>
__global__ void __launch_bounds__(kThreads) loss_scale(const __grid_constant__ LossGradient gradient) {
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    ScaleGradient<T>::run(gradient, thread, static_cast<int64_t>(gridDim.x) * kThreads);
}

dim3 grid(const LaunchShape& shape) {
    return {static_cast<unsigned>(shape.x), static_cast<unsigned>(shape.y), 1};
}

template <typename In, typename Pred>
struct LaunchLoss {
    static void run(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss,
                    const float* grad_loss, const LossOutputs& out, cudaStream_t stream) {
        const LossPlan plan = plan_loss<In, Pred>(patches, pred, norm_pix_loss, grad_loss, out);
        const LossKernelJob& job = plan.job;
        const dim3 blocks = grid(plan.shape);
        if (patches.n_rows > 0) {
            if (plan.wide && patches.source.packed) {
                if constexpr (sizeof(In) == 1) {
                    loss_wide<In, Pred, PixelLayout::kPacked><<<blocks, kThreads, 0, stream>>>(job, out.partials);
                }
            } else if (plan.wide) {
                loss_wide<In, Pred, PixelLayout::kImages><<<blocks, kThreads, 0, stream>>>(job, out.partials);
            } else {
                loss_any<<<blocks, kThreads, 0, stream>>>(job, patches.dtype, pred_dtype, out.partials);
            }
            check_launch("loss");
        }
        if (out.loss == nullptr) return;
        loss_total<<<1, kTotalThreads, 0, stream>>>(job.pixels, out.partials, plan.n_partials, out.loss);
        check_launch("loss_total");
    }
};

template <typename T>
void launch_scale(const LossGradient& gradient, cudaStream_t stream) {
    const int64_t chunks = gradient.n_rows * gradient.row_size / ScaleGradient<T>::kElements;
    const int64_t blocks = chunks / kThreads + 1;
    loss_scale<T>
        <<<static_cast<unsigned>(blocks < kScaleBlocks ? blocks : kScaleBlocks), kThreads, 0, stream>>>(gradient);
    check_launch("loss_scale");
}

}  // namespace

void loss_cuda(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, const float* grad_loss,
               const LossOutputs& out, int device, uintptr_t stream) {
    check_loss(patches, pred, norm_pix_loss, out);
    check(!out.loss || out.partials || patches.n_rows == 0, "loss: null pointer");
    const DeviceGuard guard(device);
    for_pixel_dtypes<LaunchLoss>(patches.dtype, pred_dtype, patches, pred, pred_dtype, norm_pix_loss, grad_loss, out,
                                 stream_of(stream));
}

void scale_loss_gradient_cuda(const LossGradient& gradient, int device, uintptr_t stream) {
    check_loss_gradient(gradient);
    if (gradient.n_rows == 0) return;
    const DeviceGuard guard(device);
    if (gradient.dtype == kF16) return launch_scale<Half>(gradient, stream_of(stream));
    if (gradient.dtype == kBF16) return launch_scale<BFloat16>(gradient, stream_of(stream));
    launch_scale<float>(gradient, stream_of(stream));
}

}  // namespace hdxray
