// Plays gpu/gather_body.h, gpu/loss_body.h and gpu/view_body.h through, with the launch shapes of the .cu files.
#include "emulation/pixels_emulation.h"

#include <vector>

#include "common/check.h"
#include "common/dispatch.h"
#include "gpu/loss_body.h"
#include "gpu/view_body.h"

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

template <typename In, typename Out, int kChannels, PixelLayout kLayout>
void gather_wide(const GatherPlan& plan, Out* rows) {
    using Body = GatherWide<In, Out, kChannels, kLayout>;
    for_each_thread(plan.shape, [&](int64_t warp, int y, int lane) {
        if (warp * Body::kRows >= plan.job.n_rows) return;
        Body::run(plan.job, rows, warp * Body::kRows, y * kLanes + lane, lane);
    });
}

template <typename In, typename Out>
struct EmulateGather {
    static void run(const Patches& patches, void* rows, DType row_dtype) {
        const GatherPlan plan = plan_gather<In, Out>(patches, rows);
        Out* out = static_cast<Out*>(rows);
        if (plan.wide && patches.source.packed) return gather_wide<In, Out, 1, PixelLayout::kPacked>(plan, out);
        if (plan.wide && patches.source.channels == 1) return gather_wide<In, Out, 1, PixelLayout::kImages>(plan, out);
        if (plan.wide) return gather_wide<In, Out, 3, PixelLayout::kImages>(plan, out);
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

// body(warp of the grid in x) for every warp; bodies of the loss run all lanes of a warp by themselves.
template <typename Body>
void for_each_warp(const LaunchShape& shape, Body body) {
    for (int64_t warp = 0; warp < shape.x * kWarpsOfBlock; ++warp) body(warp);
}

template <typename In, typename Pred>
struct EmulateLoss {
    static void run(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss,
                    const float* grad_loss, const LossOutputs& out) {
        const LossPlan plan = plan_loss<In, Pred>(patches, pred, norm_pix_loss, grad_loss, out);
        const auto sum_of_warp = [&](int64_t first_row) {
            if (!plan.wide) return LossAny::run(plan.job, patches.dtype, pred_dtype, first_row, 0);
            if (patches.source.packed) return LossWide<In, Pred, PixelLayout::kPacked>::run(plan.job, first_row, 0);
            return LossWide<In, Pred, PixelLayout::kImages>::run(plan.job, first_row, 0);
        };
        for_each_warp(plan.shape, [&](int64_t warp) {
            if (warp * plan.rows_of_warp >= patches.n_rows) return;
            const double sum = sum_of_warp(warp * plan.rows_of_warp);
            if (out.partials) out.partials[warp] = sum;
        });
        if (!out.loss) return;
        std::vector<double> sums(kTotalThreads);
        for (int t = 0; t < kTotalThreads; ++t) {
            sums[static_cast<size_t>(t)] = sum_of_thread(out.partials, plan.n_partials, t);
        }
        for (int width = kTotalThreads / 2; width > 0; width /= 2) {
            for (int t = 0; t < kTotalThreads; ++t) fold(sums.data(), width, t);
        }
        *out.loss = mean_loss(sums[0], plan.job.pixels);
    }
};

template <typename T>
void emulate_scale(const LossGradient& gradient, int64_t n_threads) {
    for (int64_t thread = 0; thread < n_threads; ++thread) ScaleGradient<T>::run(gradient, thread, n_threads);
}

}  // namespace

void emulate_loss(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss,
                  const float* grad_loss, const LossOutputs& out) {
    check_loss(patches, pred, norm_pix_loss, out);
    check(!out.loss || out.partials || patches.n_rows == 0, "loss: null pointer");
    for_pixel_dtypes<EmulateLoss>(patches.dtype, pred_dtype, patches, pred, pred_dtype, norm_pix_loss, grad_loss, out);
}

void emulate_scale_loss_gradient(const LossGradient& gradient, int64_t n_threads) {
    check_loss_gradient(gradient);
    if (gradient.dtype == kF16) return emulate_scale<Half>(gradient, n_threads);
    if (gradient.dtype == kBF16) return emulate_scale<BFloat16>(gradient, n_threads);
    emulate_scale<float>(gradient, n_threads);
}

void emulate_view(const Patches& patches, const View& view, void* pixels) {
    check_shapes(patches);
    check_view(patches, view, pixels);
    if (patches.n_rows == 0) return;
    const ViewPlan plan = plan_view(patches, view);
    for_each_thread(plan.shape, [&](int64_t row, int y, int lane) {
        if (row < plan.job.pixels.n_rows) ViewAny::run(plan.job, pixels, row, y, lane);
    });
}

void emulate_image_of_row(const int32_t* cu_seqlens, int32_t batch, int64_t first, int64_t n, int32_t* images) {
    for (int64_t i = 0; i < n; ++i) images[i] = image_of_row(cu_seqlens, batch, first + i, 0);
}

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
