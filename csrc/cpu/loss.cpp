// The reconstruction loss on the CPU: checks, the kernel for the two dtypes, threads, the mean over the rows.
#include "common/loss.h"

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "cpu/parallel.h"
#include "cpu/vector_path.h"

namespace hdxray {
namespace {

constexpr int64_t kRowsPerChunk = 64;
constexpr int64_t kElementsPerChunk = 1 << 16;

}  // namespace

void check_loss(const Patches& patches, const void* pred, bool norm_pix_loss, const LossOutputs& out) {
    check_shapes(patches);
    check(!norm_pix_loss || patches.row_size() >= 2, "loss: the variance of a single pixel does not exist");
    check(pred || patches.n_rows == 0, "loss: null pointer");
    check(!out.loss || out.patch_loss || patches.n_rows == 0, "loss: null pointer");
}

void check_loss_gradient(const LossGradient& gradient) {
    check(gradient.n_rows >= 0 && gradient.row_size >= 1 && gradient.batch >= 0, "loss: sizes out of range");
    check(gradient.cu_seqlens && gradient.grad_loss && (gradient.grad_pred || gradient.n_rows == 0),
          "loss: null pointer");
    check(gradient.dtype == kF16 || gradient.dtype == kBF16 || gradient.dtype == kF32,
          "loss: unknown dtype code of the gradient");
}

void loss(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, const float* grad_loss,
          const LossOutputs& out, int n_threads) {
    check_loss(patches, pred, norm_pix_loss, out);
    check_patches(patches);
    check(pred_dtype >= 0 && pred_dtype < kNumDTypes, "loss: unknown dtype code of pred");
    const LossFn kernel = kernels().loss[patches.dtype][pred_dtype];
    check(kernel, "loss: this pair of dtypes is not supported");
    const int64_t rows = patches.real_rows();
    const double count = static_cast<double>(std::max<int64_t>(rows, 1)) * static_cast<double>(patches.row_size());
    const double upstream = grad_loss ? static_cast<double>(*grad_loss) : 1.0;
    const LossJob job{patches.source, pred,          norm_pix_loss,
                      out.patch_loss, out.grad_pred, static_cast<float>(upstream / count)};
    parallel_for(rows, kRowsPerChunk, n_threads, [&](int64_t begin, int64_t end) {
        std::vector<float> scratch(static_cast<size_t>((patches.row_size() + 7) / 8 * 8));
        kernel(job, begin, end, scratch.data());
    });
    if (out.grad_pred) clear_slack(patches, out.grad_pred, pred_dtype);
    if (out.patch_loss) std::fill(out.patch_loss + rows, out.patch_loss + patches.n_rows, 0.0f);
    if (!out.loss) return;
    double sum = 0.0;
    for (int64_t i = 0; i < rows; ++i) sum += static_cast<double>(out.patch_loss[i]);
    *out.loss = rows == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(rows));
}

void scale_loss_gradient(const LossGradient& gradient, int n_threads) {
    check_loss_gradient(gradient);
    const float factor = *gradient.grad_loss;
    if (factor == 1.0f) return;
    const int64_t end = gradient.cu_seqlens[gradient.batch], rows = std::clamp<int64_t>(end, 0, gradient.n_rows);
    const ScaleFn kernel = kernels().scale[gradient.dtype];
    parallel_for(rows * gradient.row_size, kElementsPerChunk, n_threads,
                 [&](int64_t begin, int64_t last) { kernel(gradient.grad_pred, factor, begin, last); });
}

}  // namespace hdxray
