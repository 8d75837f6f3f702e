// The patches of one image as a GPU's threads look at them, four neighbours at a time; csrc/gpu/mask_plan_body.h says
// what a `Block` is.
#pragma once
#include "common/mask_plan.h"
#include "common/mask_plan_index.h"
#include "common/qualifiers.h"

namespace hdxray {

// Where an image's keys and strata are held, four_count(n) entries each.
struct PlanMemory {
    Words4* keys;
    uint8_t* strata;
};

HDXRAY_HD constexpr uint32_t four_count(uint32_t n_patches) {
    return n_patches / 4 + (n_patches % 4 != 0);
}

HDXRAY_HD constexpr int64_t plan_memory_bytes(uint32_t n_patches) {
    return four_count(n_patches) * static_cast<int64_t>(sizeof(Words4) + sizeof(uint8_t));
}

HDXRAY_HD static inline uint32_t patch_count(const MaskPlanSpec& spec) {
    return static_cast<uint32_t>(spec.grid_h) * static_cast<uint32_t>(spec.grid_w);
}

// kHeld: keys and strata are held in memory, and `hold` comes first. Otherwise they are made anew at every look.
template <bool kHeld>
class PlanImage {
  public:
    HDXRAY_DEVICE PlanImage(const MaskPlanSpec& spec, int64_t b, PlanMemory memory)
        : spec_(spec),
          valid_(spec.valid + b * patch_count(spec)),
          inside_(spec.inside + b * patch_count(spec)),
          index_(static_cast<uint64_t>(spec.index[b])),
          memory_(memory) {}

    HDXRAY_DEVICE uint32_t patches() const { return patch_count(spec_); }
    HDXRAY_DEVICE uint32_t fours() const { return four_count(patches()); }

    template <class Block>
    HDXRAY_DEVICE void hold(uint32_t four) const {
        memory_.strata[four] = static_cast<uint8_t>(read_strata<Block>(four));
        memory_.keys[four] = make_keys(four);
    }

    // Strata of patches 4 * four ... 4 * four + 3, two bits each; 0 past the end.
    template <class Block>
    HDXRAY_DEVICE uint32_t strata(uint32_t four) const {
        if constexpr (kHeld) {
            return memory_.strata[four];
        } else {
            return read_strata<Block>(four);
        }
    }
    // As patches are ranked: "random" has one stratum.
    template <class Block>
    HDXRAY_DEVICE uint32_t ranked_strata(uint32_t four) const {
        const uint32_t two = strata<Block>(four);
        return spec_.strategy == Strategy::kRandom ? (two | two >> 1) & 0x55u : two;
    }
    HDXRAY_DEVICE Words4 keys(uint32_t four) const {
        if constexpr (kHeld) {
            return memory_.keys[four];
        } else {
            return make_keys(four);
        }
    }

  private:
    // Bit j: whether byte 4 * four + j is not 0.
    template <class Block>
    HDXRAY_DEVICE uint32_t read_flags(const uint8_t* bytes, uint32_t four) const {
        const uint32_t first = 4 * four, end = patches();
        uint32_t flags = 0;
        if ((reinterpret_cast<uintptr_t>(bytes) & 3) == 0 && first + 4 <= end) {
            const uint32_t word = Block::load_word(bytes + first);
            HDXRAY_UNROLL
            for (int j = 0; j < 4; ++j) flags |= static_cast<uint32_t>((word >> (8 * j) & 0xFFu) != 0) << j;
        } else {
            HDXRAY_ROLL
            for (uint32_t j = 0; j < 4; ++j) {
                if (first + j < end) flags |= static_cast<uint32_t>(bytes[first + j] != 0) << j;
            }
        }
        return flags;
    }

    template <class Block>
    HDXRAY_DEVICE uint32_t read_strata(uint32_t four) const {
        const uint32_t valid = read_flags<Block>(valid_, four);
        uint32_t inside = 0;
        if (spec_.strategy == Strategy::kRectangle) {
            const Rectangle box = rectangle_of(spec_.grid_h, spec_.grid_w);
            const uint32_t grid_w = static_cast<uint32_t>(spec_.grid_w);
            HDXRAY_ROLL
            for (uint32_t j = 0; j < 4; ++j) {
                const uint32_t id = 4 * four + j, y = id / grid_w;
                const bool in = in_rectangle(box, static_cast<int32_t>(y), static_cast<int32_t>(id - y * grid_w));
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

    // Which of the image's words is the key of patch `id`: its own, or that of its block.
    HDXRAY_DEVICE uint32_t word_of(uint32_t id) const {
        if (spec_.strategy != Strategy::kBlock) return id;
        const int32_t edge = block_edge(spec_.grid_h, spec_.grid_w);
        const uint32_t across = static_cast<uint32_t>(blocks_along(spec_.grid_w, edge));
        const uint32_t grid_w = static_cast<uint32_t>(spec_.grid_w), by = static_cast<uint32_t>(edge);
        const uint32_t y = id / grid_w, x = id - y * grid_w;
        return y / by * across + x / by;
    }

    // One turn where each patch has its own key; up to four where four patches lie in blocks of different counters.
    HDXRAY_DEVICE Words4 make_keys(uint32_t four) const {
        const uint32_t epoch = spec_.strategy == Strategy::kBlock ? spec_.epoch | kBlockEpochBit : spec_.epoch;
        Words4 keys{};
        uint32_t words[4];
        HDXRAY_UNROLL
        for (uint32_t j = 0; j < 4; ++j) words[j] = word_of(4 * four + j);
        uint32_t next = words[0] / 4, made = 0;
        HDXRAY_ROLL
        while (made != 0xFu) {
            const uint32_t counter = next;
            const Words4 now =
                philox4(counter, epoch, static_cast<uint32_t>(index_), static_cast<uint32_t>(index_ >> 32),
                        static_cast<uint32_t>(spec_.seed), static_cast<uint32_t>(spec_.seed >> 32));
            HDXRAY_UNROLL
            for (uint32_t j = 0; j < 4; ++j) {
                if (words[j] / 4 == counter) {
                    const uint32_t even = words[j] & 2 ? now.word[2] : now.word[0];
                    const uint32_t odd = words[j] & 2 ? now.word[3] : now.word[1];
                    keys.word[j] = words[j] & 1 ? odd : even;
                    made |= 1u << j;
                } else if ((made >> j & 1) == 0) {
                    next = words[j] / 4;
                }
            }
        }
        return keys;
    }

    const MaskPlanSpec& spec_;
    const uint8_t* valid_;   // [n]
    const uint8_t* inside_;  // [n]
    uint64_t index_;
    PlanMemory memory_;
};

}  // namespace hdxray
