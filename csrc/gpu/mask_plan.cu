// The mask plan on a GPU: a block of threads for each image. csrc/gpu/mask_plan_body.h holds the kernels' bodies.
#include "common/check.h"
#include "common/mask_plan.h"
#include "gpu/cuda.h"
#include "gpu/mask_plan_body.h"

namespace hdxray {
namespace {

constexpr int kWarps = kPlanThreads / kWarpSize;
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
constexpr int64_t kPlainSharedBytes = 48 * 1024;  // more needs cudaFuncSetAttribute

struct BlockShared {
    PlanShared plan;
    uint64_t warp_sums[kWarps];
};

// csrc/gpu/mask_plan_body.h says what is asked of it.
struct GpuBlock {
    __device__ explicit GpuBlock(BlockShared& all) : shared(all.plan), warp_sums(all.warp_sums) {}

    PlanShared& shared;
    uint64_t* warp_sums;

    template <class F>
    __device__ void each(F f) {
        f(static_cast<int>(threadIdx.x));
        __syncthreads();
    }
    template <class F>
    __device__ auto read(F f) {
        auto value = f();
        __syncthreads();
        return value;
    }
    __device__ void scan() {
        const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
        const uint64_t own = shared.values[threadIdx.x];
        uint64_t sum = own;  // of the lanes up to this one
#pragma unroll
        for (int distance = 1; distance < kWarpSize; distance *= 2) {
            const uint64_t below = __shfl_up_sync(kWholeWarp, sum, distance);
            if (lane >= distance) sum += below;
        }
        if (lane == kWarpSize - 1) warp_sums[warp] = sum;
        __syncthreads();
        uint64_t before = 0, total = 0;
#pragma unroll
        for (int i = 0; i < kWarps; ++i) {
            const uint64_t of_warp = warp_sums[i];
            before += i < warp ? of_warp : 0;
            total += of_warp;
        }
        shared.values[threadIdx.x] = before + sum - own;
        if (threadIdx.x == 0) shared.total = total;
        __syncthreads();
    }
    __device__ static void count_up(uint32_t* counter) { atomicAdd(counter, 1u); }
    __device__ static uint32_t load_word(const uint8_t* bytes) { return *reinterpret_cast<const uint32_t*>(bytes); }
};

__global__ void __launch_bounds__(kPlanThreads)
    count_kernel(const __grid_constant__ MaskPlanSpec spec, int32_t* keep_cu, int32_t* predict_cu) {
    __shared__ BlockShared shared;
    GpuBlock block(shared);
    block_counts(block, spec, blockIdx.x, keep_cu, predict_cu);
}

__global__ void __launch_bounds__(kPlanThreads) offset_kernel(int64_t batch, int32_t* keep_cu, int32_t* predict_cu) {
    __shared__ BlockShared shared;
    GpuBlock block(shared);
    block_offsets(block, batch, keep_cu, predict_cu);
}

// kHeld: with dynamic shared memory of plan_memory_bytes(n).
template <bool kHeld>
__global__ void __launch_bounds__(kPlanThreads)
    id_kernel(const __grid_constant__ MaskPlanSpec spec, const int32_t* keep_cu, const int32_t* predict_cu,
              const __grid_constant__ PlanIds out) {
    __shared__ BlockShared shared;
    extern __shared__ __align__(16) uint8_t held[];
    GpuBlock block(shared);
    const PlanMemory memory{reinterpret_cast<Words4*>(held), held + four_count(patch_count(spec)) * sizeof(Words4)};
    block_ids<kHeld>(block, spec, blockIdx.x, memory, keep_cu, predict_cu, out);
}

// How much dynamic shared memory id_kernel gets on the current device: room for the image, or none if that is too much.
size_t id_kernel_memory(const MaskPlanSpec& spec, int device) {
    int most = 0;
    cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "cudaDeviceGetAttribute");
    cudaFuncAttributes kernel;
    cuda_check(cudaFuncGetAttributes(&kernel, id_kernel<true>), "mask_plan: cudaFuncGetAttributes");
    const int64_t fixed = static_cast<int64_t>(kernel.sharedSizeBytes);
    const int64_t wanted = plan_memory_bytes(patch_count(spec));
    if (fixed + wanted > most) return 0;
    if (fixed + wanted > kPlainSharedBytes) {  // to the most there is, so that two threads cannot undo each other's
        cuda_check(cudaFuncSetAttribute(id_kernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(most - fixed)),
                   "mask_plan: cudaFuncSetAttribute");
    }
    return static_cast<size_t>(wanted);
}

}  // namespace

void mask_plan_counts_cuda(const MaskPlanSpec& spec, int32_t* keep_cu, int32_t* predict_cu, int device,
                           uintptr_t stream) {
    check_mask_plan(spec);
    check(keep_cu && predict_cu, "mask_plan: null pointer");
    const DeviceGuard guard(device);
    if (spec.batch > 0) {
        count_kernel<<<static_cast<unsigned>(spec.batch), kPlanThreads, 0, stream_of(stream)>>>(spec, keep_cu,
                                                                                                predict_cu);
        check_launch("mask_plan: count_kernel");
    }
    offset_kernel<<<1, kPlanThreads, 0, stream_of(stream)>>>(spec.batch, keep_cu, predict_cu);
    check_launch("mask_plan: offset_kernel");
}

void mask_plan_ids_cuda(const MaskPlanSpec& spec, const int32_t* keep_cu, const int32_t* predict_cu, const PlanIds& out,
                        int device, uintptr_t stream) {
    check_mask_plan(spec);
    check_plan_ids(spec, out);
    check(keep_cu && predict_cu, "mask_plan: null pointer");
    if (spec.batch == 0) return;
    const DeviceGuard guard(device);
    const size_t memory = id_kernel_memory(spec, device);
    const auto kernel = memory > 0 ? id_kernel<true> : id_kernel<false>;
    kernel<<<static_cast<unsigned>(spec.batch), kPlanThreads, memory, stream_of(stream)>>>(spec, keep_cu, predict_cu,
                                                                                           out);
    check_launch("mask_plan: id_kernel");
}

}  // namespace hdxray
