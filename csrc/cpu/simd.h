// Eight floats at a time: loads from every pixel type, stores to every float type. Compiled once per instruction set,
// inside that set's namespace. The arithmetic is the same on every path, lane for lane, so results are too.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#define HDXRAY_AVX2 1
#else
#define HDXRAY_AVX2 0
#endif

#include "common/dtype.h"

namespace hdxray::HDXRAY_ISA {
namespace {

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));

inline F8 splat(float x) {
    return F8{x, x, x, x, x, x, x, x};
}

inline uint32_t bits_of(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}
inline float float_of(uint32_t b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}

// --- one element -----------------------------------------------------------------------------------------------------
inline float load1(const uint8_t* p) {
    return static_cast<float>(*p);
}
inline float load1(const uint16_t* p) {
    return static_cast<float>(*p);
}
inline float load1(const float* p) {
    return *p;
}
inline float load1(const BFloat16* p) {
    return float_of(static_cast<uint32_t>(p->bits) << 16);
}
inline float load1(const Half* p) {
    const uint32_t h = p->bits, sign = (h & 0x8000u) << 16, magnitude = h & 0x7FFFu;
    if (magnitude >= 0x7C00u) return float_of(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);  // inf, nan
    if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));         // normal
    const float value = static_cast<float>(magnitude) * 0x1p-24f;                                // subnormal, exact
    return float_of(bits_of(value) | sign);
}

inline void store1(float* p, float x) {
    *p = x;
}
inline void store1(BFloat16* p, float x) {  // round to nearest, ties to even
    const uint32_t b = bits_of(x);
    p->bits = (b & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : static_cast<uint16_t>((b + 0x7FFFu + ((b >> 16) & 1u)) >> 16);
}
inline void store1(Half* p, float x) {  // round to nearest, ties to even
    const uint32_t b = bits_of(x), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7FFFFFFFu;
    uint32_t h;
    if (magnitude > 0x7F800000u) {
        h = 0x7E00u;
    } else if (magnitude >= 0x477FF000u) {
        h = 0x7C00u;  // 65520 and more round to infinity
    } else if (magnitude >= 0x38800000u) {
        const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
        h = (rounded - 0x38000000u) >> 13;
    } else {
        // Subnormal: adding 0.5 puts the unit in the last place at 2^-24, so the addition itself rounds as wanted.
        h = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
    }
    p->bits = static_cast<uint16_t>(sign | h);
}

// --- eight elements --------------------------------------------------------------------------------------------------
inline F8 load8(const float* p) {
    F8 v;
    memcpy(&v, p, 32);
    return v;
}
inline void store8(float* p, F8 v) {
    memcpy(p, &v, 32);
}

#if HDXRAY_AVX2

inline F8 load8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F8 load8(const uint16_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline F8 load8(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F8 load8(const BFloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void store8(Half* p, F8 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store8(BFloat16* p, F8 v) {
    const __m256i b = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7FC0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

#else

template <typename T>
inline F8 load8(const T* p) {
    F8 v;
    for (int i = 0; i < 8; ++i) v[i] = load1(p + i);
    return v;
}
template <typename T>
inline void store8(T* p, F8 v) {
    for (int i = 0; i < 8; ++i) store1(p + i, v[i]);
}

#endif

// The first n < 8 elements; the other lanes are zero, and are not read or written.
template <typename T>
inline F8 load_tail(const T* p, int64_t n) {
    F8 v = splat(0.0f);
    for (int64_t i = 0; i < n; ++i) v[i] = load1(p + i);
    return v;
}
template <typename T>
inline void store_tail(T* p, F8 v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) store1(p + i, v[i]);
}

// Always in this order, so that a sum does not depend on the instruction set.
inline float sum8(F8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

}  // namespace
}  // namespace hdxray::HDXRAY_ISA
