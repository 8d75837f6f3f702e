// The arithmetic of a mask plan that must come out the same on CPU and GPU, as functions that both compile; nothing
// here knows of threads or memory. hdxray_fast/ops/mask_plan.py states the rules.
//
// Functions are static: csrc/cpu/kernels_<isa>.cpp compile this header once for each instruction set, and the linker
// must not take one set's copy for all of them.
#pragma once
#include <cstdint>

#include "common/qualifiers.h"

namespace hdxray {

// --- Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) --------------------------
constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct alignas(16) Words4 {
    uint32_t word[4];
};

HDXRAY_HD static inline Words4 philox4(uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3, uint32_t k0, uint32_t k1) {
    HDXRAY_UNROLL
    for (int round = 0; round < kPhiloxRounds; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
        const uint64_t a = static_cast<uint64_t>(kPhiloxM0) * x0, b = static_cast<uint64_t>(kPhiloxM1) * x2;
        x0 = static_cast<uint32_t>(b >> 32) ^ x1 ^ k0;
        x2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ k1;
        x1 = static_cast<uint32_t>(b);
        x3 = static_cast<uint32_t>(a);
    }
    return {{x0, x1, x2, x3}};
}

// --- strata ----------------------------------------------------------------------------------------------------------
// 1 inside, 2 outside, 0 not valid.
HDXRAY_HD static inline uint32_t stratum_of(bool valid, bool inside) {
    return valid ? (inside ? 1u : 2u) : 0u;
}

// The fixed box of the published code, in patches: 20 x 20 gives rows 6:16, columns 3:16. The products are exact.
struct Rectangle {
    int32_t top, bottom, left, right;  // the ends are not part of it
};

HDXRAY_HD static inline Rectangle rectangle_of(int32_t grid_h, int32_t grid_w) {
    return {static_cast<int32_t>(.25 * grid_h) + 1, static_cast<int32_t>(.75 * grid_h) + 1,
            static_cast<int32_t>(.125 * grid_w) + 1, static_cast<int32_t>(.75 * grid_w) + 1};
}

HDXRAY_HD static inline bool in_rectangle(const Rectangle& box, int32_t y, int32_t x) {
    return y >= box.top && y < box.bottom && x >= box.left && x < box.right;
}

// --- keys ------------------------------------------------------------------------------------------------------------
constexpr int kBlockEdge = 4;                     // patches
constexpr uint32_t kBlockEpochBit = 0x80000000u;  // keeps the keys of blocks apart from those of patches

HDXRAY_HD static inline int32_t block_edge(int32_t grid_h, int32_t grid_w) {
    const int32_t shorter = grid_h < grid_w ? grid_h : grid_w;
    return shorter < kBlockEdge ? shorter : kBlockEdge;
}

HDXRAY_HD static inline int32_t blocks_along(int32_t patches, int32_t edge) {
    return (patches + edge - 1) / edge;
}

// Order within a stratum: by key, then by id.
HDXRAY_HD static inline uint64_t place_of(uint32_t key, uint32_t id) {
    return static_cast<uint64_t>(key) << 32 | id;
}

}  // namespace hdxray
