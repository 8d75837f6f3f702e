// The kernels for AVX2 + FMA + F16C. No standard library templates in here: an inline function
// compiled for one instruction set must never be the copy that the linker keeps for all.
#define HDXRAY_ISA avx2
#include "cpu/kernel_table.h"

namespace hdxray {
const Kernels& avx2_kernels() {
    static constexpr Kernels table = avx2::make_table("avx2");
    return table;
}
}  // namespace hdxray
