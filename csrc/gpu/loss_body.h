// The bodies of the loss kernels. A warp owns a row, or a few at a time: mean, then squared deviations, then squared
// errors, each summed in fp32 in one fixed order (eight pixels by a tree, chunks of a lane one after another, lanes by
// a tree), so that results do not change from run to run.
//
// What has to move, for 16 x 16 uint8 patches and bf16 predictions: 512 bytes of predictions a row and 512 bytes of
// sectors for its 256 pixels (csrc/gpu/gather_body.h says why), less where neighbours are predicted too, and they
// mostly are: 85 % and more of all patches are masked, so about 512 + 256. The gradient writes 512 more.
#pragma once
#include <cmath>

#include "common/check.h"
#include "common/loss.h"
#include "gpu/gather_body.h"

namespace hdxray {
inline namespace HDXRAY_SIDE {

constexpr float kLossEpsilon = 1e-6f;  // of the variance, as in MAE

struct LossKernelJob {
    PixelJob pixels;
    const void* pred;  // [N, C * p * p] f32 | f16 | bf16
    bool norm_pix_loss;
    float* patch_loss;       // [N] f32, forward
    float* mean;             // [N] f32, written by forward, read by backward
    float* rstd;             // [N] f32, likewise
    const float* grad_loss;  // [] f32, backward
    void* grad_pred;         // [N, C * p * p], dtype of pred, backward
};

// d loss / d (squared error of one element), times two.
HDXRAY_HD inline float gradient_factor(const LossKernelJob& job, uint32_t row_size) {
    const int64_t rows = real_rows(job.pixels);
    return rows == 0 ? 0.0f : 2.0f * (*job.grad_loss / (static_cast<float>(rows) * static_cast<float>(row_size)));
}

HDXRAY_HD inline float sum_of_8(const float* v) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// Mean and 1 / standard deviation (unbiased) of a row, from the two sums over its elements.
HDXRAY_HD inline float mean_of(float sum, uint32_t size) {
    return sum / static_cast<float>(size);
}
HDXRAY_HD inline float rstd_of(float squares, uint32_t size) {
    return 1.0f / sqrtf(squares / static_cast<float>(size - 1) + kLossEpsilon);
}

HDXRAY_HD inline void write_row(const LossKernelJob& job, int64_t row, int lane, float loss, float mean, float rstd) {
    if (lane != 0 || row >= job.pixels.n_rows) return;
    job.patch_loss[row] = loss;
    job.mean[row] = mean;
    job.rstd[row] = rstd;
}

// Wide path: one channel, patch sizes that are a multiple of eight, predictions at 16 bytes. A chunk is eight pixels: a
// 16 x 16 patch is one for each lane, and stays in registers from the first pass to the last.
template <typename In, typename Pred, PixelLayout kLayout = PixelLayout::kImages>
struct LossWide {
    static constexpr int kPixels = 8;
    static constexpr int kRows = 2;
    static constexpr int kInBytes = kPixels * static_cast<int>(sizeof(In));
    static constexpr int kPredBytes = kPixels * static_cast<int>(sizeof(Pred));
    static constexpr int kBackwardFit = 96 / (kInBytes + kPredBytes);
    static constexpr int kBackwardRows = kBackwardFit > 4 ? 4 : kBackwardFit < 1 ? 1 : kBackwardFit;

    struct Chunk {
        Words<kInBytes> pixels;
        Words<kPredBytes> pred;
    };

    // Rows without a patch are not read.
    HDXRAY_HD static void load(const LossKernelJob& job, const Place& place, int64_t row, int32_t chunk, bool with_pred,
                               Chunk& to) {
        const PixelJob& p = job.pixels;
        to.pixels.clear();
        if (with_pred) to.pred.clear();
        if (place.image < 0) return;
        const auto line = static_cast<int32_t>(p.chunks_per_line.quotient(static_cast<uint32_t>(chunk)));
        const int32_t column = (chunk - line * static_cast<int32_t>(p.chunks_per_line.by)) * kPixels;
        const In* at = static_cast<const In*>(p.source.images) + (place.offset + line * p.source.stride_h + column);
        if (p.wide_images) {
            to.pixels.load(at);
        } else {
            pixels_one_by_one<In, kPixels>(at, to.pixels);
        }
        if (with_pred) to.pred.load(static_cast<const Pred*>(job.pred) + (row * p.chunks + chunk) * kPixels);
    }

    // Rows [first_row, first_row + kRows); their losses, zero for rows without a patch, also go to `losses`.
    HDXRAY_HD static void forward(const LossKernelJob& job, int64_t first_row, int lane, float* losses) {
        const PixelJob& p = job.pixels;
        const auto size = static_cast<uint32_t>(p.chunks) * kPixels;
        const bool one_each = p.chunks <= kLanes;  // then a lane loads its chunk once
        Place places[kRows];
        find_places<kRows, kLayout>(p, first_row, lane, places);
        float scale[kRows], shift[kRows];
        PerLane<Chunk> chunks[kRows];
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            const bool real = places[u].image >= 0;
            scale[u] = real ? scale_of(p.source, places[u].image) : 0.0f;
            shift[u] = real ? shift_of(p.source, places[u].image) : 0.0f;
            for_lanes(lane, [&](int l) {
                if (one_each && l < p.chunks) load(job, places[u], first_row + u, l, true, chunks[u].at(l));
            });
        }
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            losses[u] = 0.0f;
            if (places[u].image < 0) {
                write_row(job, first_row + u, lane, 0.0f, 0.0f, 1.0f);
                continue;
            }
            // Sum over the row of the sum of eight terms: term(target, chunk, pixel of it).
            const auto sum_row = [&](bool with_pred, auto term) {
                PerLane<float> sums;
                for_lanes(lane, [&](int l) {
                    float sum = 0.0f;
                    for (int32_t chunk = l; chunk < p.chunks; chunk += kLanes) {
                        Chunk& c = chunks[u].at(l);
                        if (!one_each) load(job, places[u], first_row + u, chunk, with_pred, c);
                        float terms[kPixels];
                        HDXRAY_UNROLL
                        for (int i = 0; i < kPixels; ++i) {
                            terms[i] = term(multiply_add(Element<In>::get(c.pixels.word, i), scale[u], shift[u]), c, i);
                        }
                        sum += sum_of_8(terms);
                    }
                    sums.at(l) = sum;
                });
                return sum_lanes(sums);
            };
            float mean = 0.0f, rstd = 1.0f;
            if (job.norm_pix_loss) {
                mean = mean_of(sum_row(false, [](float target, const Chunk&, int) { return target; }), size);
                const float squares = sum_row(false, [mean](float target, const Chunk&, int) {
                    const float deviation = target - mean;
                    return deviation * deviation;
                });
                rstd = rstd_of(squares, size);
            }
            const float errors = sum_row(true, [mean, rstd](float target, const Chunk& c, int i) {
                const float error = Element<Pred>::get(c.pred.word, i) - (target - mean) * rstd;
                return error * error;
            });
            losses[u] = mean_of(errors, size);
            write_row(job, first_row + u, lane, losses[u], mean, rstd);
        }
    }

    // One chunk of rows [first_row, first_row + kBackwardRows).
    HDXRAY_HD static void backward(const LossKernelJob& job, int64_t first_row, int32_t chunk, int lane) {
        const PixelJob& p = job.pixels;
        Place places[kBackwardRows];
        find_places<kBackwardRows, kLayout>(p, first_row, lane, places);
        if (chunk >= p.chunks) return;
        const float factor = gradient_factor(job, static_cast<uint32_t>(p.chunks) * kPixels);
        Chunk chunks[kBackwardRows];
        HDXRAY_UNROLL
        for (int u = 0; u < kBackwardRows; ++u) load(job, places[u], first_row + u, chunk, true, chunks[u]);
        HDXRAY_UNROLL
        for (int u = 0; u < kBackwardRows; ++u) {
            const int64_t row = first_row + u;
            if (row >= p.n_rows) break;
            Words<kPredBytes> packed;
            packed.clear();
            if (places[u].image >= 0) {
                const float scale = scale_of(p.source, places[u].image), shift = shift_of(p.source, places[u].image);
                const float mean = job.mean[row], rstd = job.rstd[row];
                float grads[kPixels];
                HDXRAY_UNROLL
                for (int i = 0; i < kPixels; ++i) {
                    const float target = multiply_add(Element<In>::get(chunks[u].pixels.word, i), scale, shift);
                    grads[i] = (Element<Pred>::get(chunks[u].pred.word, i) - (target - mean) * rstd) * factor;
                }
                Element<Pred>::template pack<kPixels>(packed.word, grads);
            }
            packed.store(static_cast<Pred*>(job.grad_pred) + (row * p.chunks + chunk) * kPixels);
        }
    }
};

// Any patch size, number of channels, alignment and dtype, an element at a time; pixels are read again for each pass.
struct LossAny {
    HDXRAY_HD static float target(const LossKernelJob& job, DType in, const Place& place, uint32_t e) {
        const PatchSource& s = job.pixels.source;
        const float pixel = load_any(s.images, place.offset + PixelsAny::element_offset(job.pixels, e), in);
        return multiply_add(pixel, scale_of(s, place.image), shift_of(s, place.image));
    }

    HDXRAY_HD static void forward(const LossKernelJob& job, DType in, DType pred, int64_t row, int lane, float* loss) {
        const PixelJob& p = job.pixels;
        const uint32_t size = p.line_size.by * static_cast<uint32_t>(p.source.patch_size);
        Place place;
        find_places<1, PixelLayout::kEither>(p, row, lane, &place);
        *loss = 0.0f;
        if (place.image < 0) return write_row(job, row, lane, 0.0f, 0.0f, 1.0f);
        const auto sum_row = [&](auto term) {
            PerLane<float> sums;
            for_lanes(lane, [&](int l) {
                float sum = 0.0f;
                for (uint32_t e = static_cast<uint32_t>(l); e < size; e += kLanes)
                    sum += term(target(job, in, place, e), e);
                sums.at(l) = sum;
            });
            return sum_lanes(sums);
        };
        float mean = 0.0f, rstd = 1.0f;
        if (job.norm_pix_loss) {
            mean = mean_of(sum_row([](float t, uint32_t) { return t; }), size);
            rstd = rstd_of(sum_row([mean](float t, uint32_t) { return (t - mean) * (t - mean); }), size);
        }
        const float errors = sum_row([&](float t, uint32_t e) {
            const float error = load_any(job.pred, row * size + e, pred) - (t - mean) * rstd;
            return error * error;
        });
        *loss = mean_of(errors, size);
        write_row(job, row, lane, *loss, mean, rstd);
    }

    HDXRAY_HD static void backward(const LossKernelJob& job, DType in, DType pred, int64_t row, int part, int lane) {
        const PixelJob& p = job.pixels;
        const uint32_t size = p.line_size.by * static_cast<uint32_t>(p.source.patch_size);
        Place place;
        find_places<1, PixelLayout::kEither>(p, row, lane, &place);
        const bool real = place.image >= 0;
        const float factor = gradient_factor(job, size);
        const float mean = real ? job.mean[row] : 0.0f, rstd = real ? job.rstd[row] : 0.0f;
        for (int i = 0; i < PixelsAny::kElements; ++i) {
            const uint32_t e =
                static_cast<uint32_t>(part) * PixelsAny::kSpan + static_cast<uint32_t>(i * kLanes + lane);
            if (e >= size) break;
            float grad = 0.0f;
            if (real) {
                grad = (load_any(job.pred, row * size + e, pred) - (target(job, in, place, e) - mean) * rstd) * factor;
            }
            store_any(job.grad_pred, row * size + e, grad, pred);
        }
    }
};

// --- the two stages of the reduction: blocks over their rows, then one block over the blocks -------------------------
constexpr int kTotalThreads = 1024;

HDXRAY_HD inline double sum_in_order(const float* losses, int n) {
    double sum = 0.0;
    for (int i = 0; i < n; ++i) sum += static_cast<double>(losses[i]);
    return sum;
}

HDXRAY_HD inline double sum_of_thread(const double* partials, int64_t n, int thread) {
    double sum = 0.0;
    for (int64_t i = thread; i < n; i += kTotalThreads) sum += partials[i];
    return sum;
}

// One level of the tree over `sums` [kTotalThreads], by threads below `width`.
HDXRAY_HD inline void fold(double* sums, int width, int thread) {
    if (thread < width) sums[thread] += sums[thread + width];
}

HDXRAY_HD inline float mean_loss(double sum, const PixelJob& job) {
    const int64_t rows = real_rows(job);
    return rows == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(rows));
}

inline void check_loss(const Patches& patches, bool norm_pix_loss, bool pointers) {
    check_shapes(patches);
    check(!norm_pix_loss || patches.row_size() >= 2, "loss: the variance of a single pixel does not exist");
    check(pointers, "loss: null pointer");
}

// Checked jobs, all but .pixels.
inline LossKernelJob forward_job(const Patches& patches, const void* pred, bool norm_pix_loss, const float* loss,
                                 float* patch_loss, float* mean, float* rstd, const double* partials) {
    const bool rows = pred && patch_loss && mean && rstd && partials;
    check_loss(patches, norm_pix_loss, loss && (rows || patches.n_rows == 0));
    return {{}, pred, norm_pix_loss, patch_loss, mean, rstd, nullptr, nullptr};
}

inline LossKernelJob backward_job(const Patches& patches, const void* pred, const float* mean, const float* rstd,
                                  const float* grad_loss, void* grad_pred) {
    const bool rows = pred && mean && rstd && grad_pred;
    check_loss(patches, false, grad_loss && (rows || patches.n_rows == 0));
    return {{}, pred, false, nullptr, const_cast<float*>(mean), const_cast<float*>(rstd), grad_loss, grad_pred};
}

// --- launches --------------------------------------------------------------------------------------------------------
struct LossPlan {
    LossKernelJob job;
    LaunchShape forward, backward;
    bool wide;
};

template <typename In, typename Pred>
LossPlan plan_loss(const Patches& patches, const LossKernelJob& job) {
    using Body = LossWide<In, Pred>;
    LossPlan plan{job, {}, {}, false};
    plan.job.pixels = make_pixel_job(patches, Body::kPixels);
    plan.job.pixels.wide_images = chunks_are_aligned(patches, Body::kInBytes, sizeof(In));
    plan.wide = patches.source.channels == 1 && (!patches.source.packed || packed_is_wide<In>(patches)) &&
                rows_are_wide(patches, Body::kPixels, job.pred) && rows_are_wide(patches, Body::kPixels, job.grad_pred);
    const int32_t chunks = plan.job.pixels.chunks;
    if (plan.wide) {
        plan.forward = launch_shape(patches.n_rows, Body::kRows, 1, 1);
        plan.backward = launch_shape(patches.n_rows, Body::kBackwardRows, chunks, kLanes);
    } else {
        plan.forward = launch_shape(patches.n_rows, 1, 1, 1);
        plan.backward = launch_shape(patches.n_rows, 1, patches.row_size(), PixelsAny::kSpan);
    }
    return plan;
}

}  // namespace HDXRAY_SIDE
}  // namespace hdxray
