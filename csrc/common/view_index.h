// A view's arithmetic, the same bits on CPU and GPU: every product and every sum is rounded to fp32 on its own.
//
// Pixel (x, y) of the view, x the column, lies at (sx, sy) = (a0 x + a1 y + a2, a3 x + a4 y + a5) in the image, sums
// from left to right. With x0 = floor(sx), fx = sx - x0, likewise y, and p(i, j) the pixel in row i and column j, 0
// outside the image:
//
//   top    = p(y0, x0)     + (p(y0, x0 + 1)     - p(y0, x0))     fx
//   bottom = p(y0 + 1, x0) + (p(y0 + 1, x0 + 1) - p(y0 + 1, x0)) fx
//   value  = top + (bottom - top) fy
//
// of integers floor(value + 0.5), then the table. (cv2.warpAffine with INTER_LINEAR rounds sx and sy to 1/32 of a pixel
// and weights to 2^-15.)
//
// Functions are static: csrc/cpu/kernels_<isa>.cpp compile this header once for each instruction set, and the linker
// must not take one set's copy for all of them.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/qualifiers.h"

namespace hdxray {

HDXRAY_HD static inline float view_product(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;  // every file is compiled with -ffp-contract=off
#endif
}

HDXRAY_HD static inline float view_sum(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

// One coordinate of the image, by three numbers of the map.
HDXRAY_HD static inline float view_coordinate(const float* a, float x, float y) {
    return view_sum(view_sum(view_product(a[0], x), view_product(a[1], y)), a[2]);
}

// The upper left one of the four pixels that a place lies between, and how far beyond it the place is.
struct ViewPlace {
    int32_t x, y;
    float fx, fy;
};

// Whether any of the four pixels lies in the image; not so for coordinates that are no number.
HDXRAY_HD static inline bool find_view_place(const float* affine, float x, float y, int32_t width, int32_t height,
                                             ViewPlace& place) {
    const float sx = view_coordinate(affine, x, y), sy = view_coordinate(affine + 3, x, y);
    if (!(sx > -1.0f && sx < static_cast<float>(width) && sy > -1.0f && sy < static_cast<float>(height))) return false;
    const float left = floorf(sx), top = floorf(sy);
    place = {static_cast<int32_t>(left), static_cast<int32_t>(top), sx - left, sy - top};
    return true;
}

HDXRAY_HD static inline float view_between(float from, float to, float share) {
    return view_sum(from, view_product(view_sum(to, -from), share));
}

// The value at a place; pixel(y, x) reads one that lies in the image.
template <typename Pixel>
HDXRAY_HD static inline float view_value(const ViewPlace& at, int32_t width, int32_t height, Pixel pixel) {
    const bool left = at.x >= 0, right = at.x + 1 < width, up = at.y >= 0, down = at.y + 1 < height;
    const float p00 = up && left ? pixel(at.y, at.x) : 0.0f, p01 = up && right ? pixel(at.y, at.x + 1) : 0.0f;
    const float p10 = down && left ? pixel(at.y + 1, at.x) : 0.0f;
    const float p11 = down && right ? pixel(at.y + 1, at.x + 1) : 0.0f;
    return view_between(view_between(p00, p01, at.fx), view_between(p10, p11, at.fx), at.fy);
}

HDXRAY_HD static inline uint32_t round_view(float value) {
    return static_cast<uint32_t>(view_sum(value, 0.5f));  // never negative
}

// A uint16 value through the knots of its image: integers throughout.
HDXRAY_HD static inline uint32_t between_knots(const uint16_t* table, uint32_t value) {
    const int32_t from = table[value >> 8], to = table[(value >> 8) + 1];
    return static_cast<uint32_t>(from + (((to - from) * static_cast<int32_t>(value & 255u) + 128) >> 8));
}

}  // namespace hdxray
