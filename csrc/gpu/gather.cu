// Kernels and launchers of gather and scatter; csrc/gpu/gather_body.h holds the kernels' bodies.
#include "common/check.h"
#include "common/dispatch.h"
#include "common/gather.h"
#include "gpu/cuda.h"
#include "gpu/gather_body.h"
#include "gpu/pixel_launch.h"

namespace hdxray {
namespace {

template <typename In, typename Out, int kChannels, PixelLayout kLayout>
__global__ void __launch_bounds__(kThreads) gather_wide(const __grid_constant__ PixelJob job, Out* rows) {
    using Body = GatherWide<In, Out, kChannels, kLayout>;
    const int64_t first_row = warp_of_grid() * Body::kRows;
    if (first_row >= job.n_rows) return;
    Body::run(job, rows, first_row, static_cast<int>(blockIdx.y) * kLanes + lane_of_warp(), lane_of_warp());
}

template <typename Image, typename Row>
__global__ void __launch_bounds__(kThreads) scatter_wide(const __grid_constant__ PixelJob job, const Row* grad_rows) {
    using Body = ScatterWide<Image, Row>;
    const int64_t first_row = warp_of_grid() * Body::kRows;
    if (first_row >= job.n_rows) return;
    Body::run(job, grad_rows, first_row, static_cast<int>(blockIdx.y) * kLanes + lane_of_warp(), lane_of_warp());
}

__global__ void __launch_bounds__(kThreads)
    gather_any(const __grid_constant__ PixelJob job, DType in, void* rows, DType out) {
    const int64_t row = warp_of_grid();
    if (row >= job.n_rows) return;
    PixelsAny::gather(job, in, rows, out, row, static_cast<int>(blockIdx.y), lane_of_warp());
}

__global__ void __launch_bounds__(kThreads)
    scatter_any(const __grid_constant__ PixelJob job, DType image, const void* grad_rows, DType row_dtype) {
    const int64_t row = warp_of_grid();
    if (row >= job.n_rows) return;
    PixelsAny::scatter(job, image, grad_rows, row_dtype, row, static_cast<int>(blockIdx.y), lane_of_warp());
}

dim3 grid(const LaunchShape& shape) {
    return {static_cast<unsigned>(shape.x), static_cast<unsigned>(shape.y), 1};
}

template <typename In, typename Out>
struct LaunchGather {
    static void run(const Patches& patches, void* rows, DType row_dtype, cudaStream_t stream) {
        const GatherPlan plan = plan_gather<In, Out>(patches, rows);
        Out* out = static_cast<Out*>(rows);
        if (!plan.wide) {
            gather_any<<<grid(plan.shape), kThreads, 0, stream>>>(plan.job, patches.dtype, rows, row_dtype);
        } else if (patches.source.packed) {
            if constexpr (sizeof(In) == 1) {
                gather_wide<In, Out, 1, PixelLayout::kPacked><<<grid(plan.shape), kThreads, 0, stream>>>(plan.job, out);
            }
        } else if (patches.source.channels == 1) {
            gather_wide<In, Out, 1, PixelLayout::kImages><<<grid(plan.shape), kThreads, 0, stream>>>(plan.job, out);
        } else {
            gather_wide<In, Out, 3, PixelLayout::kImages><<<grid(plan.shape), kThreads, 0, stream>>>(plan.job, out);
        }
        check_launch("gather");
    }
};

template <typename Image, typename Row>
struct LaunchScatter {
    static void run(const Patches& patches, const void* grad_rows, DType row_dtype, cudaStream_t stream) {
        const GatherPlan plan = plan_scatter<Image, Row>(patches, grad_rows);
        if (plan.wide) {
            const Row* grads = static_cast<const Row*>(grad_rows);
            scatter_wide<Image, Row><<<grid(plan.shape), kThreads, 0, stream>>>(plan.job, grads);
        } else {
            scatter_any<<<grid(plan.shape), kThreads, 0, stream>>>(plan.job, patches.dtype, grad_rows, row_dtype);
        }
        check_launch("scatter");
    }
};

}  // namespace

void gather_cuda(const Patches& patches, void* rows, DType row_dtype, int device, uintptr_t stream) {
    check_shapes(patches);
    check(rows || patches.n_rows == 0, "gather: null pointer");
    if (patches.n_rows == 0) return;
    const DeviceGuard guard(device);
    for_pixel_dtypes<LaunchGather>(patches.dtype, row_dtype, patches, rows, row_dtype, stream_of(stream));
}

void scatter_cuda(const Patches& patches, const void* grad_rows, DType row_dtype, int device, uintptr_t stream) {
    check_shapes(patches);
    check(grad_rows || patches.n_rows == 0, "scatter: null pointer");
    if (patches.n_rows == 0) return;
    const DeviceGuard guard(device);
    for_float_dtypes<LaunchScatter>(patches.dtype, row_dtype, patches, grad_rows, row_dtype, stream_of(stream));
}

}  // namespace hdxray
