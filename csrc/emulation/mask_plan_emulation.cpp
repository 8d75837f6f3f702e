// Plays gpu/mask_plan_body.h through with a block whose threads run in turn.
#include "emulation/mask_plan_emulation.h"

#include <cstring>
#include <vector>

#include "common/check.h"
#include "gpu/mask_plan_body.h"

namespace hdxray {
namespace {

struct EmulatedBlock {
    explicit EmulatedBlock(int order) : order(order) { std::memset(&shared, 0xA5, sizeof shared); }

    PlanShared shared;  // begins as rubbish, like a GPU's
    int order;

    template <class F>
    void each(F f) {
        for (int i = 0; i < kPlanThreads; ++i) {
            f(order == 0 ? i : order == 1 ? kPlanThreads - 1 - i : i * 37 % kPlanThreads);
        }
    }
    template <class F>
    auto read(F f) {
        return f();
    }
    void scan() {
        uint64_t sum = 0;
        for (uint64_t& value : shared.values) {
            const uint64_t own = value;
            value = sum;
            sum += own;
        }
        shared.total = sum;
    }
    static void count_up(uint32_t* counter) { ++*counter; }
    static uint32_t load_word(const uint8_t* bytes) {
        uint32_t word;
        std::memcpy(&word, bytes, sizeof word);
        return word;
    }
};

}  // namespace

void emulate_mask_plan_counts(const MaskPlanSpec& spec, int32_t* keep_cu, int32_t* predict_cu, int order) {
    check_mask_plan(spec);
    for (int64_t b = 0; b < spec.batch; ++b) {
        EmulatedBlock block(order);
        block_counts(block, spec, b, keep_cu, predict_cu);
    }
    EmulatedBlock block(order);
    block_offsets(block, spec.batch, keep_cu, predict_cu);
}

void emulate_mask_plan_ids(const MaskPlanSpec& spec, const int32_t* keep_cu, const int32_t* predict_cu,
                           const PlanIds& out, int order, bool remember) {
    check_mask_plan(spec);
    check_plan_ids(spec, out);
    const uint32_t fours = four_count(patch_count(spec));
    std::vector<Words4> keys(remember ? fours : 0);
    std::vector<uint8_t> strata(remember ? fours : 0);
    for (int64_t b = 0; b < spec.batch; ++b) {
        EmulatedBlock block(order);
        if (remember) {
            block_ids<true>(block, spec, b, {keys.data(), strata.data()}, keep_cu, predict_cu, out);
        } else {
            block_ids<false>(block, spec, b, {}, keep_cu, predict_cu, out);
        }
    }
}

}  // namespace hdxray
