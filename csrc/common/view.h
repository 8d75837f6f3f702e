// The pixels of the chosen patches as a view shows them: each image through an affine map, then a tone table. No other
// pixel of the view is ever computed. csrc/common/view_index.h defines it to the last bit.
#pragma once
#include "common/patches.h"

namespace hdxray {

constexpr int kTable8 = 256;   // entries of a tone table for uint8: one for each value
constexpr int kTable16 = 257;  // for uint16: knots at 0, 256, ..., 65536, straight lines between them

struct View {
    const float* affine;  // [B, 2, 3] f32: pixel (x, y) of the view lies at (a0 x + a1 y + a2, a3 x + a4 y + a5)
    const void* table;    // [B, kTable8] u8 or [B, kTable16] u16, as the images' dtype; null: values stay
};

// pixels: [N, C, p, p], dtype of the images, written.
void view(const Patches& patches, const View& view, void* pixels, int n_threads);

// The same on a CUDA device, in `stream` (a cudaStream_t), without waiting. Rows at or past cu_seqlens[B], and rows
// whose id lies outside the grid, are zero. Whatever the map holds, nothing outside the images is read.
void view_cuda(const Patches& patches, const View& view, void* pixels, int device, uintptr_t stream);

// Throws std::invalid_argument unless the view can be taken of these images.
void check_view(const Patches& patches, const View& view, const void* pixels);

}  // namespace hdxray
