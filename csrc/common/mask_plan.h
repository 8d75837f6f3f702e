// Which patches of each image are kept and which are predicted (hdxray_fast/ops/mask_plan.py states the rules).
#pragma once
#include <cstdint>

namespace hdxray {

enum class Strategy : int { kContour = 0, kRandom = 1, kRectangle = 2, kBlock = 3 };

struct MaskPlanSpec {
    int64_t batch;
    int32_t grid_h, grid_w;
    Strategy strategy;
    double ratio_inside, ratio_outside, predict;
    uint64_t seed;
    uint32_t epoch;         // below 2^31
    const uint8_t* inside;  // [B, gh, gw] bool
    const uint8_t* valid;   // [B, gh, gw] bool
    const int64_t* index;   // [B] int64
    // Per image: what exceeds them, the highest ids, is left out.
    int64_t max_keep = INT32_MAX, max_predict = INT32_MAX;
};

// Where the ids go: packed from the start on; entries past the last one, up to the capacity, become 0.
struct PlanIds {
    int32_t* keep_ids;     // [keep_capacity] int32
    int32_t* predict_ids;  // [predict_capacity] int32
    int64_t keep_capacity, predict_capacity;
};

// Throw std::invalid_argument for what a kernel must not see.
void check_mask_plan(const MaskPlanSpec& spec);
void check_plan_ids(const MaskPlanSpec& spec, const PlanIds& out);

// Fills keep_cu and predict_cu, [B + 1] int32 each: how much room mask_plan_ids needs.
void mask_plan_counts(const MaskPlanSpec& spec, int32_t* keep_cu, int32_t* predict_cu);

// Fills `out`, ascending within each image. The two cu arrays must be what mask_plan_counts gave for the same spec
// (checked).
void mask_plan_ids(const MaskPlanSpec& spec, const int32_t* keep_cu, const int32_t* predict_cu, const PlanIds& out,
                   int n_threads);

// The same on a CUDA device, in `stream` (a cudaStream_t), without waiting: every pointer is the device's. The cu
// arrays are not checked; whatever they hold, nothing outside the capacities is written.
void mask_plan_counts_cuda(const MaskPlanSpec& spec, int32_t* keep_cu, int32_t* predict_cu, int device,
                           uintptr_t stream);
void mask_plan_ids_cuda(const MaskPlanSpec& spec, const int32_t* keep_cu, const int32_t* predict_cu, const PlanIds& out,
                        int device, uintptr_t stream);

// words: [n] uint32, written: words[i] = word i % 4 of Philox-4x32-10 at counter (c0 + i / 4, c1, c2, c3), for i < n.
void philox(uint32_t* words, int64_t n, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0,
            uint32_t key1);

}  // namespace hdxray
