// What is checked of packed patches before a kernel sees them.
#include "common/patches.h"

#include <cstring>

#include "common/check.h"

namespace hdxray {

int64_t Patches::row_size() const {
    return static_cast<int64_t>(source.channels) * source.patch_size * source.patch_size;
}

int64_t Patches::real_rows() const {
    return source.cu_seqlens[batch];
}

PlanFault check_packed_ids(const int32_t* ids, const int32_t* cu_seqlens, int64_t batch, int64_t n_rows,
                           int64_t n_patches) {
    if (cu_seqlens[0] != 0) return {PlanFault::kCuStart, 0, cu_seqlens[0]};
    for (int64_t b = 0; b < batch; ++b) {
        if (cu_seqlens[b + 1] < cu_seqlens[b]) return {PlanFault::kCuOrder, b + 1, cu_seqlens[b + 1]};
    }
    if (cu_seqlens[batch] > n_rows) return {PlanFault::kCuEnd, batch, cu_seqlens[batch]};
    for (int64_t b = 0; b < batch; ++b) {
        int64_t previous = -1;
        for (int64_t i = cu_seqlens[b]; i < cu_seqlens[b + 1]; ++i) {
            const int64_t id = ids[i];
            if (id < 0 || id >= n_patches) return {PlanFault::kIdRange, i, id};
            if (id <= previous) return {PlanFault::kIdOrder, i, id};
            previous = id;
        }
    }
    return {};
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

void clear_slack(const Patches& patches, void* rows, DType dtype) {
    const int64_t element = dtype == kU8 ? 1 : dtype == kF32 ? 4 : 2;
    const int64_t row_bytes = patches.row_size() * element, slack = patches.n_rows - patches.real_rows();
    // all bits zero is zero in every dtype
    if (slack > 0) std::memset(static_cast<char*>(rows) + patches.real_rows() * row_bytes, 0, slack * row_bytes);
}

}  // namespace hdxray
