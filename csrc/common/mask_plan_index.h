// The arithmetic of a mask plan that must come out the same on CPU and GPU, as functions that both compile; nothing
// here knows of threads or memory. hdxray_fast/ops/mask_plan.py states the rules.
//
// Functions are static: csrc/cpu/kernels_<isa>.cpp compile this header once for each instruction set, and the linker
// must not take one set's copy for all of them.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/mask_plan.h"
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

// --- counts ----------------------------------------------------------------------------------------------------------
// floor(share * n + 0.5), a rounded product and then a rounded sum, within [0, n]. On the GPU the two are spelt out, or
// the compiler would fuse them into one rounding.
HDXRAY_HD static inline int64_t round_half_up(double share, int64_t n) {
#ifdef __CUDA_ARCH__
    const double rounded = floor(__dadd_rn(__dmul_rn(share, static_cast<double>(n)), 0.5));
#else
    const double rounded = std::floor(share * static_cast<double>(n) + 0.5);
#endif
    const auto count = static_cast<int64_t>(rounded);
    return count < 0 ? 0 : count > n ? n : count;
}

// How many patches of each stratum of one image are kept and predicted; entry 0 of the arrays is not used. Without
// initialisers, so that a GPU's shared memory can hold one.
struct Budget {
    int64_t size[3], keep[3], predict[3];
    bool one_predicted;  // no stratum's share rounds to one patch: the masked patch with the smallest key is predicted

    HDXRAY_HD int64_t total() const { return size[1] + size[2]; }
    HDXRAY_HD int64_t masked(int s) const { return size[s] - keep[s]; }
    HDXRAY_HD int64_t keep_total() const { return keep[1] + keep[2]; }
    HDXRAY_HD int64_t predict_total() const { return one_predicted ? 1 : predict[1] + predict[2]; }
    // Rounding leaves nothing to keep: the stratum that has the smallest (key, id) keeps that patch.
    HDXRAY_HD bool lacks_one_kept() const { return keep_total() == 0 && total() > 0; }
};

// The budget of the kept patches, from the number of valid patches inside and outside. "random" merges the strata here:
// one stratum, with the number masked that "contour" would mask.
HDXRAY_HD static inline Budget keep_budget(const MaskPlanSpec& spec, int64_t n_inside, int64_t n_outside) {
    Budget budget{};
    int64_t masked_inside = round_half_up(spec.ratio_inside, n_inside);
    int64_t masked_outside = round_half_up(spec.ratio_outside, n_outside);
    if (spec.strategy == Strategy::kRandom) {
        n_inside += n_outside;
        masked_inside += masked_outside;
        n_outside = masked_outside = 0;
    }
    budget.size[1] = n_inside;
    budget.size[2] = n_outside;
    budget.keep[1] = n_inside - masked_inside;
    budget.keep[2] = n_outside - masked_outside;
    return budget;
}

HDXRAY_HD static inline void keep_one(Budget& budget, int stratum) {
    budget.keep[1] = stratum == 1;
    budget.keep[2] = stratum == 2;
}

// The budget of the predicted patches; the kept ones are settled.
HDXRAY_HD static inline void predict_budget(double predict, Budget& budget) {
    budget.predict[1] = round_half_up(predict, budget.masked(1));
    budget.predict[2] = round_half_up(predict, budget.masked(2));
    budget.one_predicted =
        predict > 0 && budget.predict[1] + budget.predict[2] == 0 && budget.masked(1) + budget.masked(2) > 0;
}

HDXRAY_HD static inline int64_t bounded(int64_t count, int64_t bound) {
    return count < bound ? count : bound;
}

}  // namespace hdxray
