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

// body(block in x, warp of the grid in x) for every warp; bodies of the loss run all lanes of a warp by themselves.
template <typename Body>
void for_each_warp(const LaunchShape& shape, Body body) {
    for (int64_t block = 0; block < shape.x; ++block) {
        for (int warp = 0; warp < kWarpsOfBlock; ++warp) body(block, warp);
    }
}

template <typename In, typename Pred>
struct EmulateLossForward {
    static void run(const Patches& patches, DType pred_dtype, const LossKernelJob& given, double* partials,
                    float* loss) {
        if (patches.source.packed) return through<PixelLayout::kPacked>(patches, pred_dtype, given, partials, loss);
        through<PixelLayout::kImages>(patches, pred_dtype, given, partials, loss);
    }

    template <PixelLayout kLayout>
    static void through(const Patches& patches, DType pred_dtype, const LossKernelJob& given, double* partials,
                        float* loss) {
        using Body = LossWide<In, Pred, kLayout>;
        LossPlan plan = plan_loss<In, Pred>(patches, given);
        const int rows_each = plan.wide ? Body::kRows : 1;
        std::vector<float> of_block(static_cast<size_t>(kWarpsOfBlock * rows_each));
        for_each_warp(plan.forward, [&](int64_t block, int warp) {
            const int64_t first_row = (block * kWarpsOfBlock + warp) * rows_each;
            float* losses = of_block.data() + warp * rows_each;
            for (int u = 0; u < rows_each; ++u) losses[u] = 0.0f;
            if (first_row < patches.n_rows && plan.wide) Body::forward(plan.job, first_row, 0, losses);
            if (first_row < patches.n_rows && !plan.wide) {
                LossAny::forward(plan.job, patches.dtype, pred_dtype, first_row, 0, losses);
            }
            if (warp + 1 == kWarpsOfBlock) partials[block] = sum_in_order(of_block.data(), kWarpsOfBlock * rows_each);
        });
        std::vector<double> sums(kTotalThreads);
        for (int t = 0; t < kTotalThreads; ++t)
            sums[static_cast<size_t>(t)] = sum_of_thread(partials, plan.forward.x, t);
        for (int width = kTotalThreads / 2; width > 0; width /= 2) {
            for (int t = 0; t < kTotalThreads; ++t) fold(sums.data(), width, t);
        }
        *loss = mean_loss(sums[0], plan.job.pixels);
    }
};

template <typename In, typename Pred>
struct EmulateLossBackward {
    static void run(const Patches& patches, DType pred_dtype, const LossKernelJob& given) {
        if (patches.source.packed) return through<PixelLayout::kPacked>(patches, pred_dtype, given);
        through<PixelLayout::kImages>(patches, pred_dtype, given);
    }

    template <PixelLayout kLayout>
    static void through(const Patches& patches, DType pred_dtype, const LossKernelJob& given) {
        using Body = LossWide<In, Pred, kLayout>;
        const LossPlan plan = plan_loss<In, Pred>(patches, given);
        for_each_thread(plan.backward, [&](int64_t warp, int y, int lane) {
            if (!plan.wide) {
                if (warp >= patches.n_rows) return;
                LossAny::backward(plan.job, patches.dtype, pred_dtype, warp, y, lane);
            } else if (warp * Body::kBackwardRows < patches.n_rows) {
                Body::backward(plan.job, warp * Body::kBackwardRows, y * kLanes + lane, lane);
            }
        });
    }
};

}  // namespace

void emulate_loss_forward(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, float* loss,
                          float* patch_loss, float* mean, float* rstd, double* partials) {
    const LossKernelJob job = forward_job(patches, pred, norm_pix_loss, loss, patch_loss, mean, rstd, partials);
    for_pixel_dtypes<EmulateLossForward>(patches.dtype, pred_dtype, patches, pred_dtype, job, partials, loss);
}

void emulate_loss_backward(const Patches& patches, const void* pred, DType pred_dtype, const float* mean,
                           const float* rstd, const float* grad_loss, void* grad_pred) {
    const LossKernelJob job = backward_job(patches, pred, mean, rstd, grad_loss, grad_pred);
    for_pixel_dtypes<EmulateLossBackward>(patches.dtype, pred_dtype, patches, pred_dtype, job);
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
