// One instruction set's table of kernels; included once by each csrc/cpu/kernels_<isa>.cpp, which names it in
// HDXRAY_ISA.
#pragma once
#include "cpu/gather_kernel.h"
#include "cpu/loss_kernel.h"
#include "cpu/mask_plan_kernel.h"
#include "cpu/view_kernel.h"

namespace hdxray::HDXRAY_ISA {
namespace {

template <typename In>
constexpr void fill_from_pixels(Kernels& t, DType in) {
    t.gather[in][kF32] = gather_rows<In, float>;
    t.gather[in][kF16] = gather_rows<In, Half>;
    t.gather[in][kBF16] = gather_rows<In, BFloat16>;
    t.loss[in][kF32] = loss_rows<In, float>;
    t.loss[in][kF16] = loss_rows<In, Half>;
    t.loss[in][kBF16] = loss_rows<In, BFloat16>;
    t.view[in] = view_rows<In>;
}

template <typename Image>
constexpr void fill_to_images(Kernels& t, DType image) {
    t.scatter[image][kF32] = scatter_rows<Image, float>;
    t.scatter[image][kF16] = scatter_rows<Image, Half>;
    t.scatter[image][kBF16] = scatter_rows<Image, BFloat16>;
    t.scale[image] = scale_elements<Image>;
}

constexpr Kernels make_table(const char* name) {
    Kernels t{};
    t.name = name;
    fill_from_pixels<uint8_t>(t, kU8);
    fill_from_pixels<uint16_t>(t, kU16);
    fill_from_pixels<Half>(t, kF16);
    fill_from_pixels<BFloat16>(t, kBF16);
    fill_from_pixels<float>(t, kF32);
    fill_to_images<Half>(t, kF16);
    fill_to_images<BFloat16>(t, kBF16);
    fill_to_images<float>(t, kF32);
    t.philox_words = philox_words;
    t.find_bin = find_bin;
    t.emit = emit;
    return t;
}

}  // namespace
}  // namespace hdxray::HDXRAY_ISA
