#include "common/gather.h"

#include "common/check.h"
#include "cpu/parallel.h"
#include "cpu/vector_path.h"

namespace hdxray {
namespace {
constexpr int64_t kRowsPerChunk = 64;
}

void check_shapes(const Patches& patches) {
    const PatchSource& s = patches.source;
    check(patches.batch >= 0 && patches.batch <= INT32_MAX - 64 && patches.n_rows >= 0 && patches.grid_h > 0 &&
              s.grid_w > 0,
          "patches: sizes out of range");
    check(static_cast<int64_t>(patches.grid_h) * s.grid_w <= INT32_MAX, "patches: more than int32 ids can name");
    check(s.patch_size >= 1 && s.patch_size <= kMaxPatchSize, "patches: patch size out of range");
    check(s.channels >= 1 && s.channels <= kMaxChannels, "patches: number of channels out of range");
    check(s.stride_b >= 0 && s.stride_c >= 0 && s.stride_h >= 0, "patches: negative stride");
    check(patches.dtype >= 0 && patches.dtype < kNumDTypes, "patches: unknown dtype code of the images");
    check(s.cu_seqlens != nullptr, "patches: null pointer");
    check(patches.n_rows == 0 || s.ids, "patches: null pointer");
    check(patches.n_rows == 0 || patches.batch == 0 || s.images, "patches: null pointer");
}

void check_patches(const Patches& patches) {
    check_shapes(patches);
    const PatchSource& s = patches.source;
    const PlanFault fault = check_packed_ids(s.ids, s.cu_seqlens, patches.batch, patches.n_rows,
                                             static_cast<int64_t>(patches.grid_h) * s.grid_w);
    check(fault.kind == PlanFault::kNone, "patches: ids or cu_seqlens out of range");
}

void gather(const Patches& patches, void* rows, DType row_dtype, int n_threads) {
    check_patches(patches);
    check(row_dtype >= 0 && row_dtype < kNumDTypes, "gather: unknown dtype code of the rows");
    const GatherFn kernel = kernels().gather[patches.dtype][row_dtype];
    check(kernel, "gather: this pair of dtypes is not supported");
    check(rows || patches.n_rows == 0, "gather: null pointer");
    const GatherJob job{patches.source, rows};
    parallel_for(patches.n_rows, kRowsPerChunk, n_threads,
                 [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void scatter(const Patches& patches, const void* grad_rows, DType row_dtype, int n_threads) {
    check_patches(patches);
    check(row_dtype >= 0 && row_dtype < kNumDTypes, "scatter: unknown dtype code of the rows");
    const ScatterFn kernel = kernels().scatter[patches.dtype][row_dtype];
    check(kernel, "scatter: this pair of dtypes is not supported");
    check(grad_rows || patches.n_rows == 0, "scatter: null pointer");
    const ScatterJob job{patches.source, grad_rows};
    parallel_for(patches.n_rows, kRowsPerChunk, n_threads,
                 [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

}  // namespace hdxray
