// Where a thread of a pixel kernel stands; for the .cu files of gather, loss and view.
#pragma once
#include "gpu/cuda.h"
#include "gpu/gather_body.h"

namespace hdxray {

constexpr int kThreads = kWarpsOfBlock * kLanes;

__device__ inline int64_t warp_of_grid() {
    return static_cast<int64_t>(blockIdx.x) * kWarpsOfBlock + threadIdx.x / kLanes;
}

__device__ inline int lane_of_warp() {
    return static_cast<int>(threadIdx.x % kLanes);
}

}  // namespace hdxray
