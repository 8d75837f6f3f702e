// The inner loops, as a table of functions: csrc/cpu/kernels_<isa>.cpp compile the same *_kernel.h sources once for
// each instruction set, and csrc/cpu/vector_path.cpp picks a table at run time.
#pragma once
#include <cstdint>

#include "common/patches.h"
#include "common/view.h"

namespace hdxray {

struct GatherJob {
    PatchSource from;
    void* rows;  // [N, C * p * p] f32 | f16 | bf16
};

struct ScatterJob {
    PatchSource to;         // .images are written: gradients, of a float type
    const void* grad_rows;  // [N, C * p * p] f32 | f16 | bf16
};

struct LossJob {
    PatchSource from;
    const void* pred;  // [N, C * p * p] f32 | f16 | bf16
    bool norm_pix_loss;
    float* patch_loss;  // [N] f32, or null
    void* grad_pred;    // [N, C * p * p], dtype of pred, or null
    float grad_scale;   // d (grad_loss * loss) / d (sum of squared errors)
};

struct ViewJob {
    PatchSource from;
    View view;
    int32_t height, width;  // of the images
    void* pixels;           // [N, C, p, p], dtype of the images
};

// A rank's place in one stratum: the patches with (key, id) <= (key, id) of this threshold come before it or are it.
struct Threshold {
    uint32_t key;
    int32_t id;
};

struct EmitJob {
    const uint32_t* keys;    // [n]
    const uint8_t* stratum;  // [n]: 0 not valid, 1 or 2
    int64_t n;
    Threshold keep[3];     // by stratum; entry 0 is not used
    Threshold predict[3];  // kept and predicted together
    int32_t* keep_ids;     // [n + 8]: up to 8 elements past the end are scratch
    int32_t* predict_ids;  // [n + 8]
};

using GatherFn = void (*)(const GatherJob&, int64_t begin, int64_t end);
using ScatterFn = void (*)(const ScatterJob&, int64_t begin, int64_t end);
using ViewFn = void (*)(const ViewJob&, int64_t begin, int64_t end);
// scratch: room for one patch as floats, C * p * p rounded up to 8.
using LossFn = void (*)(const LossJob&, int64_t begin, int64_t end, float* scratch);
using ScaleFn = void (*)(void* rows, float factor, int64_t begin, int64_t end);

struct Kernels {
    const char* name;
    // Tables by DType; a null entry is a pair that is not supported.
    GatherFn gather[kNumDTypes][kNumDTypes];    // [image][row]
    ScatterFn scatter[kNumDTypes][kNumDTypes];  // [image gradient][row gradient]
    LossFn loss[kNumDTypes][kNumDTypes];        // [image][pred]
    ScaleFn scale[kNumDTypes];                  // [pred gradient]
    ViewFn view[kNumDTypes];                    // [image]
    // words[i] = word i % 4 of Philox-4x32-10 at counter (c0 + i / 4, c1, c2, c3); room for n rounded up to 32 words.
    void (*philox_words)(uint32_t* words, int64_t n, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0,
                         uint32_t key1);
    // Positions of `wanted` in bins[n]; returns how many. Room for n.
    int64_t (*find_bin)(const uint16_t* bins, int64_t n, uint16_t wanted, int32_t* found);
    // Writes kept and predicted ids in ascending order; returns how many through the two counters.
    void (*emit)(const EmitJob&, int64_t* n_keep, int64_t* n_predict);
};

const Kernels& baseline_kernels();
const Kernels& avx2_kernels();  // defined on x86-64 only

}  // namespace hdxray
