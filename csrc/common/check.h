// Argument checks of the core. hdxray_fast/_native.py has already named the argument in the caller's words; what fails
// here is a bug in that module, or a hand-made call, and must still never become a wild read or write.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

namespace hdxray {

inline void check(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

// What is wrong with packed patch ids, and where. `row` is a position in `ids` or in `cu_seqlens`.
struct PlanFault {
    enum Kind : int { kNone = 0, kCuStart = 1, kCuOrder = 2, kCuEnd = 3, kIdRange = 4, kIdOrder = 5 };
    Kind kind = kNone;
    int64_t row = 0;
    int64_t value = 0;
};

// ids: [n_rows] int32, cu_seqlens: [batch + 1] int32. Accepted: cu_seqlens from 0 to n_rows, never falling; ids of each
// image strictly ascending within [0, n_patches).
PlanFault check_packed_ids(const int32_t* ids, const int32_t* cu_seqlens, int64_t batch, int64_t n_rows,
                           int64_t n_patches);

}  // namespace hdxray
