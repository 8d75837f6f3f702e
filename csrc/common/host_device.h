// What lets one source be a kernel's body on the GPU and, lane by lane, a loop on the CPU
// (csrc/emulation/pixels_emulation.cpp), where tests run every index of it: qualifiers, lanes of a warp, division, and
// wide accesses.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "common/qualifiers.h"

// The GPU's and the CPU's build of these inline functions differ, so each has symbols of its own.
#ifdef __CUDACC__
#define HDXRAY_SIDE gpu_side
#else
#define HDXRAY_SIDE cpu_side
#endif

namespace hdxray {
inline namespace HDXRAY_SIDE {

constexpr int kLanes = 32;  // of a warp

// For how many lanes pred(lane) holds. All lanes of the warp must come here together, with the same question.
template <typename Pred>
HDXRAY_HD inline int count_lanes(int lane, Pred pred) {
#ifdef __CUDA_ARCH__
    return __popc(__ballot_sync(0xFFFFFFFFu, pred(lane)));
#else
    int count = 0;
    (void)lane;  // the loop is all lanes
    for (int other = 0; other < kLanes; ++other) count += pred(other) ? 1 : 0;
    return count;
#endif
}

// One T for each lane: on the GPU a lane holds its own, on the CPU all 32 lie here.
template <typename T>
struct PerLane {
#ifdef __CUDA_ARCH__
    T mine;
    HDXRAY_HD T& at(int /*lane*/) { return mine; }
#else
    T all[kLanes];
    T& at(int lane) { return all[lane]; }
#endif
};

// body(lane) for every lane: on the GPU each lane runs its own, on the CPU they run in turn.
template <typename Body>
HDXRAY_HD inline void for_lanes(int lane, Body body) {
#ifdef __CUDA_ARCH__
    body(lane);
#else
    (void)lane;
    for (int each = 0; each < kLanes; ++each) body(each);
#endif
}

// The sum over lanes, the same bits in every lane: a + b is b + a, so each level of the exchange agrees on both sides.
HDXRAY_HD inline float sum_lanes(PerLane<float>& values) {
#ifdef __CUDA_ARCH__
    float sum = values.mine;
    HDXRAY_UNROLL
    for (int distance = kLanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
    return sum;
#else
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        for (int lane = 0; lane < distance; ++lane) values.all[lane] += values.all[lane + distance];
    }
    return values.all[0];
#endif
}

// The same of n values at once, whose exchanges then do not wait for each other.
template <int n>
HDXRAY_HD inline void sum_lanes(PerLane<float> (&values)[n], float (&sums)[n]) {
#ifdef __CUDA_ARCH__
    HDXRAY_UNROLL
    for (int u = 0; u < n; ++u) sums[u] = values[u].mine;
    HDXRAY_UNROLL
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        HDXRAY_UNROLL
        for (int u = 0; u < n; ++u) sums[u] += __shfl_xor_sync(0xFFFFFFFFu, sums[u], distance);
    }
#else
    for (int u = 0; u < n; ++u) sums[u] = sum_lanes(values[u]);
#endif
}

// values[u] = function(values[u]) for n <= 32 values that every lane holds: a lane computes one, and all are told. For
// functions of many instructions, as an exact division is.
template <int n, typename Function>
HDXRAY_HD inline void apply_by_lanes([[maybe_unused]] int lane, float (&values)[n], Function function) {
#ifdef __CUDA_ARCH__
    float mine = values[0];
    HDXRAY_UNROLL
    for (int u = 1; u < n; ++u) mine = lane == u ? values[u] : mine;
    mine = function(mine);
    HDXRAY_UNROLL
    for (int u = 0; u < n; ++u) values[u] = __shfl_sync(0xFFFFFFFFu, mine, u);
#else
    for (int u = 0; u < n; ++u) values[u] = function(values[u]);
#endif
}

// n / by for any 32-bit n and by >= 1, by two multiplications with magic = floor(2^64 / by) + 1. Its error, times n,
// stays below 2^64, so the quotient is exact. by == 1 has magic 0, as 2^64 would not fit.
struct Divider {
    uint32_t by;
    uint64_t magic;

    HDXRAY_HD uint32_t quotient(uint32_t n) const {
        const uint64_t low = (static_cast<uint64_t>(n) * static_cast<uint32_t>(magic)) >> 32;
        const uint64_t high = static_cast<uint64_t>(n) * static_cast<uint32_t>(magic >> 32);
        return magic != 0 ? static_cast<uint32_t>((low + high) >> 32) : n;
    }
};

inline Divider make_divider(uint32_t by) {
    return {by, by == 1 ? 0 : UINT64_MAX / by + 1};
}

// `kBytes` bytes (4, 8, 16 or a multiple of 16) as words. Both functions need the address to be a multiple of kBytes,
// or of 16 if that is less; the CPU throws otherwise, the GPU would fault.
template <int kBytes>
struct Words {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes % 16 == 0, "no such access");
    static constexpr int kStep = kBytes < 16 ? kBytes : 16;  // bytes of one access
    struct alignas(kStep) Access {
        uint32_t word[kStep / 4];
    };
    uint32_t word[kBytes / 4];

    HDXRAY_HD static void check_address([[maybe_unused]] const void* at) {
#ifndef __CUDA_ARCH__
        if (reinterpret_cast<uintptr_t>(at) % kStep != 0) throw std::logic_error("a wide access is not aligned");
#endif
    }
    HDXRAY_HD void load(const void* from) {
        check_address(from);
        HDXRAY_UNROLL
        for (int i = 0; i < kBytes / kStep; ++i) {
#ifdef __CUDA_ARCH__
            const Access access = static_cast<const Access*>(from)[i];
            HDXRAY_UNROLL
            for (int j = 0; j < kStep / 4; ++j) word[i * (kStep / 4) + j] = access.word[j];
#else
            std::memcpy(word + i * (kStep / 4), static_cast<const char*>(from) + i * kStep, kStep);
#endif
        }
    }
    HDXRAY_HD void store(void* to) const {
        check_address(to);
        HDXRAY_UNROLL
        for (int i = 0; i < kBytes / kStep; ++i) {
#ifdef __CUDA_ARCH__
            Access access;
            HDXRAY_UNROLL
            for (int j = 0; j < kStep / 4; ++j) access.word[j] = word[i * (kStep / 4) + j];
            static_cast<Access*>(to)[i] = access;
#else
            std::memcpy(static_cast<char*>(to) + i * kStep, word + i * (kStep / 4), kStep);
#endif
        }
    }
    HDXRAY_HD void clear() {
        HDXRAY_UNROLL
        for (int i = 0; i < kBytes / 4; ++i) word[i] = 0;
    }
};

}  // namespace HDXRAY_SIDE
}  // namespace hdxray
