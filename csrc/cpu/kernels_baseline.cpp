// The kernels for any machine of the architecture (SSE2 on x86-64, NEON on aarch64). No standard library templates in
// here: an inline function compiled for one instruction set must never be the copy that the linker keeps for all.
#define HDXRAY_ISA baseline
#include "cpu/kernel_table.h"

namespace hdxray {
const Kernels& baseline_kernels() {
    static constexpr Kernels table = baseline::make_table("baseline");
    return table;
}
}  // namespace hdxray
