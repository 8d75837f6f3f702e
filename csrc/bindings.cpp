// The only file that includes pybind11. Tensors arrive as plain integers (pointer, sizes, strides, dtype code), so that
// the core depends on no version of torch; hdxray_fast/ops/native.py is the only caller and validates everything first.
//
// Every op takes `device` (-1: CPU, otherwise a CUDA device index) and `stream` (a cudaStream_t as an integer, 0 on
// CPU).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "common/check.h"
#include "common/gather.h"
#include "common/loss.h"
#include "common/mask_plan.h"
#include "common/patches.h"
#include "common/view.h"
#include "cpu/vector_path.h"
#include "emulation/mask_plan_emulation.h"
#include "emulation/pixels_emulation.h"
#include "gpu/device.h"

namespace py = pybind11;
using namespace hdxray;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// (pointer, dtype, batch, channels, stride_b, stride_c, stride_h, grid_h, grid_w, patch_size, packed): images
// [B, C, H, W], or the pixels of the patches alone, [N, C, p, p]
using ImagesTuple =
    std::tuple<uintptr_t, int, int64_t, int32_t, int64_t, int64_t, int64_t, int32_t, int32_t, int32_t, bool>;
// (ids, cu_seqlens, n_rows, scale, shift, scale_value, shift_value): pointers, n_rows, pointers, floats; a null scale
// or shift takes the value
using RowsTuple = std::tuple<uintptr_t, uintptr_t, int64_t, uintptr_t, uintptr_t, float, float>;

Patches make_patches(const ImagesTuple& images, const RowsTuple& rows) {
    const auto& [image, dtype, batch, channels, stride_b, stride_c, stride_h, grid_h, grid_w, patch_size, packed] =
        images;
    const auto& [ids, cu_seqlens, n_rows, scale, shift, scale_value, shift_value] = rows;
    return {{pointer<const void>(image), stride_b, stride_c, stride_h, channels, patch_size, grid_w,
             pointer<const int32_t>(ids), pointer<const int32_t>(cu_seqlens), pointer<const float>(scale),
             pointer<const float>(shift), scale_value, shift_value, packed},
            batch,
            n_rows,
            grid_h,
            static_cast<DType>(dtype)};
}

// (affine, table): pointers, the table's null for none
using ViewTuple = std::tuple<uintptr_t, uintptr_t>;

View make_view(const ViewTuple& view) {
    return {pointer<const float>(std::get<0>(view)), pointer<const void>(std::get<1>(view))};
}

// (loss, patch_loss, grad_pred, partials): pointers, null where not wanted; the last one for a CUDA device only
using LossTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

LossOutputs make_loss_outputs(const LossTuple& out) {
    const auto& [loss, patch_loss, grad_pred, partials] = out;
    return {pointer<float>(loss), pointer<float>(patch_loss), pointer<void>(grad_pred), pointer<double>(partials)};
}

// (grad_pred, dtype, n_rows, row_size, cu_seqlens, batch, grad_loss)
using LossGradientTuple = std::tuple<uintptr_t, int, int64_t, int64_t, uintptr_t, int64_t, uintptr_t>;

LossGradient make_loss_gradient(const LossGradientTuple& gradient) {
    const auto& [grad_pred, dtype, n_rows, row_size, cu_seqlens, batch, grad_loss] = gradient;
    return {pointer<void>(grad_pred),
            static_cast<DType>(dtype),
            n_rows,
            row_size,
            pointer<const int32_t>(cu_seqlens),
            batch,
            pointer<const float>(grad_loss)};
}

// (inside, valid, index, batch, grid_h, grid_w): pointers, then sizes
using GridsTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int32_t, int32_t>;
// (strategy, ratio_inside, ratio_outside, predict, seed, epoch)
using ChoiceTuple = std::tuple<int, double, double, double, uint64_t, uint32_t>;
// (max_keep, max_predict) per image
using BoundsTuple = std::tuple<int64_t, int64_t>;
// (keep_ids, predict_ids, keep_capacity, predict_capacity): pointers, then sizes
using PlanIdsTuple = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t>;

MaskPlanSpec make_spec(const GridsTuple& grids, const ChoiceTuple& choice, const BoundsTuple& bounds) {
    const auto& [inside, valid, index, batch, grid_h, grid_w] = grids;
    const auto& [strategy, ratio_inside, ratio_outside, predict, seed, epoch] = choice;
    check(strategy >= 0 && strategy <= static_cast<int>(Strategy::kBlock), "mask_plan: unknown strategy code");
    return {batch,
            grid_h,
            grid_w,
            static_cast<Strategy>(strategy),
            ratio_inside,
            ratio_outside,
            predict,
            seed,
            epoch,
            pointer<const uint8_t>(inside),
            pointer<const uint8_t>(valid),
            pointer<const int64_t>(index),
            std::get<0>(bounds),
            std::get<1>(bounds)};
}

PlanIds make_plan_ids(const PlanIdsTuple& ids) {
    const auto& [keep_ids, predict_ids, keep_capacity, predict_capacity] = ids;
    return {pointer<int32_t>(keep_ids), pointer<int32_t>(predict_ids), keep_capacity, predict_capacity};
}

py::dict build_info() {
    py::dict info;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["cuda"] = HDXRAY_CUDA_NOTE;
    return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Native core of hdxray_fast; use the functions of the package, not this module.";
    const py::call_guard<py::gil_scoped_release> no_gil;

    m.def("build_info", &build_info);
    m.def("cpu_features", &cpu_features);
    m.def("vector_paths", &vector_paths);
    m.def("vector_path", &vector_path);
    m.def("why_no_cuda", &why_no_cuda, py::arg("device"), no_gil);
    m.def("set_vector_path", &set_vector_path, py::arg("name"));

    m.def(
        "check_packed_ids",
        [](uintptr_t ids, uintptr_t cu_seqlens, int64_t batch, int64_t n_rows, int64_t n_patches) {
            check(cu_seqlens && (ids || n_rows == 0) && batch >= 0 && n_rows >= 0, "check_packed_ids: bad arguments");
            const PlanFault fault = check_packed_ids(pointer<const int32_t>(ids), pointer<const int32_t>(cu_seqlens),
                                                     batch, n_rows, n_patches);
            return std::make_tuple(static_cast<int>(fault.kind), fault.row, fault.value);
        },
        py::arg("ids"), py::arg("cu_seqlens"), py::arg("batch"), py::arg("n_rows"), py::arg("n_patches"), no_gil);

    m.def(
        "philox",
        [](uintptr_t words, int64_t n, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0,
           uint32_t key1) { philox(pointer<uint32_t>(words), n, c0, c1, c2, c3, key0, key1); },
        py::arg("words"), py::arg("n"), py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"), py::arg("key0"),
        py::arg("key1"), no_gil);

    m.def(
        "mask_plan_counts",
        [](const GridsTuple& grids, const ChoiceTuple& choice, const BoundsTuple& bounds, uintptr_t keep_cu,
           uintptr_t predict_cu, int device, uintptr_t stream) {
            check(keep_cu && predict_cu, "mask_plan_counts: null pointer");
            const MaskPlanSpec spec = make_spec(grids, choice, bounds);
            int32_t *keep = pointer<int32_t>(keep_cu), *predict = pointer<int32_t>(predict_cu);
            if (on_cuda(device)) return mask_plan_counts_cuda(spec, keep, predict, device, stream);
            mask_plan_counts(spec, keep, predict);
        },
        py::arg("grids"), py::arg("choice"), py::arg("bounds"), py::arg("keep_cu"), py::arg("predict_cu"),
        py::arg("device"), py::arg("stream"), no_gil);

    m.def(
        "mask_plan_ids",
        [](const GridsTuple& grids, const ChoiceTuple& choice, const BoundsTuple& bounds, uintptr_t keep_cu,
           uintptr_t predict_cu, const PlanIdsTuple& ids, int n_threads, int device, uintptr_t stream) {
            check(keep_cu && predict_cu, "mask_plan_ids: null pointer");
            const MaskPlanSpec spec = make_spec(grids, choice, bounds);
            const int32_t *keep = pointer<const int32_t>(keep_cu), *predict = pointer<const int32_t>(predict_cu);
            const PlanIds out = make_plan_ids(ids);
            if (on_cuda(device)) return mask_plan_ids_cuda(spec, keep, predict, out, device, stream);
            mask_plan_ids(spec, keep, predict, out, n_threads);
        },
        py::arg("grids"), py::arg("choice"), py::arg("bounds"), py::arg("keep_cu"), py::arg("predict_cu"),
        py::arg("ids"), py::arg("n_threads"), py::arg("device"), py::arg("stream"), no_gil);

    m.def(
        "_emulate_mask_plan_counts",
        [](const GridsTuple& grids, const ChoiceTuple& choice, const BoundsTuple& bounds, uintptr_t keep_cu,
           uintptr_t predict_cu, int order) {
            check(keep_cu && predict_cu, "_emulate_mask_plan_counts: null pointer");
            emulate_mask_plan_counts(make_spec(grids, choice, bounds), pointer<int32_t>(keep_cu),
                                     pointer<int32_t>(predict_cu), order);
        },
        py::arg("grids"), py::arg("choice"), py::arg("bounds"), py::arg("keep_cu"), py::arg("predict_cu"),
        py::arg("order"), no_gil);

    m.def(
        "_emulate_mask_plan_ids",
        [](const GridsTuple& grids, const ChoiceTuple& choice, const BoundsTuple& bounds, uintptr_t keep_cu,
           uintptr_t predict_cu, const PlanIdsTuple& ids, int order, bool remember) {
            check(keep_cu && predict_cu, "_emulate_mask_plan_ids: null pointer");
            emulate_mask_plan_ids(make_spec(grids, choice, bounds), pointer<const int32_t>(keep_cu),
                                  pointer<const int32_t>(predict_cu), make_plan_ids(ids), order, remember);
        },
        py::arg("grids"), py::arg("choice"), py::arg("bounds"), py::arg("keep_cu"), py::arg("predict_cu"),
        py::arg("ids"), py::arg("order"), py::arg("remember"), no_gil);

    m.def(
        "gather",
        [](const ImagesTuple& images, const RowsTuple& rows, uintptr_t out, int out_dtype, int n_threads, int device,
           uintptr_t stream) {
            const Patches patches = make_patches(images, rows);
            const auto dtype = static_cast<DType>(out_dtype);
            if (!on_cuda(device)) return gather(patches, pointer<void>(out), dtype, n_threads);
            gather_cuda(patches, pointer<void>(out), dtype, device, stream);
        },
        py::arg("images"), py::arg("rows"), py::arg("out"), py::arg("out_dtype"), py::arg("n_threads"),
        py::arg("device"), py::arg("stream"), no_gil);

    m.def(
        "scatter",
        [](const ImagesTuple& images, const RowsTuple& rows, uintptr_t grad_rows, int grad_dtype, int n_threads,
           int device, uintptr_t stream) {
            const Patches patches = make_patches(images, rows);
            const auto dtype = static_cast<DType>(grad_dtype);
            if (!on_cuda(device)) return scatter(patches, pointer<const void>(grad_rows), dtype, n_threads);
            scatter_cuda(patches, pointer<const void>(grad_rows), dtype, device, stream);
        },
        py::arg("images"), py::arg("rows"), py::arg("grad_rows"), py::arg("grad_dtype"), py::arg("n_threads"),
        py::arg("device"), py::arg("stream"), no_gil);

    m.def(
        "view",
        [](const ImagesTuple& images, const RowsTuple& rows, const ViewTuple& view_of, uintptr_t pixels, int n_threads,
           int device, uintptr_t stream) {
            const Patches patches = make_patches(images, rows);
            if (!on_cuda(device)) return view(patches, make_view(view_of), pointer<void>(pixels), n_threads);
            view_cuda(patches, make_view(view_of), pointer<void>(pixels), device, stream);
        },
        py::arg("images"), py::arg("rows"), py::arg("view"), py::arg("pixels"), py::arg("n_threads"), py::arg("device"),
        py::arg("stream"), no_gil);

    m.def(
        "_emulate_view",
        [](const ImagesTuple& images, const RowsTuple& rows, const ViewTuple& view_of, uintptr_t pixels) {
            emulate_view(make_patches(images, rows), make_view(view_of), pointer<void>(pixels));
        },
        py::arg("images"), py::arg("rows"), py::arg("view"), py::arg("pixels"), no_gil);

    m.def(
        "_emulate_gather",
        [](const ImagesTuple& images, const RowsTuple& rows, uintptr_t out, int out_dtype) {
            emulate_gather(make_patches(images, rows), pointer<void>(out), static_cast<DType>(out_dtype));
        },
        py::arg("images"), py::arg("rows"), py::arg("out"), py::arg("out_dtype"), no_gil);

    m.def(
        "_emulate_scatter",
        [](const ImagesTuple& images, const RowsTuple& rows, uintptr_t grad_rows, int grad_dtype) {
            emulate_scatter(make_patches(images, rows), pointer<const void>(grad_rows), static_cast<DType>(grad_dtype));
        },
        py::arg("images"), py::arg("rows"), py::arg("grad_rows"), py::arg("grad_dtype"), no_gil);

    m.def(
        "loss",
        [](const ImagesTuple& images, const RowsTuple& rows, uintptr_t pred, int pred_dtype, bool norm_pix_loss,
           uintptr_t grad_loss, const LossTuple& out, int n_threads, int device, uintptr_t stream) {
            const Patches patches = make_patches(images, rows);
            const auto* from = pointer<const void>(pred);
            const auto* upstream = pointer<const float>(grad_loss);
            const auto dtype = static_cast<DType>(pred_dtype);
            const LossOutputs outputs = make_loss_outputs(out);
            if (!on_cuda(device)) return loss(patches, from, dtype, norm_pix_loss, upstream, outputs, n_threads);
            loss_cuda(patches, from, dtype, norm_pix_loss, upstream, outputs, device, stream);
        },
        py::arg("images"), py::arg("rows"), py::arg("pred"), py::arg("pred_dtype"), py::arg("norm_pix_loss"),
        py::arg("grad_loss"), py::arg("out"), py::arg("n_threads"), py::arg("device"), py::arg("stream"), no_gil);

    m.def(
        "scale_loss_gradient",
        [](const LossGradientTuple& gradient, int n_threads, int device, uintptr_t stream) {
            if (!on_cuda(device)) return scale_loss_gradient(make_loss_gradient(gradient), n_threads);
            scale_loss_gradient_cuda(make_loss_gradient(gradient), device, stream);
        },
        py::arg("gradient"), py::arg("n_threads"), py::arg("device"), py::arg("stream"), no_gil);

    m.def(
        "_emulate_loss",
        [](const ImagesTuple& images, const RowsTuple& rows, uintptr_t pred, int pred_dtype, bool norm_pix_loss,
           uintptr_t grad_loss, const LossTuple& out) {
            emulate_loss(make_patches(images, rows), pointer<const void>(pred), static_cast<DType>(pred_dtype),
                         norm_pix_loss, pointer<const float>(grad_loss), make_loss_outputs(out));
        },
        py::arg("images"), py::arg("rows"), py::arg("pred"), py::arg("pred_dtype"), py::arg("norm_pix_loss"),
        py::arg("grad_loss"), py::arg("out"), no_gil);

    m.def(
        "_emulate_scale_loss_gradient",
        [](const LossGradientTuple& gradient, int64_t n_threads) {
            emulate_scale_loss_gradient(make_loss_gradient(gradient), n_threads);
        },
        py::arg("gradient"), py::arg("n_threads"), no_gil);

    m.def(
        "_emulate_image_of_row",
        [](uintptr_t cu_seqlens, int32_t batch, int64_t first, int64_t n, uintptr_t images) {
            emulate_image_of_row(pointer<const int32_t>(cu_seqlens), batch, first, n, pointer<int32_t>(images));
        },
        py::arg("cu_seqlens"), py::arg("batch"), py::arg("first"), py::arg("n"), py::arg("images"), no_gil);
}
