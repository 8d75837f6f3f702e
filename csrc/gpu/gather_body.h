// The bodies of the gather and scatter kernels, and how many warps run them.
//
// Wide path, for patches whose lines are a whole number of chunks: a lane takes one chunk of kPixels pixels and every
// channel of them, and a warp takes the same 32 chunks of kRows consecutive rows, all loads before the first use. A
// chunk is what makes 16 bytes of the packed row: lanes side by side store 512 bytes without a gap. Of uint8 pixels
// that is 8 or 4 bytes a lane; two or four lanes read the 16 bytes of a patch's line in one access, so no sector is
// read twice. (A lane that read 16 bytes would write 32 or 64, in halves or quarters of sectors, or had to swap words
// with its neighbours.)
//
// What has to move, for 16 x 16 uint8 patches to bf16: 512 bytes are written a row. Its 256 pixels are 16 lines of 16
// bytes, each half a 32-byte sector, so 512 bytes are read unless the patch beside it in the same sector (ids 2k and
// 2k + 1) is kept as well, and 64-byte bursts of the memory may double that. At the usual 10 % kept that is 1024 bytes
// a row, and no kernel can do with less; with all patches kept it is 768. ids, cu_seqlens, scale and shift add 4 bytes.
#pragma once
#include "common/pixel_values.h"
#include "common/pixels_index.h"

namespace hdxray {
inline namespace HDXRAY_SIDE {

constexpr int kWarpsOfBlock = 8;

// Rows that a warp of the wide path has in flight: as many as 64 bytes of pixels a lane allow, at most four.
template <typename Pixel, int kPixels, int kChannels>
constexpr int rows_of_warp() {
    constexpr int fit = 64 / static_cast<int>(sizeof(Pixel) * kPixels * kChannels);
    return fit < 1 ? 1 : fit > 4 ? 4 : fit;
}

template <typename In, typename Out, int kChannels, PixelLayout kLayout = PixelLayout::kImages>
struct GatherWide {
    static constexpr int kPixels = 16 / static_cast<int>(sizeof(Out));
    static constexpr int kRows = rows_of_warp<In, kPixels, kChannels>();
    static constexpr int kValues = kPixels * kChannels;
    static constexpr int kInBytes = kPixels * static_cast<int>(sizeof(In));
    static constexpr int kOutBytes = kValues * static_cast<int>(sizeof(Out));

    HDXRAY_HD static void run(const PixelJob& job, Out* rows, int64_t first_row, int chunk, int lane) {
        const PatchSource& s = job.source;
        Place places[kRows];
        find_places<kRows, kLayout>(job, first_row, lane, places);
        if (chunk >= job.chunks) return;
        const auto line = static_cast<int32_t>(job.chunks_per_line.quotient(static_cast<uint32_t>(chunk)));
        const int32_t column = (chunk - line * static_cast<int32_t>(job.chunks_per_line.by)) * kPixels;
        const In* from = static_cast<const In*>(s.images) + (line * s.stride_h + column);

        Words<kInBytes> pixels[kRows][kChannels];
        float scale[kRows], shift[kRows];
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            const bool real = places[u].image >= 0;
            scale[u] = real ? scale_of(s, places[u].image) : 0.0f;
            shift[u] = real ? shift_of(s, places[u].image) : 0.0f;
        }
        if (job.wide_images) {
            HDXRAY_UNROLL
            for (int u = 0; u < kRows; ++u) {
                HDXRAY_UNROLL
                for (int c = 0; c < kChannels; ++c) {
                    pixels[u][c].clear();
                    if (places[u].image >= 0) pixels[u][c].load(from + (places[u].offset + c * s.stride_c));
                }
            }
        } else {
            HDXRAY_UNROLL
            for (int u = 0; u < kRows; ++u) {
                HDXRAY_UNROLL
                for (int c = 0; c < kChannels; ++c) {
                    pixels[u][c].clear();
                    if (places[u].image >= 0)
                        pixels_one_by_one<In, kPixels>(from + (places[u].offset + c * s.stride_c), pixels[u][c]);
                }
            }
        }
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            if (first_row + u >= job.n_rows) break;
            float values[kValues];
            const bool real = places[u].image >= 0;  // other rows are zero, not 0 * scale + shift
            HDXRAY_UNROLL
            for (int c = 0; c < kChannels; ++c) {
                HDXRAY_UNROLL
                for (int i = 0; i < kPixels; ++i) {
                    const float pixel = Element<In>::get(pixels[u][c].word, i);
                    values[i * kChannels + c] = real ? multiply_add(pixel, scale[u], shift[u]) : 0.0f;
                }
            }
            Words<kOutBytes> packed;
            Element<Out>::template pack<kValues>(packed.word, values);
            packed.store(rows + ((first_row + u) * job.chunks + chunk) * kValues);
        }
    }
};

// Gradient of the images: grad_image[pixel] = grad_row[element] * scale. One channel; a chunk is 16 bytes of the image.
template <typename Image, typename Row>
struct ScatterWide {
    static constexpr int kPixels = 16 / static_cast<int>(sizeof(Image));
    static constexpr int kRows = rows_of_warp<Row, kPixels, 1>();
    static constexpr int kRowBytes = kPixels * static_cast<int>(sizeof(Row));

    HDXRAY_HD static void run(const PixelJob& job, const Row* grad_rows, int64_t first_row, int chunk, int lane) {
        const PatchSource& s = job.source;
        Place places[kRows];
        find_places<kRows, PixelLayout::kImages>(job, first_row, lane, places);
        if (chunk >= job.chunks) return;
        const auto line = static_cast<int32_t>(job.chunks_per_line.quotient(static_cast<uint32_t>(chunk)));
        const int32_t column = (chunk - line * static_cast<int32_t>(job.chunks_per_line.by)) * kPixels;
        Image* to = static_cast<Image*>(const_cast<void*>(s.images)) + (line * s.stride_h + column);

        Words<kRowBytes> grads[kRows];
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            if (places[u].image >= 0) {
                grads[u].load(grad_rows + ((first_row + u) * job.chunks + chunk) * kPixels);
            } else {
                grads[u].clear();
            }
        }
        HDXRAY_UNROLL
        for (int u = 0; u < kRows; ++u) {
            if (places[u].image < 0) continue;
            const float scale = scale_of(s, places[u].image);
            float values[kPixels];
            HDXRAY_UNROLL
            for (int i = 0; i < kPixels; ++i) values[i] = multiply(Element<Row>::get(grads[u].word, i), scale);
            Words<16> packed;
            Element<Image>::template pack<kPixels>(packed.word, values);
            packed.store(to + places[u].offset);
        }
    }
};

// Any patch size, number of channels, alignment and dtype, an element at a time: lanes side by side take elements side
// by side of the packed row, kElements apart from each other's next.
struct PixelsAny {
    static constexpr int kElements = 8;
    static constexpr int kSpan = kElements * kLanes;  // elements of a row that a warp takes

    // Where element e of a row lies in the images, from the patch's first pixel on.
    HDXRAY_HD static int64_t element_offset(const PixelJob& job, uint32_t e) {
        const uint32_t line = job.line_size.quotient(e), in_line = e - line * job.line_size.by;
        const uint32_t column = job.channels.quotient(in_line), channel = in_line - column * job.channels.by;
        return line * job.source.stride_h + column + channel * job.source.stride_c;
    }

    HDXRAY_HD static void gather(const PixelJob& job, DType in, void* rows, DType out, int64_t row, int part,
                                 int lane) {
        const PatchSource& s = job.source;
        Place place;
        find_places<1, PixelLayout::kEither>(job, row, lane, &place);
        const uint32_t size = job.line_size.by * static_cast<uint32_t>(s.patch_size);
        const uint32_t first = static_cast<uint32_t>(part) * kSpan + static_cast<uint32_t>(lane);
        const bool real = place.image >= 0;
        const float scale = real ? scale_of(s, place.image) : 0.0f, shift = real ? shift_of(s, place.image) : 0.0f;
        float pixels[kElements];
        HDXRAY_UNROLL
        for (int i = 0; i < kElements; ++i) {
            const uint32_t e = first + static_cast<uint32_t>(i) * kLanes;
            pixels[i] = real && e < size ? load_any(s.images, place.offset + element_offset(job, e), in) : 0.0f;
        }
        HDXRAY_UNROLL
        for (int i = 0; i < kElements; ++i) {
            const uint32_t e = first + static_cast<uint32_t>(i) * kLanes;
            const float value = real ? multiply_add(pixels[i], scale, shift) : 0.0f;
            if (e < size) store_any(rows, row * size + e, value, out);
        }
    }

    HDXRAY_HD static void scatter(const PixelJob& job, DType image, const void* grad_rows, DType in, int64_t row,
                                  int part, int lane) {
        const PatchSource& s = job.source;
        Place place;
        find_places<1, PixelLayout::kImages>(job, row, lane, &place);
        if (place.image < 0) return;
        const uint32_t size = job.line_size.by * static_cast<uint32_t>(s.patch_size);
        const uint32_t first = static_cast<uint32_t>(part) * kSpan + static_cast<uint32_t>(lane);
        const float scale = scale_of(s, place.image);
        float grads[kElements];
        HDXRAY_UNROLL
        for (int i = 0; i < kElements; ++i) {
            const uint32_t e = first + static_cast<uint32_t>(i) * kLanes;
            grads[i] = e < size ? load_any(grad_rows, row * size + e, in) : 0.0f;
        }
        HDXRAY_UNROLL
        for (int i = 0; i < kElements; ++i) {
            const uint32_t e = first + static_cast<uint32_t>(i) * kLanes;
            if (e >= size) break;
            store_any(const_cast<void*>(s.images), place.offset + element_offset(job, e), multiply(grads[i], scale),
                      image);
        }
    }
};

// Blocks of a launch: kWarpsOfBlock warps each, x over groups of rows, y over parts of a row.
struct LaunchShape {
    int64_t x;
    int32_t y;
};

inline LaunchShape launch_shape(int64_t n_rows, int64_t rows_of_warp, int64_t size, int64_t span) {
    const int64_t rows_of_block = rows_of_warp * kWarpsOfBlock;
    return {(n_rows + rows_of_block - 1) / rows_of_block, static_cast<int32_t>((size + span - 1) / span)};
}

struct GatherPlan {
    PixelJob job;
    LaunchShape shape;
    bool wide;
};

// The packed row's side of the wide path: whole chunks, and a buffer that begins at 16 bytes.
inline bool rows_are_wide(const Patches& patches, int pixels_of_chunk, const void* rows) {
    return patches.source.patch_size % pixels_of_chunk == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
}

// Packed patches have a wide path where they are many: seen through a view, of one channel of bytes.
template <typename In>
bool packed_is_wide(const Patches& patches) {
    return sizeof(In) == 1 && patches.source.channels == 1;
}

template <typename In, typename Out>
GatherPlan plan_gather(const Patches& patches, const void* rows) {
    constexpr int kPixels = GatherWide<In, Out, 1>::kPixels;
    GatherPlan plan{make_pixel_job(patches, kPixels), {}, false};
    const int32_t channels = patches.source.channels;
    plan.wide = rows_are_wide(patches, kPixels, rows) && (channels == 1 || channels == 3) &&
                (!patches.source.packed || packed_is_wide<In>(patches));
    plan.job.wide_images = chunks_are_aligned(patches, kPixels * static_cast<int64_t>(sizeof(In)), sizeof(In));
    const int rows_each = channels == 1 ? GatherWide<In, Out, 1>::kRows : GatherWide<In, Out, 3>::kRows;
    plan.shape = plan.wide ? launch_shape(patches.n_rows, rows_each, plan.job.chunks, kLanes)
                           : launch_shape(patches.n_rows, 1, patches.row_size(), PixelsAny::kSpan);
    return plan;
}

template <typename Image, typename Row>
GatherPlan plan_scatter(const Patches& patches, const void* grad_rows) {
    using Body = ScatterWide<Image, Row>;
    GatherPlan plan{make_pixel_job(patches, Body::kPixels), {}, false};
    plan.job.wide_images = chunks_are_aligned(patches, 16, sizeof(Image));
    plan.wide =
        rows_are_wide(patches, Body::kPixels, grad_rows) && plan.job.wide_images && patches.source.channels == 1;
    plan.shape = plan.wide ? launch_shape(patches.n_rows, Body::kRows, plan.job.chunks, kLanes)
                           : launch_shape(patches.n_rows, 1, patches.row_size(), PixelsAny::kSpan);
    return plan;
}

}  // namespace HDXRAY_SIDE
}  // namespace hdxray
