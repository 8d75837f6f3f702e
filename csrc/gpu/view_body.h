// The body of the view kernel: an element at a time, lanes side by side take pixels side by side of a line of the
// patch, so that their four reads each fall into few sectors: a patch looks at some 17 lines of 17 pixels.
//
// What has to move, for 16 x 16 uint8 patches: about 17 lines of one or two 32-byte sectors, 544 to 1088 bytes, are read
// a row and 256 written. Gather and loss then read those 256 in order, which is less than the patch's sectors.
#pragma once
#include "common/check.h"
#include "common/view.h"
#include "common/view_index.h"
#include "gpu/gather_body.h"

namespace hdxray {
inline namespace HDXRAY_SIDE {

struct ViewKernelJob {
    PixelJob pixels;
    View view;
    int32_t height, width;
    DType dtype;
};

HDXRAY_HD inline void store_viewed(void* to, int64_t i, float value, const View& view, int32_t image, DType dtype) {
    if (dtype == kU8) {
        const auto* table = static_cast<const uint8_t*>(view.table);
        const uint32_t v = round_view(value);
        static_cast<uint8_t*>(to)[i] = table ? table[image * int64_t{kTable8} + v] : static_cast<uint8_t>(v);
    } else if (dtype == kU16) {
        const auto* table = static_cast<const uint16_t*>(view.table);
        const uint32_t v = round_view(value);
        static_cast<uint16_t*>(to)[i] =
            static_cast<uint16_t>(table ? between_knots(table + image * int64_t{kTable16}, v) : v);
    } else {
        store_any(to, i, value, dtype);
    }
}

struct ViewAny {
    HDXRAY_HD static void run(const ViewKernelJob& job, void* pixels, int64_t row, int part, int lane) {
        const PixelJob& p = job.pixels;
        const PatchSource& s = p.source;
        Place place;
        find_places<1, PixelLayout::kImages>(p, row, lane, &place);
        const auto side = static_cast<uint32_t>(s.patch_size);
        const uint32_t size = p.line_size.by * side;
        const bool real = place.image >= 0;
        const int32_t id = real ? s.ids[row] : 0;
        const auto line = static_cast<int32_t>(p.grid_w.quotient(static_cast<uint32_t>(id)));
        const int32_t top = line * s.patch_size, left = (id - line * s.grid_w) * s.patch_size;
        const float* affine = job.view.affine + 6 * static_cast<int64_t>(real ? place.image : 0);
        const int64_t image = real ? place.image * s.stride_b : 0;
        HDXRAY_UNROLL
        for (int i = 0; i < PixelsAny::kElements; ++i) {
            const uint32_t e =
                static_cast<uint32_t>(part) * PixelsAny::kSpan + static_cast<uint32_t>(i * kLanes + lane);
            if (e >= size) break;
            if (!real) {
                store_zero(pixels, row * size + e, job.dtype);
                continue;
            }
            const uint32_t y = e / side, channel = y / side, in_channel = y - channel * side;
            const auto x = static_cast<float>(left + static_cast<int32_t>(e - y * side));
            ViewPlace at;
            float value = 0.0f;
            if (find_view_place(affine, x, static_cast<float>(top + static_cast<int32_t>(in_channel)), job.width,
                                job.height, at)) {
                const int64_t plane = image + channel * s.stride_c;
                value = view_value(at, job.width, job.height, [&](int32_t row_of, int32_t column) {
                    return load_any(s.images, plane + row_of * s.stride_h + column, job.dtype);
                });
            }
            store_viewed(pixels, row * size + e, value, job.view, place.image, job.dtype);
        }
    }

    HDXRAY_HD static void store_zero(void* to, int64_t i, DType dtype) {
        if (dtype == kU8) {
            static_cast<uint8_t*>(to)[i] = 0;
        } else if (dtype == kU16) {
            static_cast<uint16_t*>(to)[i] = 0;
        } else {
            store_any(to, i, 0.0f, dtype);
        }
    }
};

struct ViewPlan {
    ViewKernelJob job;
    LaunchShape shape;
};

inline ViewPlan plan_view(const Patches& patches, const View& view) {
    const PatchSource& s = patches.source;
    return {{make_pixel_job(patches, 1), view, patches.grid_h * s.patch_size, s.grid_w * s.patch_size, patches.dtype},
            launch_shape(patches.n_rows, 1, patches.row_size(), PixelsAny::kSpan)};
}

}  // namespace HDXRAY_SIDE
}  // namespace hdxray
