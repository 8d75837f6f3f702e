// Elements of every dtype, to fp32 and back, packed into 32-bit words; the same bits on CPU and GPU (NaN payloads
// apart).
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "common/dtype.h"
#include "common/host_device.h"
#ifndef __CUDACC__
#define HDXRAY_ISA emulation  // the scalar conversions of the CPU path, under a name of their own
#include "cpu/simd.h"
#undef HDXRAY_ISA
#endif

namespace hdxray {
inline namespace HDXRAY_SIDE {

HDXRAY_HD inline float float_from_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
#endif
}

HDXRAY_HD inline uint32_t bits_from_float(float x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
#endif
}

// Two roundings, never one: bit equality with PyTorch needs it.
HDXRAY_HD inline float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;  // every file is compiled with -ffp-contract=off
#endif
}
HDXRAY_HD inline float multiply_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(__fmul_rn(a, b), c);
#else
    return a * b + c;
#endif
}

// An element's bits, for packing by hand.
HDXRAY_HD inline uint32_t bits_at(const uint8_t* p) {
    return *p;
}
HDXRAY_HD inline uint32_t bits_at(const uint16_t* p) {
    return *p;
}
HDXRAY_HD inline uint32_t bits_at(const Half* p) {
    return p->bits;
}
HDXRAY_HD inline uint32_t bits_at(const BFloat16* p) {
    return p->bits;
}
HDXRAY_HD inline uint32_t bits_at(const float* p) {
    return bits_from_float(*p);
}

// --- one element as its bits ----------------------------------------------------------------------------------------
HDXRAY_HD inline float half_to_float([[maybe_unused]] uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#elif !defined(__CUDACC__)
    const Half half{static_cast<uint16_t>(bits)};
    return emulation::load1(&half);
#else
    return 0.0f;  // the host side of a .cu file converts nothing
#endif
}

HDXRAY_HD inline uint32_t float_to_half(float x) {
#ifdef __CUDA_ARCH__
    return __half_as_ushort(__float2half_rn(x));
#elif !defined(__CUDACC__)
    Half half;
    emulation::store1(&half, x);
    return half.bits;
#else
    return static_cast<uint32_t>(x);
#endif
}

HDXRAY_HD inline uint32_t float_to_bfloat16(float x) {
#ifdef __CUDA_ARCH__
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#elif !defined(__CUDACC__)
    BFloat16 half;
    emulation::store1(&half, x);
    return half.bits;
#else
    return static_cast<uint32_t>(x);
#endif
}

// How a dtype lies in words: element i of `words`, and two or one elements into one word.
template <typename T>
struct Element;

template <>
struct Element<uint8_t> {
    HDXRAY_HD static float get(const uint32_t* words, int i) {
        return static_cast<float>((words[i / 4] >> (8 * (i % 4))) & 0xFFu);
    }
    HDXRAY_HD static float load(const void* from, int64_t i) {
        return static_cast<float>(static_cast<const uint8_t*>(from)[i]);
    }
};

template <>
struct Element<uint16_t> {
    HDXRAY_HD static float get(const uint32_t* words, int i) {
        return static_cast<float>((words[i / 2] >> (16 * (i % 2))) & 0xFFFFu);
    }
    HDXRAY_HD static float load(const void* from, int64_t i) {
        return static_cast<float>(static_cast<const uint16_t*>(from)[i]);
    }
};

template <>
struct Element<Half> {
    HDXRAY_HD static float get(const uint32_t* words, int i) {
        return half_to_float((words[i / 2] >> (16 * (i % 2))) & 0xFFFFu);
    }
    HDXRAY_HD static float load(const void* from, int64_t i) {
        return half_to_float(static_cast<const Half*>(from)[i].bits);
    }
    HDXRAY_HD static void store(void* to, int64_t i, float x) {
        static_cast<Half*>(to)[i].bits = static_cast<uint16_t>(float_to_half(x));
    }
    // values[0..n) into n / 2 words
    template <int n>
    HDXRAY_HD static void pack(uint32_t* words, const float* values) {
        HDXRAY_UNROLL
        for (int i = 0; i < n / 2; ++i) {
#ifdef __CUDA_ARCH__
            const __half2 pair = __floats2half2_rn(values[2 * i], values[2 * i + 1]);  // one instruction
            words[i] = static_cast<uint32_t>(__half_as_ushort(pair.x)) | static_cast<uint32_t>(__half_as_ushort(pair.y))
                                                                             << 16;
#else
            words[i] = float_to_half(values[2 * i]) | float_to_half(values[2 * i + 1]) << 16;
#endif
        }
    }
};

template <>
struct Element<BFloat16> {
    HDXRAY_HD static float get(const uint32_t* words, int i) {
        return float_from_bits(i % 2 ? words[i / 2] & 0xFFFF0000u : words[i / 2] << 16);
    }
    HDXRAY_HD static float load(const void* from, int64_t i) {
        return float_from_bits(static_cast<uint32_t>(static_cast<const BFloat16*>(from)[i].bits) << 16);
    }
    HDXRAY_HD static void store(void* to, int64_t i, float x) {
        static_cast<BFloat16*>(to)[i].bits = static_cast<uint16_t>(float_to_bfloat16(x));
    }
    template <int n>
    HDXRAY_HD static void pack(uint32_t* words, const float* values) {
        HDXRAY_UNROLL
        for (int i = 0; i < n / 2; ++i) {
#ifdef __CUDA_ARCH__
            const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
            words[i] = static_cast<uint32_t>(__bfloat16_as_ushort(pair.x)) |
                       static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
#else
            words[i] = float_to_bfloat16(values[2 * i]) | float_to_bfloat16(values[2 * i + 1]) << 16;
#endif
        }
    }
};

template <>
struct Element<float> {
    HDXRAY_HD static float get(const uint32_t* words, int i) { return float_from_bits(words[i]); }
    HDXRAY_HD static float load(const void* from, int64_t i) { return static_cast<const float*>(from)[i]; }
    HDXRAY_HD static void store(void* to, int64_t i, float x) { static_cast<float*>(to)[i] = x; }
    template <int n>
    HDXRAY_HD static void pack(uint32_t* words, const float* values) {
        HDXRAY_UNROLL
        for (int i = 0; i < n; ++i) words[i] = bits_from_float(values[i]);
    }
};

// A chunk's words out of pixels that do not lie aligned, one at a time; `words` must be clear before.
template <typename In, int kPixels>
HDXRAY_HD inline void pixels_one_by_one(const In* from, Words<kPixels* static_cast<int>(sizeof(In))>& words) {
    constexpr int kBits = 8 * static_cast<int>(sizeof(In)), kOfWord = 32 / kBits;
    HDXRAY_UNROLL
    for (int i = 0; i < kPixels; ++i) words.word[i / kOfWord] |= bits_at(from + i) << (kBits * (i % kOfWord));
}

// --- any dtype, chosen while running: for the paths that shape and alignment force off the wide accesses -------------
HDXRAY_HD inline float load_any(const void* from, int64_t i, DType dtype) {
    switch (dtype) {
        case kU8:
            return Element<uint8_t>::load(from, i);
        case kU16:
            return Element<uint16_t>::load(from, i);
        case kF16:
            return Element<Half>::load(from, i);
        case kBF16:
            return Element<BFloat16>::load(from, i);
        default:
            return Element<float>::load(from, i);
    }
}

HDXRAY_HD inline void store_any(void* to, int64_t i, float x, DType dtype) {
    switch (dtype) {
        case kF16:
            return Element<Half>::store(to, i, x);
        case kBF16:
            return Element<BFloat16>::store(to, i, x);
        default:
            return Element<float>::store(to, i, x);
    }
}

}  // namespace HDXRAY_SIDE
}  // namespace hdxray
