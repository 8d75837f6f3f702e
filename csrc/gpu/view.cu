// Kernel and launcher of views; csrc/gpu/view_body.h holds the kernel's body.
#include "common/check.h"
#include "common/view.h"
#include "gpu/cuda.h"
#include "gpu/pixel_launch.h"
#include "gpu/view_body.h"

namespace hdxray {
namespace {

__global__ void __launch_bounds__(kThreads) view_any(const __grid_constant__ ViewKernelJob job, void* pixels) {
    const int64_t row = warp_of_grid();
    if (row >= job.pixels.n_rows) return;
    ViewAny::run(job, pixels, row, static_cast<int>(blockIdx.y), lane_of_warp());
}

}  // namespace

void view_cuda(const Patches& patches, const View& view, void* pixels, int device, uintptr_t stream) {
    check_shapes(patches);
    check_view(patches, view, pixels);
    if (patches.n_rows == 0) return;
    const DeviceGuard guard(device);
    const ViewPlan plan = plan_view(patches, view);
    const dim3 grid(static_cast<unsigned>(plan.shape.x), static_cast<unsigned>(plan.shape.y));
    view_any<<<grid, kThreads, 0, stream_of(stream)>>>(plan.job, pixels);
    check_launch("view");
}

}  // namespace hdxray
