// Element types by the codes the Python side passes (hdxray_fast/ops/native.py holds the same table).
#pragma once
#include <cstdint>

namespace hdxray {

enum DType : int { kU8 = 0, kU16 = 1, kF16 = 2, kBF16 = 3, kF32 = 4 };
constexpr int kNumDTypes = 5;

// Storage of the 16-bit float types: distinct types, so that overloads tell them from uint16 pixels.
struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

}  // namespace hdxray
