// The pixels of patches through a view. Patches that lie well inside the image are taken eight pixels at a time where
// there is AVX2: the same arithmetic, lane for lane, as for a pixel alone.
#pragma once
#include "common/view_index.h"
#include "cpu/gather_kernel.h"

namespace hdxray::HDXRAY_ISA {
namespace {

template <typename T>
inline void store_viewed(T* out, float value, const void* /*table*/) {
    store1(out, value);
}
inline void store_viewed(uint8_t* out, float value, const void* table) {
    const uint32_t v = round_view(value);
    *out = table ? static_cast<const uint8_t*>(table)[v] : static_cast<uint8_t>(v);
}
inline void store_viewed(uint16_t* out, float value, const void* table) {
    const uint32_t v = round_view(value);
    *out = static_cast<uint16_t>(table ? between_knots(static_cast<const uint16_t*>(table), v) : v);
}

// A patch of one channel of one image.
struct PatchView {
    const float* affine;  // of the image
    const void* table;    // of the image, or null
    int32_t width, height;
    int64_t stride_h;
    int32_t left, top;  // of the patch, pixels
};

template <typename In>
void view_patch(const PatchView& v, const In* image, In* out, int64_t p) {
    for (int64_t r = 0; r < p; ++r) {
        const auto y = static_cast<float>(v.top + r);
        for (int64_t q = 0; q < p; ++q) {
            ViewPlace place;
            float value = 0.0f;
            if (find_view_place(v.affine, static_cast<float>(v.left + q), y, v.width, v.height, place)) {
                value = view_value(place, v.width, v.height,
                                   [&](int32_t i, int32_t j) { return load1(image + i * v.stride_h + j); });
            }
            store_viewed(out + r * p + q, value, v.table);
        }
    }
}

#if HDXRAY_AVX2

// Whether every place that the patch looks at has its four pixels inside the image: the corners are the extremes, and a
// pixel's margin covers their rounding.
inline bool is_inside(const PatchView& v, int64_t p) {
    if (v.stride_h * v.height > INT32_MAX) return false;
    for (int corner = 0; corner < 4; ++corner) {
        const auto x = static_cast<float>(v.left + (corner & 1 ? p - 1 : 0));
        const auto y = static_cast<float>(v.top + (corner & 2 ? p - 1 : 0));
        const float sx = view_coordinate(v.affine, x, y), sy = view_coordinate(v.affine + 3, x, y);
        if (!(sx >= 1.0f && sx < static_cast<float>(v.width - 3) && sy >= 1.0f &&
              sy < static_cast<float>(v.height - 3)))
            return false;
    }
    return true;
}

// The four pixels around each of eight places.
struct Around8 {
    __m256 p00, p01, p10, p11;
};

// Neighbours are read together, as one word, and put into the register one by one: the hardware's own gather is slower
// on many machines, and words stored one by one and loaded together would wait for each other.
inline int pair_at(const uint8_t* from) {
    uint16_t pair;
    memcpy(&pair, from, 2);
    return pair;
}
inline int pair_at(const uint16_t* from) {
    int32_t pair;
    memcpy(&pair, from, 4);
    return pair;
}
template <typename In>
inline __m256i read_pairs(const In* from, const int32_t* at) {
    return _mm256_setr_epi32(pair_at(from + at[0]), pair_at(from + at[1]), pair_at(from + at[2]), pair_at(from + at[3]),
                             pair_at(from + at[4]), pair_at(from + at[5]), pair_at(from + at[6]),
                             pair_at(from + at[7]));
}

template <typename In>
inline Around8 read_around(const PatchView& v, const In* image, __m256i x, __m256i y) {
    constexpr int kBits = 8 * static_cast<int>(sizeof(In));
    const __m256i stride = _mm256_set1_epi32(static_cast<int32_t>(v.stride_h));
    const __m256i first = _mm256_set1_epi32((1 << kBits) - 1);
    int32_t at[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_add_epi32(_mm256_mullo_epi32(y, stride), x));
    const __m256i upper = read_pairs(image, at), lower = read_pairs(image + v.stride_h, at);
    return {_mm256_cvtepi32_ps(_mm256_and_si256(upper, first)), _mm256_cvtepi32_ps(_mm256_srli_epi32(upper, kBits)),
            _mm256_cvtepi32_ps(_mm256_and_si256(lower, first)), _mm256_cvtepi32_ps(_mm256_srli_epi32(lower, kBits))};
}

inline __m256 floats_of_bytes(__m128i bytes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}

// The low byte of each of eight values in 0..255.
inline __m128i low_bytes(__m256i values) {
    const __m128i shorts = _mm_packus_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    return _mm_packus_epi16(shorts, shorts);
}

// Eight places of a map that hardly turns lie in 16 columns and 3 lines: three loads, and a shuffle of each.
inline bool read_near(const PatchView& v, const uint8_t* image, __m256i x, __m256i y, Around8& around) {
    const int32_t x0 = _mm256_extract_epi32(x, 0), x7 = _mm256_extract_epi32(x, 7);
    const int32_t y0 = _mm256_extract_epi32(y, 0), y7 = _mm256_extract_epi32(y, 7);
    const int32_t left = x0 < x7 ? x0 : x7, top = y0 < y7 ? y0 : y7;
    const int32_t wide = x0 < x7 ? x7 - x0 : x0 - x7, high = y0 < y7 ? y7 - y0 : y0 - y7;
    if (wide > 14 || high > 1 || left + 16 > v.width) return false;
    const uint8_t* from = image + top * v.stride_h + left;
    const __m128i columns = low_bytes(_mm256_sub_epi32(x, _mm256_set1_epi32(left)));
    const __m128i both = _mm_unpacklo_epi64(columns, _mm_add_epi8(columns, _mm_set1_epi8(1)));
    const __m128i below = low_bytes(_mm256_sub_epi32(y, _mm256_set1_epi32(top)));
    const __m128i is_below = _mm_sub_epi8(_mm_setzero_si128(), below);  // 0xFF where the place lies a line lower
    __m128i line[3];
    for (int i = 0; i < 3; ++i) {
        line[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * v.stride_h));
        line[i] = _mm_shuffle_epi8(line[i], both);
    }
    const __m128i upper = _mm_blendv_epi8(line[0], line[1], is_below);
    const __m128i lower = _mm_blendv_epi8(line[1], line[2], is_below);
    around = {floats_of_bytes(upper), floats_of_bytes(_mm_unpackhi_epi64(upper, upper)), floats_of_bytes(lower),
              floats_of_bytes(_mm_unpackhi_epi64(lower, lower))};
    return true;
}
inline bool read_near(const PatchView& /*v*/, const uint16_t* /*image*/, __m256i /*x*/, __m256i /*y*/,
                      Around8& /*around*/) {
    return false;
}

inline void store_viewed8(uint8_t* out, __m256i values, const void* table) {
    const __m128i bytes = low_bytes(values);
    const auto* t = static_cast<const uint8_t*>(table);
    if (!t) return _mm_storel_epi64(reinterpret_cast<__m128i*>(out), bytes);
    const auto all = static_cast<uint64_t>(_mm_cvtsi128_si64(bytes));
    for (int i = 0; i < 8; ++i) out[i] = t[all >> (8 * i) & 0xFF];
}
inline void store_viewed8(uint16_t* out, __m256i values, const void* table) {
    uint32_t words[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), values);
    const auto* t = static_cast<const uint16_t*>(table);
    for (int i = 0; i < 8; ++i) out[i] = static_cast<uint16_t>(t ? between_knots(t, words[i]) : words[i]);
}

inline __m256 between8(__m256 from, __m256 to, __m256 share) {
    return _mm256_add_ps(from, _mm256_mul_ps(_mm256_sub_ps(to, from), share));
}

// p is a multiple of 8, and is_inside(v, p).
template <typename In>
void view_inner_patch(const PatchView& v, const In* image, In* out, int64_t p) {
    const __m256 a0 = _mm256_set1_ps(v.affine[0]), a2 = _mm256_set1_ps(v.affine[2]);
    const __m256 a3 = _mm256_set1_ps(v.affine[3]), a5 = _mm256_set1_ps(v.affine[5]);
    const __m256 lanes = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), half = _mm256_set1_ps(0.5f);
    for (int64_t r = 0; r < p; ++r) {
        const auto y = static_cast<float>(v.top + r);
        const __m256 a1y = _mm256_set1_ps(v.affine[1] * y), a4y = _mm256_set1_ps(v.affine[4] * y);
        for (int64_t q = 0; q < p; q += 8) {
            const __m256 x = _mm256_add_ps(_mm256_set1_ps(static_cast<float>(v.left + q)), lanes);
            const __m256 sx = _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(a0, x), a1y), a2);
            const __m256 sy = _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(a3, x), a4y), a5);
            const __m256 left = _mm256_floor_ps(sx), top = _mm256_floor_ps(sy);
            const __m256 fx = _mm256_sub_ps(sx, left), fy = _mm256_sub_ps(sy, top);
            const __m256i column = _mm256_cvttps_epi32(left), line = _mm256_cvttps_epi32(top);
            Around8 at;
            if (!read_near(v, image, column, line, at)) at = read_around(v, image, column, line);
            const __m256 value = between8(between8(at.p00, at.p01, fx), between8(at.p10, at.p11, fx), fy);
            store_viewed8(out + r * p + q, _mm256_cvttps_epi32(_mm256_add_ps(value, half)), v.table);
        }
    }
}

inline bool try_inner(const PatchView& v, const uint8_t* image, uint8_t* out, int64_t p) {
    if (p % 8 != 0 || !is_inside(v, p)) return false;
    view_inner_patch(v, image, out, p);
    return true;
}
inline bool try_inner(const PatchView& v, const uint16_t* image, uint16_t* out, int64_t p) {
    if (p % 8 != 0 || !is_inside(v, p)) return false;
    view_inner_patch(v, image, out, p);
    return true;
}

#endif

template <typename In>
inline bool try_inner(const PatchView& /*v*/, const In* /*image*/, In* /*out*/, int64_t /*p*/) {
    return false;
}

template <typename In>
void view_rows(const ViewJob& job, int64_t begin, int64_t end) {
    const PatchSource& s = job.from;
    const int64_t p = s.patch_size, table_size = sizeof(In) == 1 ? kTable8 : kTable16;
    In* out = static_cast<In*>(job.pixels) + begin * s.channels * p * p;
    RowCursor cursor(s, begin);
    for (int64_t row = begin; row < end; ++row) {
        cursor.offset(row);  // finds the row's image
        const int64_t id = s.ids[row];
        const auto* table = static_cast<const In*>(job.view.table);
        const PatchView v{job.view.affine + 6 * cursor.b,
                          table ? table + cursor.b * table_size : nullptr,
                          job.width,
                          job.height,
                          s.stride_h,
                          static_cast<int32_t>(id % s.grid_w * p),
                          static_cast<int32_t>(id / s.grid_w * p)};
        for (int64_t c = 0; c < s.channels; ++c, out += p * p) {
            const In* image = static_cast<const In*>(s.images) + cursor.b * s.stride_b + c * s.stride_c;
            if (!try_inner(v, image, out, p)) view_patch(v, image, out, p);
        }
    }
}

}  // namespace
}  // namespace hdxray::HDXRAY_ISA
