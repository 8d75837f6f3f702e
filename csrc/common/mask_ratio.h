// The mask ratio: how many patches of an image are masked, kept and predicted, in each stratum. The same on CPU and GPU;
// hdxray_fast/ops/mask_plan.py states the rules, hdxray_fast/ops/mask_ratio.py counts likewise.
//
// Functions are static: csrc/cpu/kernels_<isa>.cpp compile this header once for each instruction set, and the linker
// must not take one set's copy for all of them.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/mask_plan.h"
#include "common/qualifiers.h"

namespace hdxray {

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
