#include "common/check.h"

namespace hdxray {

PlanFault check_packed_ids(const int32_t* ids, const int32_t* cu_seqlens, int64_t batch, int64_t n_rows,
                           int64_t n_patches) {
    if (cu_seqlens[0] != 0) return {PlanFault::kCuStart, 0, cu_seqlens[0]};
    for (int64_t b = 0; b < batch; ++b) {
        if (cu_seqlens[b + 1] < cu_seqlens[b]) return {PlanFault::kCuOrder, b + 1, cu_seqlens[b + 1]};
    }
    if (cu_seqlens[batch] != n_rows) return {PlanFault::kCuEnd, batch, cu_seqlens[batch]};
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

}  // namespace hdxray
