// The reconstruction loss on the CPU: checks, the kernel for the two dtypes, threads, the mean over the rows.
#include "common/loss.h"

#include <vector>

#include "common/check.h"
#include "cpu/parallel.h"
#include "cpu/vector_path.h"

namespace hdxray {
namespace {

constexpr int64_t kRowsPerChunk = 64;

void run(LossFn kernel, const LossJob& job, const Patches& patches, int n_threads) {
    parallel_for(patches.real_rows(), kRowsPerChunk, n_threads, [&](int64_t begin, int64_t end) {
        std::vector<float> scratch(static_cast<size_t>((patches.row_size() + 7) / 8 * 8));
        kernel(job, begin, end, scratch.data());
    });
}

}  // namespace

float loss_forward(const Patches& patches, const void* pred, DType pred_dtype, bool norm_pix_loss, float* patch_loss,
                   float* mean, float* rstd, int n_threads) {
    check_patches(patches);
    check(pred_dtype >= 0 && pred_dtype < kNumDTypes, "loss: unknown dtype code of pred");
    const LossFn kernel = kernels().loss_forward[patches.dtype][pred_dtype];
    check(kernel, "loss: this pair of dtypes is not supported");
    check(!norm_pix_loss || patches.row_size() >= 2, "loss: the variance of a single pixel does not exist");
    check((pred && patch_loss && mean && rstd) || patches.n_rows == 0, "loss: null pointer");
    const LossJob job{patches.source, pred, norm_pix_loss, patch_loss, mean, rstd, nullptr, 0.0f};
    run(kernel, job, patches, n_threads);
    const int64_t rows = patches.real_rows();
    for (int64_t i = rows; i < patches.n_rows; ++i) {
        patch_loss[i] = mean[i] = 0.0f;
        rstd[i] = 1.0f;
    }
    double sum = 0.0;
    for (int64_t i = 0; i < rows; ++i) sum += static_cast<double>(patch_loss[i]);
    return rows == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(rows));
}

void loss_backward(const Patches& patches, const void* pred, DType pred_dtype, const float* mean, const float* rstd,
                   float grad_loss, void* grad_pred, int n_threads) {
    check_patches(patches);
    check(pred_dtype >= 0 && pred_dtype < kNumDTypes, "loss: unknown dtype code of pred");
    const LossFn kernel = kernels().loss_backward[patches.dtype][pred_dtype];
    check(kernel, "loss: this pair of dtypes is not supported");
    check((pred && mean && rstd && grad_pred) || patches.n_rows == 0, "loss: null pointer");
    clear_slack(patches, grad_pred, pred_dtype);
    if (patches.real_rows() == 0) return;
    const double count = static_cast<double>(patches.real_rows()) * static_cast<double>(patches.row_size());
    const LossJob job{patches.source,
                      pred,
                      false,
                      nullptr,
                      const_cast<float*>(mean),
                      const_cast<float*>(rstd),
                      grad_pred,
                      static_cast<float>(static_cast<double>(grad_loss) / count)};
    run(kernel, job, patches, n_threads);
}

}  // namespace hdxray
