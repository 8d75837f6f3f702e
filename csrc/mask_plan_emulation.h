// The GPU's mask plan on the CPU, one thread after the other: for tests only.
#pragma once
#include <cstdint>

#include "mask_plan.h"

namespace hdxray {

// What the three kernels of csrc/mask_plan.cu leave in keep_cu, predict_cu [B + 1] and `out`, whose lists need
// capacities of batch * max_keep and batch * max_predict to hold everything. `order`: threads run 0 forwards, 1
// backwards, 2 interleaved; a phase whose outcome depends on it would be a race. `remember`: keys are held, as for
// grids that fit into a GPU's shared memory.
void emulate_mask_plan(const MaskPlanSpec& spec, int32_t* keep_cu, int32_t* predict_cu, const PlanIds& out, int order,
                       bool remember);

}  // namespace hdxray
