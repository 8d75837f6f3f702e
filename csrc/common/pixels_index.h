// From a packed row to a place in the images: which image owns it, which patch it is, where its pixels lie. Whatever
// ids and cu_seqlens hold, the answer is a patch inside the images or "nothing".
#pragma once
#include "common/host_device.h"
#include "common/patches.h"

namespace hdxray {
inline namespace HDXRAY_SIDE {

// What every pixel kernel is told. Passed by value: a kernel's parameters live in constant memory.
struct PixelJob {
    PatchSource source;
    int64_t n_rows;
    int32_t batch, n_patches;
    int32_t chunks;  // of a row, when lanes take kPixels pixels each
    Divider grid_w;
    Divider chunks_per_line;  // a line is one row of pixels of a patch
    Divider line_size;        // elements of a line of the packed row: patch_size * channels
    Divider channels;
    bool wide_images;  // pixels of a chunk lie aligned, so that they are read, or written, by wide accesses
};

inline PixelJob make_pixel_job(const Patches& patches, int pixels_of_chunk) {
    const PatchSource& s = patches.source;
    PixelJob job{};
    job.source = s;
    job.n_rows = patches.n_rows;
    job.batch = static_cast<int32_t>(patches.batch);
    job.n_patches = patches.grid_h * s.grid_w;
    job.chunks = s.patch_size * s.patch_size / pixels_of_chunk;
    const auto p = static_cast<uint32_t>(s.patch_size), chunk = static_cast<uint32_t>(pixels_of_chunk);
    job.grid_w = make_divider(static_cast<uint32_t>(s.grid_w));
    job.chunks_per_line = make_divider(p < chunk ? 1 : p / chunk);
    job.line_size = make_divider(p * static_cast<uint32_t>(s.channels));
    job.channels = make_divider(static_cast<uint32_t>(s.channels));
    return job;
}

// Whether every chunk of `bytes` bytes begins at a multiple of the access's size. A stride that is never taken (one
// image, one channel) does not matter; of packed patches, stride_b is from one to the next.
inline bool chunks_are_aligned(const Patches& patches, int64_t bytes, int64_t element) {
    const PatchSource& s = patches.source;
    const int64_t access = bytes < 16 ? bytes : 16;
    const auto fits = [&](int64_t stride) { return stride * element % access == 0; };
    return reinterpret_cast<uintptr_t>(s.images) % access == 0 && fits(s.stride_h) &&
           ((patches.batch <= 1 && !s.packed) || fits(s.stride_b)) && (s.channels == 1 || fits(s.stride_c));
}

// The image that owns packed row `row`: the first b with row < cu_seqlens[b + 1]; `batch` if there is none, which is so
// for slack. A search by 32 at a time: two dependent loads for up to 1023 images. Values that are no cu_seqlens at all
// lead to some image in range, or to none.
HDXRAY_HD inline int32_t image_of_row(const int32_t* cu_seqlens, int32_t batch, int64_t row, int lane) {
    int32_t low = 0, high = batch;  // the answer lies in [low, high]
    while (low < high) {
        const int32_t stride = (high - low - 1) / kLanes + 1;
        const int32_t passed = count_lanes(lane, [&](int at) {
            const int64_t b = low + (at + 1) * static_cast<int64_t>(stride) - 1;
            return b < high && cu_seqlens[b + 1] <= row;
        });
        const int64_t next = low + (passed + 1) * static_cast<int64_t>(stride) - 1;
        low += passed * stride;  // at most `high`: only so many lanes looked below it
        high = next < high ? static_cast<int32_t>(next) : high;
    }
    return low;
}

// A patch's place, or image < 0 for a row that has none.
struct Place {
    int32_t image;
    int64_t offset;  // in elements, from images to the patch's first pixel of channel 0
};

// Whether a kernel reads whole images or the patches alone (PatchSource::packed): settled while compiling where every
// register counts.
enum class PixelLayout { kImages, kPacked, kEither };

// The places of `n` consecutive rows; all lanes of the warp come here together with the same rows.
template <int n, PixelLayout kLayout>
HDXRAY_HD inline void find_places(const PixelJob& job, int64_t first_row, int lane, Place* places) {
    const PatchSource& s = job.source;
    int32_t ids[n];
    HDXRAY_UNROLL
    for (int u = 0; u < n; ++u) ids[u] = first_row + u < job.n_rows ? s.ids[first_row + u] : -1;
    int32_t image = image_of_row(s.cu_seqlens, job.batch, first_row, lane);
    HDXRAY_UNROLL
    for (int u = 0; u < n; ++u) {
        const int64_t row = first_row + u;
        // Neighbouring rows nearly always belong to one image.
        if (u > 0 && image < job.batch && row >= s.cu_seqlens[image + 1]) {
            image = image_of_row(s.cu_seqlens, job.batch, row, lane);
        }
        const bool real = image < job.batch && static_cast<uint32_t>(ids[u]) < static_cast<uint32_t>(job.n_patches);
        const int32_t id = real ? ids[u] : 0, b = real ? image : 0;
        const auto y = static_cast<int32_t>(job.grid_w.quotient(static_cast<uint32_t>(id)));
        const int32_t x = id - y * s.grid_w;
        places[u].image = real ? image : -1;
        places[u].offset = b * s.stride_b + (y * s.stride_h + x) * s.patch_size;
        if (kLayout == PixelLayout::kPacked || (kLayout == PixelLayout::kEither && s.packed)) {
            places[u].offset = (real ? row : 0) * s.stride_b;
        }
    }
}

HDXRAY_HD inline float scale_of(const PatchSource& s, int32_t image) {
    return s.scale != nullptr ? s.scale[image] : s.scale_value;
}
HDXRAY_HD inline float shift_of(const PatchSource& s, int32_t image) {
    return s.shift != nullptr ? s.shift[image] : s.shift_value;
}

// Real rows, which slack may follow.
HDXRAY_HD inline int64_t real_rows(const PixelJob& job) {
    const int64_t end = job.source.cu_seqlens[job.batch];
    return end < 0 ? 0 : end < job.n_rows ? end : job.n_rows;
}

}  // namespace HDXRAY_SIDE
}  // namespace hdxray
