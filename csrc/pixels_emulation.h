// The CUDA kernels' bodies run on the CPU, block by block and lane by lane, for tests on machines without a GPU.
// Pointers are the CPU's; ids and cu_seqlens may hold anything, as on a GPU.
#pragma once
#include "gather.h"

namespace hdxray {

void emulate_gather(const Patches& patches, void* rows, DType row_dtype);
void emulate_scatter(const Patches& patches, const void* grad_rows, DType row_dtype);

}  // namespace hdxray
