// The mask plan of one image by one block of threads, as the GPU runs it (csrc/gpu/mask_plan.cu) and as a CPU plays it
// through for the tests (csrc/emulation/mask_plan_emulation.cpp). A `Block` brings the threads:
//
//   block.shared         a PlanShared, not initialised
//   block.each(f)        f(t) on every thread t, then a barrier
//   block.read(f)        f() on every thread, then a barrier: what decides a branch is read by all before any writes
//   block.scan()         shared.values become their exclusive prefix sums, shared.total their sum; then a barrier
//   Block::count_up(p)   ++*p, atomically
//   Block::load_word(p)  4 aligned bytes, the first one lowest
//
// A thread deals with four neighbouring patches at a time: one Philox counter gives four words.
#pragma once
#include "common/mask_ratio.h"
#include "gpu/mask_plan_image.h"

namespace hdxray {

constexpr int kPlanThreads = 512;
constexpr int kPlanRanks = 4;  // of strata 1, 1, 2, 2: the last patch that is kept, the last that is kept or predicted
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kFindThreads = 32;                            // look for one rank's digit
constexpr uint64_t kNoPlace = 0, kEveryPlace = UINT64_MAX;  // limits that none, that all are below
static_assert(kPlanThreads >= kPlanRanks * kFindThreads, "each rank needs threads of its own");

struct PlanShared {
    uint64_t values[kPlanThreads];
    uint64_t total;
    Budget budget;
    uint64_t prefix[kPlanRanks];  // digits found so far of the place of each rank
    uint64_t limit[kPlanRanks];   // the patches up to a rank are those with a place below its limit
    uint32_t rank[kPlanRanks];    // counted from 1 among the patches with the prefix; 0: settled
    uint32_t histogram[kPlanRanks][kDigits];
    uint32_t partial[kPlanRanks][kFindThreads];
    uint8_t chosen[kPlanThreads];  // of the four patches of each thread: kept in bits 0-3, predicted in bits 4-7
};

HDXRAY_HD static inline uint64_t two_counts(uint32_t high, uint32_t low) {
    return static_cast<uint64_t>(high) << 32 | low;
}
HDXRAY_HD static inline uint32_t low_count(uint64_t two) {
    return static_cast<uint32_t>(two);
}
HDXRAY_HD static inline uint32_t high_count(uint64_t two) {
    return static_cast<uint32_t>(two >> 32);
}

HDXRAY_HD static inline uint32_t stratum_of_rank(int rank) {
    return rank < kPlanRanks / 2 ? 1u : 2u;
}

// --- selection -------------------------------------------------------------------------------------------------------
struct RankState {
    uint64_t prefix[kPlanRanks];
    uint32_t rank[kPlanRanks];
    bool twin[kPlanRanks];  // same prefix as the rank before it: that one's histogram serves both
};

// One rank's entry, by an index that is not known when compiling.
template <class T>
HDXRAY_HD static inline T pick(const T (&of)[kPlanRanks], int r) {
    return r == 0 ? of[0] : r == 1 ? of[1] : r == 2 ? of[2] : of[3];
}

// By one thread. `exact`: see select_ranks.
HDXRAY_HD static inline void start_rank(PlanShared& shared, int r, int64_t k, bool exact) {
    const int64_t size = shared.budget.size[stratum_of_rank(r)];
    const bool all = exact ? k > size : k >= size;
    shared.prefix[r] = 0;
    shared.rank[r] = k <= 0 || all ? 0 : static_cast<uint32_t>(k);
    shared.limit[r] = k <= 0 ? kNoPlace : kEveryPlace;
}

template <class Block>
HDXRAY_DEVICE static inline RankState read_ranks(Block& block) {
    const PlanShared& shared = block.shared;
    return block.read([&] {
        RankState now;
        HDXRAY_UNROLL
        for (int r = 0; r < kPlanRanks; ++r) {
            now.prefix[r] = shared.prefix[r];
            now.rank[r] = shared.rank[r];
            now.twin[r] = r % 2 == 1 && shared.rank[r - r % 2] != 0 && shared.prefix[r] == shared.prefix[r - r % 2];
        }
        return now;
    });
}

// How often each digit at `shift` occurs among the patches that share each rank's prefix.
template <class Block, class Image>
HDXRAY_DEVICE static inline void count_digits(Block& block, const Image& image, const RankState& state, int shift) {
    PlanShared& shared = block.shared;
    block.each([&](int t) {
        for (int i = t; i < kPlanRanks * kDigits; i += kPlanThreads) shared.histogram[i / kDigits][i % kDigits] = 0;
    });
    const uint64_t known = shift + kDigitBits == 64 ? 0 : ~uint64_t{0} << (shift + kDigitBits);
    block.each([&](int t) {
        for (uint32_t four = static_cast<uint32_t>(t); four < image.fours(); four += kPlanThreads) {
            const uint32_t strata = image.template ranked_strata<Block>(four);
            if (strata == 0) continue;
            const Words4 keys = image.keys(four);
            HDXRAY_UNROLL
            for (uint32_t j = 0; j < 4; ++j) {
                const uint64_t place = place_of(keys.word[j], 4 * four + j);
                const uint32_t stratum = strata >> (2 * j) & 3;
                HDXRAY_UNROLL
                for (int r = 0; r < kPlanRanks; ++r) {
                    if (stratum == stratum_of_rank(r) && state.rank[r] != 0 && !state.twin[r] &&
                        ((place ^ state.prefix[r]) & known) == 0) {
                        Block::count_up(&shared.histogram[r][place >> shift & (kDigits - 1)]);
                    }
                }
            }
        }
    });
}

// Moves each rank into the digit it falls into. Each of a rank's threads has a few digits; one of them holds the rank.
template <class Block>
HDXRAY_DEVICE static inline void find_digits(Block& block, const RankState& state, int shift, bool exact) {
    PlanShared& shared = block.shared;
    constexpr int kEach = kDigits / kFindThreads;
    block.each([&](int t) {
        const int r = t / kFindThreads, part = t % kFindThreads;
        if (r >= kPlanRanks) return;
        uint32_t sum = 0;
        HDXRAY_UNROLL
        for (int i = 0; i < kEach; ++i) sum += shared.histogram[r][part * kEach + i];
        shared.partial[r][part] = sum;
    });
    block.each([&](int t) {
        const int r = t / kFindThreads, part = t % kFindThreads;
        if (r >= kPlanRanks) return;
        const uint32_t k = pick(state.rank, r);
        const int from = pick(state.twin, r) ? r - 1 : r;
        uint32_t before = 0;
        HDXRAY_UNROLL
        for (int i = 0; i < kFindThreads; ++i) before += i < part ? shared.partial[from][i] : 0;
        if (k <= before || k - before > shared.partial[from][part]) return;  // k == 0, too: that rank is settled
        int digit = part * kEach;
        for (; k - before > shared.histogram[from][digit]; ++digit) before += shared.histogram[from][digit];
        const uint64_t prefix = pick(state.prefix, r) | static_cast<uint64_t>(digit) << shift;
        // The rank is the last one with this prefix: the patches up to it are all those whose digits are no higher.
        const bool settled = shift == 0 || (!exact && k - before == shared.histogram[from][digit]);
        const uint64_t last = prefix | ((uint64_t{1} << shift) - 1);
        shared.prefix[r] = prefix;
        shared.rank[r] = settled ? 0 : k - before;
        if (settled) shared.limit[r] = last == kEveryPlace ? kEveryPlace : last + 1;
    });
}

// From the ranks that start_rank has set to their limits: a radix select of all at once, byte by byte from the top of
// (key, id). Keys may tie (the patches of a block share one), so the ids belong to it. `exact`: a limit is the place of
// its rank plus 1, so that limits compare across strata; kEveryPlace past the end.
template <class Block, class Image>
HDXRAY_DEVICE static inline void select_ranks(Block& block, const Image& image, bool exact) {
    int id_shift = 0;  // of the highest byte that ids have; all bytes between it and the key are 0
    while (id_shift < 24 && (image.patches() - 1) >> (id_shift + kDigitBits) != 0) id_shift += kDigitBits;
    HDXRAY_ROLL
    for (int shift = 64 - kDigitBits; shift >= 0; shift = shift == 32 ? id_shift : shift - kDigitBits) {
        const RankState state = read_ranks(block);
        if ((state.rank[0] | state.rank[1] | state.rank[2] | state.rank[3]) == 0) return;
        count_digits(block, image, state, shift);
        find_digits(block, state, shift, exact);
    }
}

// --- the budget ------------------------------------------------------------------------------------------------------
template <class Block, class Image>
HDXRAY_DEVICE static inline void start_budget(Block& block, const MaskPlanSpec& spec, const Image& image) {
    PlanShared& shared = block.shared;
    block.each([&](int t) {
        uint32_t inside = 0, outside = 0;
        for (uint32_t four = static_cast<uint32_t>(t); four < image.fours(); four += kPlanThreads) {
            const uint32_t strata = image.template strata<Block>(four);
            HDXRAY_UNROLL
            for (int j = 0; j < 4; ++j) {
                inside += strata >> (2 * j) & 1;
                outside += strata >> (2 * j + 1) & 1;
            }
        }
        shared.values[t] = two_counts(outside, inside);
    });
    block.scan();
    block.each([&](int t) {
        if (t != 0) return;
        shared.budget = keep_budget(spec, low_count(shared.total), high_count(shared.total));
        if (!shared.budget.lacks_one_kept()) predict_budget(spec.predict, shared.budget);
    });
}

// What a selection is asked for, in this order.
enum Question { kOneKept, kOnePredicted, kChoice };

// By one thread: sets the ranks of a question that needs an answer, else leaves none.
HDXRAY_HD static inline void ask(PlanShared& shared, int question) {
    const Budget& budget = shared.budget;
    const bool asked = question == kOneKept        ? budget.lacks_one_kept()
                       : question == kOnePredicted ? budget.one_predicted
                                                   : budget.total() > 0;
    HDXRAY_UNROLL
    for (int r = 0; r < kPlanRanks; ++r) {
        const int s = static_cast<int>(stratum_of_rank(r));
        const int64_t predicted_too = r % 2 == 1 ? budget.predict[s] : 0, kept = budget.keep[s];
        // Which stratum has the smallest place: that is the first patch of each that is not kept yet.
        const int64_t k = question == kChoice ? kept + predicted_too : r % 2 == 0 ? kept + 1 : 0;
        start_rank(shared, r, asked ? k : 0, question != kChoice);
    }
}

// By one thread, after the selection.
HDXRAY_HD static inline void answer(PlanShared& shared, int question, double predict) {
    Budget& budget = shared.budget;
    const int first = shared.limit[0] <= shared.limit[2] ? 1 : 2;
    if (question == kOneKept && budget.lacks_one_kept()) {
        keep_one(budget, first);
        predict_budget(predict, budget);
    } else if (question == kOnePredicted && budget.one_predicted) {
        budget.predict[1] = first == 1;
        budget.predict[2] = first == 2;
    }
}

// Sets shared.budget and, unless only that is wanted, the limits of what is kept and predicted.
template <class Block, class Image>
HDXRAY_DEVICE static inline void rank_patches(Block& block, const MaskPlanSpec& spec, const Image& image,
                                              bool budget_only) {
    PlanShared& shared = block.shared;
    start_budget(block, spec, image);
    HDXRAY_ROLL
    for (int question = kOneKept; question <= (budget_only ? kOneKept : kChoice); ++question) {
        block.each([&](int t) {
            if (t == 0) ask(shared, question);
        });
        select_ranks(block, image, question != kChoice);
        block.each([&](int t) {
            if (t == 0) answer(shared, question, spec.predict);
        });
    }
}

// --- emission --------------------------------------------------------------------------------------------------------
// One packed list of ids, of which an image's block writes its own part.
struct IdList {
    int32_t* ids;  // [capacity]
    int64_t capacity;
    int64_t begin, count;

    HDXRAY_HD IdList(int32_t* ids, int64_t capacity, const int32_t* cu)
        : ids(ids), capacity(capacity), begin(cu[0]), count(static_cast<int64_t>(cu[1]) - cu[0]) {}

    // Nothing is written outside, whatever the cu_seqlens say.
    HDXRAY_HD void put(uint32_t at, uint32_t id) const {
        const int64_t row = begin + at;
        if (at < count && row >= 0 && row < capacity) ids[row] = static_cast<int32_t>(id);
    }
};

struct Limits {
    uint64_t limit[kPlanRanks];
    bool by_key;  // else all or none of each stratum
};

template <class Block>
HDXRAY_DEVICE static inline Limits read_limits(Block& block) {
    return block.read([&] {
        Limits now;
        now.by_key = false;
        HDXRAY_UNROLL
        for (int r = 0; r < kPlanRanks; ++r) {
            now.limit[r] = block.shared.limit[r];
            now.by_key |= now.limit[r] != kNoPlace && now.limit[r] != kEveryPlace;
        }
        return now;
    });
}

// Ids in ascending order: a tile of 4 * kPlanThreads patches after the other, each thread's place in it by a scan.
template <class Block, class Image>
HDXRAY_DEVICE static inline void emit_ids(Block& block, const Image& image, const IdList& keep, const IdList& predict) {
    PlanShared& shared = block.shared;
    const Limits limits = read_limits(block);
    uint32_t kept = 0, predicted = 0;
    HDXRAY_ROLL
    for (uint32_t base = 0; base < image.fours(); base += kPlanThreads) {
        block.each([&](int t) {
            const uint32_t four = base + static_cast<uint32_t>(t);
            const uint32_t strata = four < image.fours() ? image.template ranked_strata<Block>(four) : 0;
            uint32_t chosen = 0, n_keep = 0, n_predict = 0;
            if (strata != 0) {
                const Words4 keys = limits.by_key ? image.keys(four) : Words4{};
                HDXRAY_UNROLL
                for (uint32_t j = 0; j < 4; ++j) {
                    const uint64_t place = place_of(keys.word[j], 4 * four + j);
                    const uint32_t stratum = strata >> (2 * j) & 3;
                    const uint64_t keep_below = stratum == 1 ? limits.limit[0] : limits.limit[2];
                    const uint64_t predict_below = stratum == 1 ? limits.limit[1] : limits.limit[3];
                    const bool is_kept = stratum != 0 && place < keep_below;
                    const bool is_predicted = stratum != 0 && !is_kept && place < predict_below;
                    chosen |= static_cast<uint32_t>(is_kept) << j | static_cast<uint32_t>(is_predicted) << (4 + j);
                    n_keep += is_kept;
                    n_predict += is_predicted;
                }
            }
            shared.chosen[t] = static_cast<uint8_t>(chosen);
            shared.values[t] = two_counts(n_predict, n_keep);
        });
        block.scan();
        block.each([&](int t) {
            const uint32_t chosen = shared.chosen[t], id = 4 * (base + static_cast<uint32_t>(t));
            uint32_t to_keep = kept + low_count(shared.values[t]);
            uint32_t to_predict = predicted + high_count(shared.values[t]);
            HDXRAY_UNROLL
            for (uint32_t j = 0; j < 4; ++j) {
                if (chosen >> j & 1) keep.put(to_keep++, id + j);
                if (chosen >> (4 + j) & 1) predict.put(to_predict++, id + j);
            }
        });
        const uint64_t total = block.read([&] { return shared.total; });
        kept += low_count(total);
        predicted += high_count(total);
    }
}

// Entries from `total` on become 0; the blocks of all images share the work.
template <class Block>
HDXRAY_DEVICE static inline void clear_slack(Block& block, int64_t b, int64_t batch, int32_t* ids, int64_t total,
                                             int64_t capacity) {
    block.each([&](int t) {
        HDXRAY_ROLL
        for (int64_t i = (total < 0 ? 0 : total) + b * kPlanThreads + t; i < capacity; i += batch * kPlanThreads) {
            ids[i] = 0;
        }
    });
}

// --- stages ----------------------------------------------------------------------------------------------------------
// Stage 1, a block for each image b: its counts, within the bounds, to keep_cu[b + 1] and predict_cu[b + 1].
template <class Block>
HDXRAY_DEVICE static inline void block_counts(Block& block, const MaskPlanSpec& spec, int64_t b, int32_t* keep_cu,
                                              int32_t* predict_cu) {
    rank_patches(block, spec, PlanImage<false>(spec, b, PlanMemory{}), true);
    block.each([&](int t) {
        if (t != 0) return;
        keep_cu[b + 1] = static_cast<int32_t>(bounded(block.shared.budget.keep_total(), spec.max_keep));
        predict_cu[b + 1] = static_cast<int32_t>(bounded(block.shared.budget.predict_total(), spec.max_predict));
    });
}

// Stage 2, one block: the counts become cu_seqlens, in place. Both are summed by one scan.
template <class Block>
HDXRAY_DEVICE static inline void block_offsets(Block& block, int64_t batch, int32_t* keep_cu, int32_t* predict_cu) {
    PlanShared& shared = block.shared;
    block.each([&](int t) {
        if (t == 0) keep_cu[0] = predict_cu[0] = 0;
    });
    uint64_t before = 0;
    for (int64_t base = 0; base < batch; base += kPlanThreads) {
        block.each([&](int t) {
            const int64_t b = base + t;
            shared.values[t] =
                b < batch ? two_counts(static_cast<uint32_t>(predict_cu[b + 1]), static_cast<uint32_t>(keep_cu[b + 1]))
                          : 0;
        });
        block.scan();
        block.each([&](int t) {
            const int64_t b = base + t;
            if (b >= batch) return;
            keep_cu[b + 1] += static_cast<int32_t>(low_count(before + shared.values[t]));
            predict_cu[b + 1] += static_cast<int32_t>(high_count(before + shared.values[t]));
        });
        before += block.read([&] { return shared.total; });
    }
}

// Stage 3, a block for each image b: its ids, and its share of the slack.
template <bool kHeld, class Block>
HDXRAY_DEVICE static inline void block_ids(Block& block, const MaskPlanSpec& spec, int64_t b, PlanMemory memory,
                                           const int32_t* keep_cu, const int32_t* predict_cu, const PlanIds& out) {
    const PlanImage<kHeld> image(spec, b, memory);
    if constexpr (kHeld) {
        block.each([&](int t) {
            HDXRAY_ROLL
            for (uint32_t four = static_cast<uint32_t>(t); four < image.fours(); four += kPlanThreads) {
                image.template hold<Block>(four);
            }
        });
    }
    rank_patches(block, spec, image, false);
    emit_ids(block, image, IdList(out.keep_ids, out.keep_capacity, keep_cu + b),
             IdList(out.predict_ids, out.predict_capacity, predict_cu + b));
    clear_slack(block, b, spec.batch, out.keep_ids, keep_cu[spec.batch], out.keep_capacity);
    clear_slack(block, b, spec.batch, out.predict_ids, predict_cu[spec.batch], out.predict_capacity);
}

}  // namespace hdxray
