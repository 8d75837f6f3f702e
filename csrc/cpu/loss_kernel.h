// The reconstruction loss straight from the images: no patchified copy of the batch ever exists. All sums are fp32,
// taken in one fixed order per patch, and a patch belongs to one thread, so the result does not depend on the number of
// threads.
#pragma once
#include "cpu/gather_kernel.h"

namespace hdxray::HDXRAY_ISA {
namespace {

constexpr float kVarianceEpsilon = 1e-6f;  // as in MAE

// Sum over i of term(i), i in steps of 8 below n, on four independent accumulators.
template <typename Term>
inline float sum_of(int64_t n, Term term) {
    F8 a = splat(0.0f), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        a += term(i);
        b += term(i + 8);
        c += term(i + 16);
        d += term(i + 24);
    }
    for (; i < n; i += 8) a += term(i);
    return sum8((a + c) + (b + d));
}

template <typename Pred>
inline F8 load_pred(const Pred* pred, int64_t i, int64_t size) {
    return i + 8 <= size ? load8(pred + i) : load_tail(pred + i, size - i);
}

template <typename In, typename Pred, typename P>
void loss_forward_of(const LossJob& job, int64_t begin, int64_t end, float* t, P p) {
    const PatchSource& s = job.from;
    const int64_t size = s.channels * p * p, padded = (size + 7) / 8 * 8;
    const Pred* pred = static_cast<const Pred*>(job.pred) + begin * size;
    RowCursor cursor(s, begin);
    for (int64_t row = begin; row < end; ++row, pred += size) {
        const In* first = static_cast<const In*>(s.images) + cursor.offset(row);
        convert_patch(s, first, t, p, cursor.scale(), cursor.shift());
        for (int64_t i = size; i < padded; ++i) t[i] = 0.0f;
        float mean = 0.0f, rstd = 1.0f;
        if (job.norm_pix_loss) {
            mean = sum_of(padded, [&](int64_t i) { return load8(t + i); }) / static_cast<float>(size);
            for (int64_t i = size; i < padded; ++i) t[i] = mean;  // the padding adds nothing to the variance
            const float squares = sum_of(padded, [&](int64_t i) {
                const F8 d = load8(t + i) - splat(mean);
                return d * d;
            });
            rstd = 1.0f / __builtin_sqrtf(squares / static_cast<float>(size - 1) + kVarianceEpsilon);
        }
        const F8 mean8 = splat(mean), rstd8 = splat(rstd);
        const float squares = sum_of(padded, [&](int64_t i) {
            const F8 d = load_pred(pred, i, size) - (load8(t + i) - mean8) * rstd8;
            return d * d;
        });
        job.patch_loss[row] = squares / static_cast<float>(size);
        job.mean[row] = mean;
        job.rstd[row] = rstd;
    }
}

template <typename In, typename Pred, typename P>
void loss_backward_of(const LossJob& job, int64_t begin, int64_t end, float* t, P p) {
    const PatchSource& s = job.from;
    const int64_t size = s.channels * p * p, whole = size / 8 * 8;
    const Pred* pred = static_cast<const Pred*>(job.pred) + begin * size;
    Pred* grad = static_cast<Pred*>(job.grad_pred) + begin * size;
    const F8 factor = splat(2.0f * job.grad_scale);
    RowCursor cursor(s, begin);
    for (int64_t row = begin; row < end; ++row, pred += size, grad += size) {
        const In* first = static_cast<const In*>(s.images) + cursor.offset(row);
        convert_patch(s, first, t, p, cursor.scale(), cursor.shift());
        const F8 mean = splat(job.mean[row]), rstd = splat(job.rstd[row]);
        int64_t i = 0;
        for (; i < whole; i += 8) store8(grad + i, (load8(pred + i) - (load8(t + i) - mean) * rstd) * factor);
        if (i < size) {
            const F8 target = (load_tail(t + i, size - i) - mean) * rstd;
            store_tail(grad + i, (load_tail(pred + i, size - i) - target) * factor, size - i);
        }
    }
}

template <typename In, typename Pred>
void loss_forward(const LossJob& job, int64_t begin, int64_t end, float* scratch) {
    if (job.from.patch_size == 16) return loss_forward_of<In, Pred>(job, begin, end, scratch, Fixed16{});
    loss_forward_of<In, Pred>(job, begin, end, scratch, static_cast<int64_t>(job.from.patch_size));
}

template <typename In, typename Pred>
void loss_backward(const LossJob& job, int64_t begin, int64_t end, float* scratch) {
    if (job.from.patch_size == 16) return loss_backward_of<In, Pred>(job, begin, end, scratch, Fixed16{});
    loss_backward_of<In, Pred>(job, begin, end, scratch, static_cast<int64_t>(job.from.patch_size));
}

}  // namespace
}  // namespace hdxray::HDXRAY_ISA
