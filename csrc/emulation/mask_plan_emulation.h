// The GPU's mask plan on the CPU, one thread after the other: for tests only.
#pragma once
#include <cstdint>

#include "common/mask_plan.h"

namespace hdxray {

// mask_plan_counts_cuda and mask_plan_ids_cuda on CPU memory, same shapes and dtypes. `order`: threads run 0 forwards,
// 1 backwards, 2 interleaved; a phase whose outcome depends on it would be a race. `remember`: keys are held, as for
// grids that fit into a GPU's shared memory.
void emulate_mask_plan_counts(const MaskPlanSpec& spec, int32_t* keep_cu, int32_t* predict_cu, int order);
void emulate_mask_plan_ids(const MaskPlanSpec& spec, const int32_t* keep_cu, const int32_t* predict_cu,
                           const PlanIds& out, int order, bool remember);

}  // namespace hdxray
