// Packed patches of a batch of images, as every pixel op takes them, and what is checked of them. The kernels of each
// instruction set include this header, so nothing in here is an inline function.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace hdxray {

constexpr int kMaxPatchSize = 256;
constexpr int kMaxChannels = 3;

// Where a packed row's patch lies. Strides are in elements, the last one is 1.
struct PatchSource {
    const void* images;                    // [B, C, H, W] of any DType
    int64_t stride_b, stride_c, stride_h;  // of packed patches C * p * p, p * p, p
    int32_t channels, patch_size, grid_w;
    const int32_t* ids;         // [N] int32, local to the image
    const int32_t* cu_seqlens;  // [B + 1] int32
    const float* scale;         // [B] f32, or null: scale_value for all
    const float* shift;         // [B] f32, or null: shift_value for all
    float scale_value, shift_value;
    bool packed;  // images are the patches alone, one after another: [N, C, p, p]
};

// Packed patches of a batch of images, as the caller describes them.
struct Patches {
    PatchSource source;
    int64_t batch, n_rows;
    int32_t grid_h;
    DType dtype;  // of the images

    int64_t row_size() const;   // elements: channels * patch_size^2
    int64_t real_rows() const;  // cu_seqlens[batch]; of patches on the CPU, after check_patches
};

// What is wrong with packed patch ids, and where. `row` is a position in `ids` or in `cu_seqlens`.
struct PlanFault {
    enum Kind : int { kNone = 0, kCuStart = 1, kCuOrder = 2, kCuEnd = 3, kIdRange = 4, kIdOrder = 5 };
    Kind kind = kNone;
    int64_t row = 0;
    int64_t value = 0;
};

// ids: [n_rows] int32, cu_seqlens: [batch + 1] int32. Accepted: cu_seqlens from 0 to n_rows or less, never falling; ids
// of each image strictly ascending within [0, n_patches). Rows at or past cu_seqlens[batch] are slack, and their ids are
// not looked at.
PlanFault check_packed_ids(const int32_t* ids, const int32_t* cu_seqlens, int64_t batch, int64_t n_rows,
                           int64_t n_patches);

// Throws std::invalid_argument unless sizes are in range and pointers are there. All that can be known of patches on a
// GPU without waiting for it: there the kernels stay inside the buffers whatever ids and cu_seqlens hold.
void check_shapes(const Patches& patches);

// check_shapes, and every id and cu_seqlens entry is legal; for pointers of the CPU.
void check_patches(const Patches& patches);

// Zeros the slack of `rows` [N, C * p * p] of `dtype`; for pointers of the CPU, after check_patches.
void clear_slack(const Patches& patches, void* rows, DType dtype);

}  // namespace hdxray
