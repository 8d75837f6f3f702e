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

// The first of eight elements, of which `left` are in the row.
template <typename Pred>
inline void store_grad(Pred* grad, F8 values, int64_t left) {
    if (left >= 8) return store8(grad, values);
    store_tail(grad, values, left);
}

template <typename Pred>
inline F8 load_pred(const Pred* pred, int64_t i, int64_t size) {
    return i + 8 <= size ? load8(pred + i) : load_tail(pred + i, size - i);
}

template <typename In, typename Pred, bool kGrad, typename P>
void loss_rows_of(const LossJob& job, int64_t begin, int64_t end, float* t, P p) {
    const PatchSource& s = job.from;
    const int64_t size = s.channels * p * p, padded = (size + 7) / 8 * 8;
    const Pred* pred = static_cast<const Pred*>(job.pred) + begin * size;
    Pred* grad = kGrad ? static_cast<Pred*>(job.grad_pred) + begin * size : nullptr;
    const F8 factor = splat(2.0f * job.grad_scale);
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
            if constexpr (kGrad) store_grad(grad + i, d * factor, size - i);
            return d * d;
        });
        if constexpr (kGrad) grad += size;
        if (job.patch_loss) job.patch_loss[row] = squares / static_cast<float>(size);
    }
}

template <typename In, typename Pred, bool kGrad>
void loss_rows_of(const LossJob& job, int64_t begin, int64_t end, float* scratch) {
    if (job.from.patch_size == 16) return loss_rows_of<In, Pred, kGrad>(job, begin, end, scratch, Fixed16{});
    loss_rows_of<In, Pred, kGrad>(job, begin, end, scratch, static_cast<int64_t>(job.from.patch_size));
}

template <typename In, typename Pred>
void loss_rows(const LossJob& job, int64_t begin, int64_t end, float* scratch) {
    if (job.grad_pred) return loss_rows_of<In, Pred, true>(job, begin, end, scratch);
    loss_rows_of<In, Pred, false>(job, begin, end, scratch);
}

// rows[begin, end) *= factor
template <typename T>
void scale_elements(void* rows, float factor, int64_t begin, int64_t end) {
    T* at = static_cast<T*>(rows);
    const F8 factor8 = splat(factor);
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) store8(at + i, load8(at + i) * factor8);
    if (i < end) store_tail(at + i, load_tail(at + i, end - i) * factor8, end - i);
}

}  // namespace
}  // namespace hdxray::HDXRAY_ISA
