// The bodies of the loss kernels. A warp owns a few rows: mean, then squared deviations, then squared errors, each
// summed in fp32 in one fixed order (eight pixels by a tree, chunks of a lane one after another, lanes by a tree), so
// that results do not change from run to run. The error of an element times a factor is its gradient: where that is
// wanted it is written in the same pass.
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
    const float* grad_loss;  // [] f32, or null for 1
    float* patch_loss;       // [N] f32, or null
    void* grad_pred;         // [N, C * p * p], dtype of pred, or null
};

// The gradient of an element, by its error.
HDXRAY_HD inline float gradient_factor(const LossKernelJob& job, uint32_t row_size) {
    const int64_t rows = real_rows(job.pixels);
    const float upstream = job.grad_loss != nullptr ? *job.grad_loss : 1.0f;
    return rows == 0 ? 0.0f : 2.0f * (upstream / (static_cast<float>(rows) * static_cast<float>(row_size)));
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

HDXRAY_HD inline void write_row(const LossKernelJob& job, int64_t row, int lane, float loss) {
    if (lane == 0 && row < job.pixels.n_rows && job.patch_loss != nullptr) job.patch_loss[row] = loss;
}

// Wide path: one channel, patch sizes that are a multiple of eight, predictions and gradient at 16 bytes. A chunk is
// eight pixels. Bodies return the sum of their rows' losses, rows without a patch counting as zero.
template <typename In, typename Pred, PixelLayout kLayout = PixelLayout::kImages>
struct LossWide {
    static constexpr int kPixels = 8;
    static constexpr int kInBytes = kPixels * static_cast<int>(sizeof(In));
    static constexpr int kPredBytes = kPixels * static_cast<int>(sizeof(Pred));
    static constexpr int kRows = kInBytes + kPredBytes <= 24 ? 4 : 2;  // of a warp: what its registers can hold

    using Pixels = Words<kInBytes>;
    using Preds = Words<kPredBytes>;

    // `wide`: the job's wide_images, a constant where the loads of several rows must not be torn apart by a branch.
    HDXRAY_HD static void load_pixels(const PixelJob& p, const Place& place, int32_t chunk, bool wide, Pixels& to) {
        const auto line = static_cast<int32_t>(p.chunks_per_line.quotient(static_cast<uint32_t>(chunk)));
        const int32_t column = (chunk - line * static_cast<int32_t>(p.chunks_per_line.by)) * kPixels;
        const In* at = static_cast<const In*>(p.source.images) + (place.offset + line * p.source.stride_h + column);
        if (wide) return to.load(at);
        to.clear();
        pixels_one_by_one<In, kPixels>(at, to);
    }

    HDXRAY_HD static int64_t element(const PixelJob& p, int64_t row, int32_t chunk) {
        return (row * p.chunks + chunk) * kPixels;
    }

    // A chunk of a row's gradient: its errors times the factor.
    HDXRAY_HD static void store_grad(const LossKernelJob& job, int64_t row, int32_t chunk, const float* errors,
                                     float factor) {
        float grads[kPixels];
        HDXRAY_UNROLL
        for (int i = 0; i < kPixels; ++i) grads[i] = errors[i] * factor;
        Preds packed;
        Element<Pred>::template pack<kPixels>(packed.word, grads);
        packed.store(static_cast<Pred*>(job.grad_pred) + element(job.pixels, row, chunk));
    }

    HDXRAY_HD static void clear_grad(const LossKernelJob& job, int64_t row, int32_t chunk) {
        Preds zeros;
        zeros.clear();
        zeros.store(static_cast<Pred*>(job.grad_pred) + element(job.pixels, row, chunk));
    }

    // Rows of at most a chunk a lane, 16 x 16 patches and less: pixels are read once, and stay in registers from the
    // first sum to the gradient. The rows' sums are taken together, so that none waits for another's.
    HDXRAY_HD static double few_chunks(const LossKernelJob& job, int64_t first_row, int lane) {
        const PixelJob& p = job.pixels;
        const auto size = static_cast<uint32_t>(p.chunks) * kPixels;
        const int64_t end = real_rows(p);
        struct Chunk {
            Preds pred;
            float values[kPixels];  // targets, in the end errors
        };
        PerLane<Chunk> chunks[kRows];
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {  // before the places are known, which predictions do not wait for
            for_lanes(lane, [&](int l) {
                Preds& to = chunks[u].at(l).pred;
                to.clear();
                if (l < p.chunks && first_row + u < end)
                    to.load(static_cast<const Pred*>(job.pred) + element(p, first_row + u, l));
            });
        }
        Place places[kRows];
        find_places<kRows, kLayout>(p, first_row, lane, places);
        PerLane<Pixels> pixels[kRows];
        const auto load_rows = [&](bool wide) {
            HDXRAY_UNROLL
            for (int u = 0; u < kRows; ++u) {
                for_lanes(lane, [&](int l) {
                    pixels[u].at(l).clear();
                    if (l < p.chunks && places[u].image >= 0) load_pixels(p, places[u], l, wide, pixels[u].at(l));
                });
            }
        };
        if (p.wide_images) {
            load_rows(true);
        } else {
            load_rows(false);
        }
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            const bool real = places[u].image >= 0;
            const float scale = real ? scale_of(p.source, places[u].image) : 0.0f;
            const float shift = real ? shift_of(p.source, places[u].image) : 0.0f;
            for_lanes(lane, [&](int l) {
                HDXRAY_UNROLL
                for (int i = 0; i < kPixels; ++i) {
                    chunks[u].at(l).values[i] = multiply_add(Element<In>::get(pixels[u].at(l).word, i), scale, shift);
                }
            });
        }
        // Sums over each row of term(row of the warp, chunk, pixel of the chunk).
        const auto sum_rows = [&](float (&sums)[kRows], auto term) {
            PerLane<float> of_lane[kRows];
            HDXRAY_UNROLL
            for (int u = 0; u < kRows; ++u) {
                for_lanes(lane, [&](int l) {
                    float terms[kPixels];
                    HDXRAY_UNROLL
                    for (int i = 0; i < kPixels; ++i) terms[i] = term(u, chunks[u].at(l), i);
                    of_lane[u].at(l) = l < p.chunks ? sum_of_8(terms) : 0.0f;
                });
            }
            sum_lanes(of_lane, sums);
        };
        float mean[kRows] = {}, rstd[kRows], losses[kRows];
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) rstd[u] = 1.0f;
        if (job.norm_pix_loss) {
            sum_rows(mean, [](int, const Chunk& c, int i) { return c.values[i]; });
            apply_by_lanes(lane, mean, [size](float sum) { return mean_of(sum, size); });
            sum_rows(rstd, [&mean](int u, const Chunk& c, int i) {
                const float deviation = c.values[i] - mean[u];
                return deviation * deviation;
            });
            apply_by_lanes(lane, rstd, [size](float squares) { return rstd_of(squares, size); });
        }
        sum_rows(losses, [&mean, &rstd](int u, Chunk& c, int i) {
            c.values[i] = Element<Pred>::get(c.pred.word, i) - (c.values[i] - mean[u]) * rstd[u];
            return c.values[i] * c.values[i];
        });
        apply_by_lanes(lane, losses, [size](float squares) { return mean_of(squares, size); });
        double sum = 0.0;
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            const float loss = places[u].image >= 0 ? losses[u] : 0.0f;
            write_row(job, first_row + u, lane, loss);
            sum += static_cast<double>(loss);
        }
        if (job.grad_pred == nullptr) return sum;
        const float factor = gradient_factor(job, size);
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            if (first_row + u >= p.n_rows) break;
            for_lanes(lane, [&](int l) {
                if (l >= p.chunks) return;
                if (places[u].image >= 0) return store_grad(job, first_row + u, l, chunks[u].at(l).values, factor);
                clear_grad(job, first_row + u, l);
            });
        }
        return sum;
    }

    // Larger patches, a row at a time: pixels are read again for each sum.
    HDXRAY_HD static float many_chunks(const LossKernelJob& job, int64_t row, int lane) {
        const PixelJob& p = job.pixels;
        const auto size = static_cast<uint32_t>(p.chunks) * kPixels;
        Place place;
        find_places<1, kLayout>(p, row, lane, &place);
        const auto each_chunk = [&](auto body) {  // body(lane, chunk)
            for_lanes(lane, [&](int l) {
                for (int32_t chunk = l; chunk < p.chunks; chunk += kLanes) body(l, chunk);
            });
        };
        if (place.image < 0) {
            write_row(job, row, lane, 0.0f);
            if (job.grad_pred != nullptr) each_chunk([&](int, int32_t chunk) { clear_grad(job, row, chunk); });
            return 0.0f;
        }
        const float scale = scale_of(p.source, place.image), shift = shift_of(p.source, place.image);
        const auto targets = [&](int32_t chunk, float* to) {
            Pixels pixels;
            load_pixels(p, place, chunk, p.wide_images, pixels);
            HDXRAY_UNROLL
            for (int i = 0; i < kPixels; ++i) to[i] = multiply_add(Element<In>::get(pixels.word, i), scale, shift);
        };
        // Sum over the row of term(values of a chunk, its number), which leaves what it sums in the values.
        const auto sum_row = [&](auto term) {
            PerLane<float> sums;
            for_lanes(lane, [&](int l) { sums.at(l) = 0.0f; });
            each_chunk([&](int l, int32_t chunk) {
                float values[kPixels];
                targets(chunk, values);
                term(values, chunk);
                sums.at(l) += sum_of_8(values);
            });
            return sum_lanes(sums);
        };
        float mean = 0.0f, rstd = 1.0f;
        if (job.norm_pix_loss) {
            mean = mean_of(sum_row([](float*, int32_t) {}), size);
            const float squares = sum_row([mean](float* values, int32_t) {
                HDXRAY_UNROLL
                for (int i = 0; i < kPixels; ++i) values[i] = (values[i] - mean) * (values[i] - mean);
            });
            rstd = rstd_of(squares, size);
        }
        const float factor = job.grad_pred != nullptr ? gradient_factor(job, size) : 0.0f;
        const float errors = sum_row([&](float* values, int32_t chunk) {
            Preds pred;
            pred.load(static_cast<const Pred*>(job.pred) + element(p, row, chunk));
            HDXRAY_UNROLL
            for (int i = 0; i < kPixels; ++i) {
                values[i] = Element<Pred>::get(pred.word, i) - (values[i] - mean) * rstd;
            }
            if (job.grad_pred != nullptr) store_grad(job, row, chunk, values, factor);
            HDXRAY_UNROLL
            for (int i = 0; i < kPixels; ++i) values[i] *= values[i];
        });
        const float loss = mean_of(errors, size);
        write_row(job, row, lane, loss);
        return loss;
    }

    // Rows [first_row, first_row + kRows).
    HDXRAY_HD static double run(const LossKernelJob& job, int64_t first_row, int lane) {
        if (job.pixels.chunks <= kLanes) return few_chunks(job, first_row, lane);
        double sum = 0.0;
        HDXRAY_ROLL
        for (int64_t row = first_row; row < first_row + kRows && row < job.pixels.n_rows; ++row) {
            sum += static_cast<double>(many_chunks(job, row, lane));
        }
        return sum;
    }
};

// Any patch size, number of channels, alignment and dtype, an element at a time; pixels are read again for each sum.
struct LossAny {
    HDXRAY_HD static double run(const LossKernelJob& job, DType in, DType pred, int64_t row, int lane) {
        const PixelJob& p = job.pixels;
        const PatchSource& s = p.source;
        const uint32_t size = p.line_size.by * static_cast<uint32_t>(s.patch_size);
        Place place;
        find_places<1, PixelLayout::kEither>(p, row, lane, &place);
        const auto each_element = [&](auto body) {  // body(lane, element)
            for_lanes(lane, [&](int l) {
                for (auto e = static_cast<uint32_t>(l); e < size; e += kLanes) body(l, e);
            });
        };
        if (place.image < 0) {
            write_row(job, row, lane, 0.0f);
            if (job.grad_pred != nullptr)
                each_element([&](int, uint32_t e) { store_any(job.grad_pred, row * size + e, 0.0f, pred); });
            return 0.0;
        }
        const float scale = scale_of(s, place.image), shift = shift_of(s, place.image);
        const auto sum_row = [&](auto term) {  // of term(target, element)
            PerLane<float> sums;
            for_lanes(lane, [&](int l) { sums.at(l) = 0.0f; });
            each_element([&](int l, uint32_t e) {
                const float pixel = load_any(s.images, place.offset + PixelsAny::element_offset(p, e), in);
                sums.at(l) += term(multiply_add(pixel, scale, shift), e);
            });
            return sum_lanes(sums);
        };
        float mean = 0.0f, rstd = 1.0f;
        if (job.norm_pix_loss) {
            mean = mean_of(sum_row([](float t, uint32_t) { return t; }), size);
            rstd = rstd_of(sum_row([mean](float t, uint32_t) { return (t - mean) * (t - mean); }), size);
        }
        const float factor = job.grad_pred != nullptr ? gradient_factor(job, size) : 0.0f;
        const float errors = sum_row([&](float t, uint32_t e) {
            const float error = load_any(job.pred, row * size + e, pred) - (t - mean) * rstd;
            if (job.grad_pred != nullptr) store_any(job.grad_pred, row * size + e, error * factor, pred);
            return error * error;
        });
        const float loss = mean_of(errors, size);
        write_row(job, row, lane, loss);
        return static_cast<double>(loss);
    }
};

// --- the second stage of the reduction: one block over the warps' sums ------------------------------------------------
constexpr int kTotalThreads = 1024;

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

// --- another grad_loss ------------------------------------------------------------------------------------------------
// Few enough blocks that a launch which finds a grad_loss of 1 costs next to nothing.
constexpr int kScaleBlocks = 1024;

// A thread of `n_threads`: 16 bytes at a time where the gradient begins at 16 bytes, then what is left.
template <typename T>
struct ScaleGradient {
    static constexpr int kElements = 16 / static_cast<int>(sizeof(T));

    HDXRAY_HD static void run(const LossGradient& g, int64_t thread, int64_t n_threads) {
        const float factor = *g.grad_loss;
        if (factor == 1.0f) return;
        const int64_t end = g.cu_seqlens[g.batch], rows = end < 0 ? 0 : end < g.n_rows ? end : g.n_rows;
        const int64_t n = rows * g.row_size;
        const bool wide = reinterpret_cast<uintptr_t>(g.grad_pred) % 16 == 0;
        const int64_t chunks = wide ? n / kElements : 0;
        T* at = static_cast<T*>(g.grad_pred);
        for (int64_t c = thread; c < chunks; c += n_threads) {
            Words<16> words;
            words.load(at + c * kElements);
            float values[kElements];
            HDXRAY_UNROLL
            for (int i = 0; i < kElements; ++i) values[i] = multiply(Element<T>::get(words.word, i), factor);
            Element<T>::template pack<kElements>(words.word, values);
            words.store(at + c * kElements);
        }
        for (int64_t i = chunks * kElements + thread; i < n; i += n_threads) {
            Element<T>::store(at, i, multiply(Element<T>::load(at, i), factor));
        }
    }
};

// --- launches --------------------------------------------------------------------------------------------------------
struct LossPlan {
    LossKernelJob job;
    LaunchShape shape;
    int rows_of_warp;
    int64_t n_partials;  // one a warp
    bool wide;
};

template <typename In, typename Pred>
LossPlan plan_loss(const Patches& patches, const void* pred, bool norm_pix_loss, const float* grad_loss,
                   const LossOutputs& out) {
    using Body = LossWide<In, Pred>;
    LossPlan plan{};
    plan.job = {make_pixel_job(patches, Body::kPixels), pred, norm_pix_loss, grad_loss, out.patch_loss, out.grad_pred};
    plan.job.pixels.wide_images = chunks_are_aligned(patches, Body::kInBytes, sizeof(In));
    plan.wide = patches.source.channels == 1 && (!patches.source.packed || packed_is_wide<In>(patches)) &&
                rows_are_wide(patches, Body::kPixels, pred) && rows_are_wide(patches, Body::kPixels, out.grad_pred);
    plan.rows_of_warp = plan.wide ? Body::kRows : 1;
    plan.n_partials = (patches.n_rows + plan.rows_of_warp - 1) / plan.rows_of_warp;
    plan.shape = launch_shape(patches.n_rows, plan.rows_of_warp, 1, 1);
    return plan;
}

}  // namespace HDXRAY_SIDE
}  // namespace hdxray
