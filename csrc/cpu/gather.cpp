// gather and scatter on the CPU: checks, the kernel for the two dtypes, threads.
#include "common/gather.h"

#include "common/check.h"
#include "cpu/parallel.h"
#include "cpu/vector_path.h"

namespace hdxray {
namespace {
constexpr int64_t kRowsPerChunk = 64;
}

void gather(const Patches& patches, void* rows, DType row_dtype, int n_threads) {
    check_patches(patches);
    check(row_dtype >= 0 && row_dtype < kNumDTypes, "gather: unknown dtype code of the rows");
    const GatherFn kernel = kernels().gather[patches.dtype][row_dtype];
    check(kernel, "gather: this pair of dtypes is not supported");
    check(rows || patches.n_rows == 0, "gather: null pointer");
    const GatherJob job{patches.source, rows};
    clear_slack(patches, rows, row_dtype);
    parallel_for(patches.real_rows(), kRowsPerChunk, n_threads,
                 [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void scatter(const Patches& patches, const void* grad_rows, DType row_dtype, int n_threads) {
    check_patches(patches);
    check(row_dtype >= 0 && row_dtype < kNumDTypes, "scatter: unknown dtype code of the rows");
    const ScatterFn kernel = kernels().scatter[patches.dtype][row_dtype];
    check(kernel, "scatter: this pair of dtypes is not supported");
    check(grad_rows || patches.n_rows == 0, "scatter: null pointer");
    const ScatterJob job{patches.source, grad_rows};
    parallel_for(patches.real_rows(), kRowsPerChunk, n_threads,
                 [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

}  // namespace hdxray
