#include "pixels_emulation.h"

#include "check.h"
#include "dispatch.h"
#include "gather_index.h"

namespace hdxray {
namespace {

// body(warp of the grid in x, block in y, lane) for every thread of a launch.
template <typename Body>
void for_each_thread(const LaunchShape& shape, Body body) {
    for (int32_t y = 0; y < shape.y; ++y) {
        for (int64_t warp = 0; warp < shape.x * kWarpsOfBlock; ++warp) {
            for (int lane = 0; lane < kLanes; ++lane) body(warp, y, lane);
        }
    }
}

template <typename In, typename Out, int kChannels>
void gather_wide(const GatherPlan& plan, Out* rows) {
    using Body = GatherWide<In, Out, kChannels>;
    for_each_thread(plan.shape, [&](int64_t warp, int y, int lane) {
        if (warp * Body::kRows >= plan.job.n_rows) return;
        Body::run(plan.job, rows, warp * Body::kRows, y * kLanes + lane, lane);
    });
}

template <typename In, typename Out>
struct EmulateGather {
    static void run(const Patches& patches, void* rows, DType row_dtype) {
        const GatherPlan plan = plan_gather<In, Out>(patches, rows);
        if (plan.wide && patches.source.channels == 1) return gather_wide<In, Out, 1>(plan, static_cast<Out*>(rows));
        if (plan.wide) return gather_wide<In, Out, 3>(plan, static_cast<Out*>(rows));
        for_each_thread(plan.shape, [&](int64_t row, int y, int lane) {
            if (row < plan.job.n_rows) PixelsAny::gather(plan.job, patches.dtype, rows, row_dtype, row, y, lane);
        });
    }
};

template <typename Image, typename Row>
struct EmulateScatter {
    static void run(const Patches& patches, const void* grad_rows, DType row_dtype) {
        using Body = ScatterWide<Image, Row>;
        const GatherPlan plan = plan_scatter<Image, Row>(patches, grad_rows);
        for_each_thread(plan.shape, [&](int64_t warp, int y, int lane) {
            if (!plan.wide) {
                if (warp >= plan.job.n_rows) return;
                PixelsAny::scatter(plan.job, patches.dtype, grad_rows, row_dtype, warp, y, lane);
            } else if (warp * Body::kRows < plan.job.n_rows) {
                const Row* grads = static_cast<const Row*>(grad_rows);
                Body::run(plan.job, grads, warp * Body::kRows, y * kLanes + lane, lane);
            }
        });
    }
};

}  // namespace

void emulate_gather(const Patches& patches, void* rows, DType row_dtype) {
    check_shapes(patches);
    check(rows || patches.n_rows == 0, "gather: null pointer");
    if (patches.n_rows == 0) return;
    for_pixel_dtypes<EmulateGather>(patches.dtype, row_dtype, patches, rows, row_dtype);
}

void emulate_scatter(const Patches& patches, const void* grad_rows, DType row_dtype) {
    check_shapes(patches);
    check(grad_rows || patches.n_rows == 0, "scatter: null pointer");
    if (patches.n_rows == 0) return;
    for_float_dtypes<EmulateScatter>(patches.dtype, row_dtype, patches, grad_rows, row_dtype);
}

}  // namespace hdxray
