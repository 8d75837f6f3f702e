// A view on the CPU: checks, the kernel for the pixels' dtype, threads.
#include "common/view.h"

#include "common/check.h"
#include "cpu/parallel.h"
#include "cpu/vector_path.h"

namespace hdxray {
namespace {
constexpr int64_t kRowsPerChunk = 64;
}

void check_view(const Patches& patches, const View& view, const void* pixels) {
    check(view.affine || patches.batch == 0, "view: null pointer");
    check(!view.table || patches.dtype == kU8 || patches.dtype == kU16, "view: a table is for uint8 and uint16");
    check(pixels || patches.n_rows == 0, "view: null pointer");
    check(!patches.source.packed, "view: of images, not of packed patches");
}

void view(const Patches& patches, const View& view, void* pixels, int n_threads) {
    check_patches(patches);
    check_view(patches, view, pixels);
    const ViewFn kernel = kernels().view[patches.dtype];
    const ViewJob job{patches.source, view, patches.grid_h * patches.source.patch_size,
                      patches.source.grid_w * patches.source.patch_size, pixels};
    clear_slack(patches, pixels, patches.dtype);
    parallel_for(patches.real_rows(), kRowsPerChunk, n_threads,
                 [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

}  // namespace hdxray
