// The mask plan of one image by one block of threads, as the GPU runs it (csrc/mask_plan.cu) and as a CPU plays it
// through for the tests (csrc/mask_plan_emulation.cpp). A `Block` brings the threads:
//
//   block.shared             a PlanShared, not initialised
//   block.each(f)            f(t) on every thread t, then a barrier
//   block.read(f)            f() on every thread, then a barrier: what decides a branch is read by all before any
//   writes block.scan()             shared.values become their exclusive prefix sums, shared.total their sum; then a
//   barrier Block::count_up(p)       ++*p, atomically Block::load_word(p)      4 aligned bytes, the first one lowest
//
// A thread deals with four neighbouring patches at a time: one Philox counter gives four words.
#pragma once
#include "mask_plan_index.h"

// nvcc sees these functions in kernels only, other compilers in the emulation only.
#ifdef __CUDACC__
#define HDXRAY_DEVICE __device__
#else
#define HDXRAY_DEVICE
#endif
#define HDXRAY_BLOCK       \
    template <class Block> \
    HDXRAY_DEVICE static inline

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
    uint64_t prefix[kPlanRanks];  // digits found so far of the place of each rank
    int64_t rank[kPlanRanks];     // counted from 1 among the patches with the prefix; 0: settled
    uint64_t limit[kPlanRanks];   // the patches up to a rank are those with a place below its limit
    int32_t histogram[kPlanRanks][kDigits];
    int32_t partial[kPlanRanks][kFindThreads];
    uint8_t chosen[kPlanThreads];  // of the four patches of each thread: kept in bits 0-3, predicted in bits 4-7
};

// Where an image's keys and strata are held, four_count(n) entries each. Null: they are made anew at every look.
struct PlanMemory {
    Words4* keys = nullptr;
    uint8_t* strata = nullptr;
};

HDXRAY_HD constexpr int64_t four_count(int64_t n_patches) {
    return (n_patches + 3) / 4;
}

HDXRAY_HD constexpr int64_t plan_memory_bytes(int64_t n_patches) {
    return four_count(n_patches) * static_cast<int64_t>(sizeof(Words4) + sizeof(uint8_t));
}

// One number for each rank, read by an index that is not known when compiling.
template <class T>
HDXRAY_HD static inline T pick(const T (&of)[kPlanRanks], int r) {
    return r == 0 ? of[0] : r == 1 ? of[1] : r == 2 ? of[2] : of[3];
}

// --- one image's patches, four at a time
// -------------------------------------------------------------------------------
class PlanImage {
  public:
    HDXRAY_DEVICE PlanImage(const MaskPlanSpec& spec, int64_t b, PlanMemory memory)
        : n_(static_cast<int64_t>(spec.grid_h) * spec.grid_w),
          valid_(spec.valid + b * n_),
          inside_(spec.inside + b * n_),
          memory_(memory),
          box_(rectangle_of(spec.grid_h, spec.grid_w)),
          grid_w_(static_cast<uint32_t>(spec.grid_w)),
          edge_(static_cast<uint32_t>(block_edge(spec.grid_h, spec.grid_w))),
          across_(static_cast<uint32_t>(blocks_along(spec.grid_w, block_edge(spec.grid_h, spec.grid_w)))),
          strategy_(spec.strategy),
          aligned_(((reinterpret_cast<uintptr_t>(valid_) | reinterpret_cast<uintptr_t>(inside_)) & 3) == 0),
          epoch_(spec.strategy == Strategy::kBlock ? spec.epoch | kBlockEpochBit : spec.epoch),
          seed_(spec.seed),
          index_(static_cast<uint64_t>(spec.index[b])) {}

    HDXRAY_DEVICE int64_t patches() const { return n_; }
    HDXRAY_DEVICE int64_t fours() const { return four_count(n_); }
    HDXRAY_DEVICE bool has_memory() const { return memory_.keys != nullptr; }

    template <class Block>
    HDXRAY_DEVICE void remember(int64_t four) const {
        memory_.strata[four] = static_cast<uint8_t>(read_strata<Block>(four));
        memory_.keys[four] = make_keys(four);
    }

    // Strata of patches 4 * four ... 4 * four + 3, two bits each; 0 past the end.
    template <class Block>
    HDXRAY_DEVICE uint32_t strata(int64_t four) const {
        return has_memory() ? memory_.strata[four] : read_strata<Block>(four);
    }
    // As patches are ranked: "random" has one stratum.
    template <class Block>
    HDXRAY_DEVICE uint32_t ranked_strata(int64_t four) const {
        const uint32_t two = strata<Block>(four);
        return strategy_ == Strategy::kRandom ? (two | two >> 1) & 0x55u : two;
    }
    HDXRAY_DEVICE Words4 keys(int64_t four) const { return has_memory() ? memory_.keys[four] : make_keys(four); }

  private:
    // Bit j: whether byte 4 * four + j is not 0.
    template <class Block>
    HDXRAY_DEVICE uint32_t read_flags(const uint8_t* bytes, int64_t four) const {
        const int64_t first = 4 * four;
        uint32_t flags = 0;
        if (aligned_ && first + 4 <= n_) {
            const uint32_t word = Block::load_word(bytes + first);
            HDXRAY_UNROLL
            for (int j = 0; j < 4; ++j) flags |= static_cast<uint32_t>((word >> (8 * j) & 0xFFu) != 0) << j;
        } else {
            HDXRAY_UNROLL
            for (int j = 0; j < 4; ++j) {
                if (first + j < n_) flags |= static_cast<uint32_t>(bytes[first + j] != 0) << j;
            }
        }
        return flags;
    }
    template <class Block>
    HDXRAY_DEVICE uint32_t read_strata(int64_t four) const {
        const uint32_t valid = read_flags<Block>(valid_, four);
        if (valid == 0) return 0;
        uint32_t inside = 0;
        if (strategy_ == Strategy::kRectangle) {
            HDXRAY_UNROLL
            for (int j = 0; j < 4; ++j) {
                const uint32_t id = static_cast<uint32_t>(4 * four + j), y = id / grid_w_;
                const bool in = in_rectangle(box_, static_cast<int32_t>(y), static_cast<int32_t>(id - y * grid_w_));
                inside |= static_cast<uint32_t>(in) << j;
            }
        } else {
            inside = read_flags<Block>(inside_, four);
        }
        uint32_t strata = 0;
        HDXRAY_UNROLL
        for (int j = 0; j < 4; ++j) strata |= stratum_of(valid >> j & 1, inside >> j & 1) << (2 * j);
        return strata;
    }
    HDXRAY_DEVICE Words4 words(uint32_t counter) const {
        return philox4(counter, epoch_, static_cast<uint32_t>(index_), static_cast<uint32_t>(index_ >> 32),
                       static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32));
    }
    HDXRAY_DEVICE Words4 make_keys(int64_t four) const {
        if (strategy_ != Strategy::kBlock) return words(static_cast<uint32_t>(four));
        Words4 keys, now{};
        uint32_t counter = UINT32_MAX;  // that of no block
        HDXRAY_UNROLL
        for (int j = 0; j < 4; ++j) {
            const uint32_t id = static_cast<uint32_t>(4 * four + j), y = id / grid_w_, x = id - y * grid_w_;
            const uint32_t block = y / edge_ * across_ + x / edge_;
            if (block / 4 != counter) {
                counter = block / 4;
                now = words(counter);
            }
            const uint32_t even = block & 2 ? now.word[2] : now.word[0], odd = block & 2 ? now.word[3] : now.word[1];
            keys.word[j] = block & 1 ? odd : even;
        }
        return keys;
    }

    int64_t n_;
    const uint8_t* valid_;   // [n]
    const uint8_t* inside_;  // [n]
    PlanMemory memory_;
    Rectangle box_;
    uint32_t grid_w_, edge_, across_;
    Strategy strategy_;
    bool aligned_;
    uint32_t epoch_;
    uint64_t seed_, index_;
};

// --- selection
// ---------------------------------------------------------------------------------------------------------
struct RankState {
    uint64_t prefix[kPlanRanks];
    int64_t rank[kPlanRanks];
    bool twin[kPlanRanks];  // same prefix as the rank before it: that one's histogram serves both
};

HDXRAY_BLOCK void start_ranks(Block& block, const Budget& budget, int64_t k0, int64_t k1, int64_t k2, int64_t k3,
                              bool exact) {
    PlanShared& shared = block.shared;
    block.each([&](int t) {
        if (t != 0) return;
        const int64_t ks[kPlanRanks] = {k0, k1, k2, k3};
        HDXRAY_UNROLL
        for (int r = 0; r < kPlanRanks; ++r) {
            const int64_t k = ks[r], size = budget.size[r < 2 ? 1 : 2];
            const bool all = exact ? k > size : k >= size;
            shared.prefix[r] = 0;
            shared.rank[r] = k <= 0 || all ? 0 : k;
            shared.limit[r] = k <= 0 ? kNoPlace : kEveryPlace;
        }
    });
}

HDXRAY_BLOCK RankState read_ranks(Block& block) {
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
HDXRAY_BLOCK void count_digits(Block& block, const PlanImage& image, const RankState& state, int shift) {
    PlanShared& shared = block.shared;
    block.each([&](int t) {
        for (int i = t; i < kPlanRanks * kDigits; i += kPlanThreads) shared.histogram[i / kDigits][i % kDigits] = 0;
    });
    const uint64_t known = shift + kDigitBits == 64 ? 0 : ~uint64_t{0} << (shift + kDigitBits);
    block.each([&](int t) {
        for (int64_t four = t; four < image.fours(); four += kPlanThreads) {
            const uint32_t strata = image.template ranked_strata<Block>(four);
            if (strata == 0) continue;
            const Words4 keys = image.keys(four);
            HDXRAY_UNROLL
            for (int j = 0; j < 4; ++j) {
                const uint64_t place = place_of(keys.word[j], static_cast<uint32_t>(4 * four + j));
                const uint32_t stratum = strata >> (2 * j) & 3;
                HDXRAY_UNROLL
                for (int r = 0; r < kPlanRanks; ++r) {
                    if (stratum == (r < 2 ? 1u : 2u) && state.rank[r] != 0 && !state.twin[r] &&
                        ((place ^ state.prefix[r]) & known) == 0) {
                        Block::count_up(&shared.histogram[r][place >> shift & (kDigits - 1)]);
                    }
                }
            }
        }
    });
}

// Moves each rank into the digit it falls into. Each of a rank's threads has a few digits; one of them holds the rank.
HDXRAY_BLOCK void find_digits(Block& block, const RankState& state, int shift, bool exact) {
    PlanShared& shared = block.shared;
    constexpr int kEach = kDigits / kFindThreads;
    block.each([&](int t) {
        const int r = t / kFindThreads, part = t % kFindThreads;
        if (r >= kPlanRanks) return;
        int32_t sum = 0;
        HDXRAY_UNROLL
        for (int i = 0; i < kEach; ++i) sum += shared.histogram[r][part * kEach + i];
        shared.partial[r][part] = sum;
    });
    block.each([&](int t) {
        const int r = t / kFindThreads, part = t % kFindThreads;
        if (r >= kPlanRanks) return;
        int64_t k = pick(state.rank, r);
        if (k == 0) return;
        const int from = pick(state.twin, r) ? r - 1 : r;
        HDXRAY_UNROLL
        for (int i = 0; i < kFindThreads; ++i) k -= i < part ? shared.partial[from][i] : 0;
        if (k <= 0 || k > shared.partial[from][part]) return;
        int digit = part * kEach;
        for (; k > shared.histogram[from][digit]; ++digit) k -= shared.histogram[from][digit];
        const uint64_t prefix = pick(state.prefix, r) | static_cast<uint64_t>(digit) << shift;
        // The rank is the last one with this prefix: the patches up to it are all those whose digits are no higher.
        const bool settled = shift == 0 || (!exact && k == shared.histogram[from][digit]);
        const uint64_t last = prefix | ((uint64_t{1} << shift) - 1);
        shared.prefix[r] = prefix;
        shared.rank[r] = settled ? 0 : k;
        if (settled) shared.limit[r] = last == kEveryPlace ? kEveryPlace : last + 1;
    });
}

// Sets shared.limit for ranks k0, k1 of stratum 1 and k2, k3 of stratum 2, counted from 1, 0 for none: a radix select
// of all four at once, byte by byte from the top of (key, id). Keys may tie (a block's patches share one), so the ids
// belong to it. `exact`: limits are the place of the rank plus 1, so that they compare across strata; kEveryPlace past
// the end.
HDXRAY_BLOCK void select_ranks(Block& block, const PlanImage& image, const Budget& budget, int64_t k0, int64_t k1,
                               int64_t k2, int64_t k3, bool exact) {
    start_ranks(block, budget, k0, k1, k2, k3, exact);
    int id_shift = 0;  // of the highest byte that ids have; all bytes between it and the key are 0
    while ((image.patches() - 1) >> (id_shift + kDigitBits) != 0) id_shift += kDigitBits;
    for (int shift = 64 - kDigitBits; shift >= 0; shift = shift == 32 ? id_shift : shift - kDigitBits) {
        const RankState state = read_ranks(block);
        if ((state.rank[0] | state.rank[1] | state.rank[2] | state.rank[3]) == 0) return;
        count_digits(block, image, state, shift);
        find_digits(block, state, shift, exact);
    }
}

// Of the patches of rank k1 in stratum 1 and k2 in stratum 2, the stratum of the one that comes first.
HDXRAY_BLOCK int first_stratum(Block& block, const PlanImage& image, const Budget& budget, int64_t k1, int64_t k2) {
    select_ranks(block, image, budget, k1, 0, k2, 0, true);
    return block.read([&] { return block.shared.limit[0] <= block.shared.limit[2] ? 1 : 2; });
}

// --- stages
// ------------------------------------------------------------------------------------------------------------
HDXRAY_BLOCK Budget block_budget(Block& block, const MaskPlanSpec& spec, const PlanImage& image) {
    PlanShared& shared = block.shared;
    block.each([&](int t) {
        uint32_t inside = 0, outside = 0;
        for (int64_t four = t; four < image.fours(); four += kPlanThreads) {
            const uint32_t strata = image.template strata<Block>(four);
            HDXRAY_UNROLL
            for (int j = 0; j < 4; ++j) {
                inside += strata >> (2 * j) & 1;
                outside += strata >> (2 * j + 1) & 1;
            }
        }
        shared.values[t] = static_cast<uint64_t>(outside) << 32 | inside;
    });
    block.scan();
    const uint64_t sizes = block.read([&] { return shared.total; });
    Budget budget = keep_budget(spec, static_cast<int64_t>(sizes & UINT32_MAX), static_cast<int64_t>(sizes >> 32));
    if (budget.lacks_one_kept()) {
        const bool both = budget.size[1] > 0 && budget.size[2] > 0;
        const int only = budget.size[1] > 0 ? 1 : 2;
        keep_one(budget, both ? first_stratum(block, image, budget, 1, 1) : only);
    }
    predict_budget(spec.predict, budget);
    return budget;
}

// Stage 1, a block for each image b: its counts, within the bounds, to keep_cu[b + 1] and predict_cu[b + 1].
HDXRAY_BLOCK void block_counts(Block& block, const MaskPlanSpec& spec, int64_t b, int32_t* keep_cu,
                               int32_t* predict_cu) {
    const PlanImage image(spec, b, PlanMemory{});
    const Budget budget = block_budget(block, spec, image);
    block.each([&](int t) {
        if (t != 0) return;
        keep_cu[b + 1] = static_cast<int32_t>(bounded(budget.keep_total(), spec.max_keep));
        predict_cu[b + 1] = static_cast<int32_t>(bounded(budget.predict_total(), spec.max_predict));
    });
}

// Stage 2, one block: the counts become cu_seqlens, in place. Both are summed in one scan, as halves of a word.
HDXRAY_BLOCK void block_offsets(Block& block, int64_t batch, int32_t* keep_cu, int32_t* predict_cu) {
    PlanShared& shared = block.shared;
    block.each([&](int t) {
        if (t == 0) keep_cu[0] = predict_cu[0] = 0;
    });
    uint64_t before = 0;
    for (int64_t base = 0; base < batch; base += kPlanThreads) {
        block.each([&](int t) {
            const int64_t b = base + t;
            shared.values[t] = b < batch ? static_cast<uint64_t>(static_cast<uint32_t>(predict_cu[b + 1])) << 32 |
                                               static_cast<uint32_t>(keep_cu[b + 1])
                                         : 0;
        });
        block.scan();
        block.each([&](int t) {
            const int64_t b = base + t;
            if (b >= batch) return;
            const uint64_t sum = before + shared.values[t];
            keep_cu[b + 1] += static_cast<int32_t>(sum & UINT32_MAX);
            predict_cu[b + 1] += static_cast<int32_t>(sum >> 32);
        });
        before += block.read([&] { return shared.total; });
    }
}

// One packed list of ids, of which an image's block writes its own part.
struct IdList {
    int32_t* ids;  // [capacity]
    int64_t capacity, begin, count;

    HDXRAY_DEVICE IdList(int32_t* ids, int64_t capacity, const int32_t* cu)
        : ids(ids), capacity(capacity), begin(cu[0]), count(static_cast<int64_t>(cu[1]) - cu[0]) {}

    // Nothing is written outside, whatever the cu_seqlens say.
    HDXRAY_DEVICE void put(int64_t at, int64_t id) const {
        if (at >= 0 && at < count && begin + at >= 0 && begin + at < capacity) {
            ids[begin + at] = static_cast<int32_t>(id);
        }
    }
};

// Entries from `total` on become 0; the blocks share the work.
HDXRAY_BLOCK void clear_slack(Block& block, int64_t b, int64_t batch, int32_t* ids, int64_t total, int64_t capacity) {
    block.each([&](int t) {
        for (int64_t i = (total < 0 ? 0 : total) + b * kPlanThreads + t; i < capacity; i += batch * kPlanThreads) {
            ids[i] = 0;
        }
    });
}

HDXRAY_BLOCK void emit_ids(Block& block, const PlanImage& image, const IdList& keep, const IdList& predict) {
    PlanShared& shared = block.shared;
    struct Limits {
        uint64_t limit[kPlanRanks];
        bool by_key;  // else all or none of each stratum
    };
    const Limits limits = block.read([&] {
        Limits now{};
        HDXRAY_UNROLL
        for (int r = 0; r < kPlanRanks; ++r) {
            now.limit[r] = shared.limit[r];
            now.by_key |= now.limit[r] != kNoPlace && now.limit[r] != kEveryPlace;
        }
        return now;
    });
    int64_t kept = 0, predicted = 0;
    for (int64_t base = 0; base < image.fours(); base += kPlanThreads) {
        block.each([&](int t) {
            const int64_t four = base + t;
            const uint32_t strata = four < image.fours() ? image.template ranked_strata<Block>(four) : 0;
            uint32_t chosen = 0, n_keep = 0, n_predict = 0;
            if (strata != 0) {
                const Words4 keys = limits.by_key ? image.keys(four) : Words4{};
                HDXRAY_UNROLL
                for (int j = 0; j < 4; ++j) {
                    const uint64_t place = place_of(keys.word[j], static_cast<uint32_t>(4 * four + j));
                    const uint32_t stratum = strata >> (2 * j) & 3;
                    const bool is_kept = stratum != 0 && place < (stratum == 1 ? limits.limit[0] : limits.limit[2]);
                    const bool is_predicted =
                        stratum != 0 && !is_kept && place < (stratum == 1 ? limits.limit[1] : limits.limit[3]);
                    chosen |= static_cast<uint32_t>(is_kept) << j | static_cast<uint32_t>(is_predicted) << (4 + j);
                    n_keep += is_kept;
                    n_predict += is_predicted;
                }
            }
            shared.chosen[t] = static_cast<uint8_t>(chosen);
            shared.values[t] = static_cast<uint64_t>(n_predict) << 32 | n_keep;
        });
        block.scan();
        block.each([&](int t) {
            const uint32_t chosen = shared.chosen[t];
            int64_t to_keep = kept + static_cast<int64_t>(shared.values[t] & UINT32_MAX);
            int64_t to_predict = predicted + static_cast<int64_t>(shared.values[t] >> 32);
            HDXRAY_UNROLL
            for (int j = 0; j < 4; ++j) {
                const int64_t id = 4 * (base + t) + j;
                if (chosen >> j & 1) keep.put(to_keep++, id);
                if (chosen >> (4 + j) & 1) predict.put(to_predict++, id);
            }
        });
        const uint64_t total = block.read([&] { return shared.total; });
        kept += static_cast<int64_t>(total & UINT32_MAX);
        predicted += static_cast<int64_t>(total >> 32);
    }
}

// Stage 3, a block for each image b: its ids, and its share of the slack.
HDXRAY_BLOCK void block_ids(Block& block, const MaskPlanSpec& spec, int64_t b, PlanMemory memory,
                            const int32_t* keep_cu, const int32_t* predict_cu, const PlanIds& out) {
    const PlanImage image(spec, b, memory);
    if (image.has_memory()) {
        block.each([&](int t) {
            for (int64_t four = t; four < image.fours(); four += kPlanThreads) image.template remember<Block>(four);
        });
    }
    Budget budget = block_budget(block, spec, image);
    if (budget.one_predicted) {
        const int stratum = first_stratum(block, image, budget, budget.keep[1] + 1, budget.keep[2] + 1);
        budget.predict[1] = stratum == 1;
        budget.predict[2] = stratum == 2;
    }
    if (budget.total() > 0) {
        select_ranks(block, image, budget, budget.keep[1], budget.keep[1] + budget.predict[1], budget.keep[2],
                     budget.keep[2] + budget.predict[2], false);
        emit_ids(block, image, IdList(out.keep_ids, out.keep_capacity, keep_cu + b),
                 IdList(out.predict_ids, out.predict_capacity, predict_cu + b));
    }
    clear_slack(block, b, spec.batch, out.keep_ids, keep_cu[spec.batch], out.keep_capacity);
    clear_slack(block, b, spec.batch, out.predict_ids, predict_cu[spec.batch], out.predict_capacity);
}

}  // namespace hdxray
