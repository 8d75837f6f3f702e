// gather and its transpose, scatter: rows of pixels in the element order of MAE's patchify, (row, column, channel).
#pragma once
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace hdxray::HDXRAY_ISA {
namespace {

// Walks packed rows [begin, end) in order and knows the image and the patch of each.
struct RowCursor {
    const PatchSource& s;
    int64_t b = 0;

    RowCursor(const PatchSource& source, int64_t begin) : s(source) {
        while (begin >= s.cu_seqlens[b + 1]) ++b;
    }
    float scale() const { return s.scale ? s.scale[b] : s.scale_value; }
    float shift() const { return s.shift ? s.shift[b] : s.shift_value; }
    // Offset in elements of the patch's first pixel; `row` must not fall from call to call.
    int64_t offset(int64_t row) {
        while (row >= s.cu_seqlens[b + 1]) ++b;
        if (s.packed) return row * s.channels * s.patch_size * s.patch_size;
        const int64_t id = s.ids[row], y = id / s.grid_w, x = id % s.grid_w;
        return b * s.stride_b + (y * s.stride_h + x) * s.patch_size;
    }
};

// One channel, one row of a patch: out[0..p) = pixel * scale + shift; a multiplication and an addition, never fused.
template <typename In, typename Out>
inline void convert_line(const In* in, Out* out, int64_t p, F8 scale, F8 shift) {
    int64_t q = 0;
    for (; q + 8 <= p; q += 8) store8(out + q, load8(in + q) * scale + shift);
    if (q < p) store_tail(out + q, load_tail(in + q, p - q) * scale + shift, p - q);
}

// A whole patch into a row. `p` is a compile-time constant for the common size (Fixed16), an int64_t for the others.
template <typename In, typename Out, typename P>
inline void convert_patch(const PatchSource& s, const In* first, Out* out, P p, float scale, float shift) {
    if (s.channels == 1) {
        const F8 scale8 = splat(scale), shift8 = splat(shift);
        for (int64_t r = 0; r < p; ++r) convert_line(first + r * s.stride_h, out + r * p, p, scale8, shift8);
        return;
    }
    const int64_t channels = s.channels, width = p * channels;
    const F8 one = splat(1.0f), nothing = splat(-0.0f);  // x * 1 + -0 is x, the sign of a zero included
    float line[kMaxPatchSize * kMaxChannels];
    for (int64_t r = 0; r < p; ++r) {
        for (int64_t c = 0; c < channels; ++c) {
            const In* from = first + c * s.stride_c + r * s.stride_h;
            for (int64_t q = 0; q < p; ++q) line[q * channels + c] = load1(from + q) * scale + shift;
        }
        convert_line(line, out + r * width, width, one, nothing);
    }
}

struct Fixed16 {
    constexpr operator int64_t() const { return 16; }
};

template <typename In, typename Out, typename P>
void gather_rows_of(const GatherJob& job, int64_t begin, int64_t end, P p) {
    const PatchSource& s = job.from;
    const int64_t row_size = s.channels * p * p;
    Out* out = static_cast<Out*>(job.rows) + begin * row_size;
    RowCursor cursor(s, begin);
    for (int64_t row = begin; row < end; ++row, out += row_size) {
        const In* first = static_cast<const In*>(s.images) + cursor.offset(row);
        convert_patch(s, first, out, p, cursor.scale(), cursor.shift());
    }
}

template <typename In, typename Out>
void gather_rows(const GatherJob& job, int64_t begin, int64_t end) {
    if (job.from.patch_size == 16) return gather_rows_of<In, Out>(job, begin, end, Fixed16{});
    gather_rows_of<In, Out>(job, begin, end, static_cast<int64_t>(job.from.patch_size));
}

// grad_image[pixel] = grad_row[element] * scale. Ids are unique within an image, so no pixel is written twice.
template <typename Image, typename Row>
void scatter_rows(const ScatterJob& job, int64_t begin, int64_t end) {
    const PatchSource& s = job.to;
    Image* images = static_cast<Image*>(const_cast<void*>(s.images));
    const int64_t p = s.patch_size, channels = s.channels, row_size = channels * p * p;
    RowCursor cursor(s, begin);
    for (int64_t row = begin; row < end; ++row) {
        Image* first = images + cursor.offset(row);
        const float scale = cursor.scale();
        const Row* grad = static_cast<const Row*>(job.grad_rows) + row * row_size;
        for (int64_t r = 0; r < p; ++r) {
            if (channels == 1) {
                convert_line(grad + r * p, first + r * s.stride_h, p, splat(scale), splat(-0.0f));
                continue;
            }
            for (int64_t c = 0; c < channels; ++c) {
                Image* to = first + c * s.stride_c + r * s.stride_h;
                const Row* from = grad + r * p * channels + c;
                for (int64_t q = 0; q < p; ++q) store1(to + q, load1(from + q * channels) * scale);
            }
        }
    }
}

}  // namespace
}  // namespace hdxray::HDXRAY_ISA
