// From dtype codes to types: Op<In, Out>::run(arguments...) for the pair that two codes name.
#pragma once
#include "common/check.h"
#include "common/dtype.h"

namespace hdxray {

template <template <typename, typename> class Op, typename First, typename... Arguments>
void for_float_dtype(DType second, Arguments&&... arguments) {
    switch (second) {
        case kF16:
            return Op<First, Half>::run(arguments...);
        case kBF16:
            return Op<First, BFloat16>::run(arguments...);
        case kF32:
            return Op<First, float>::run(arguments...);
        default:
            check(false, "dtype: accepted are float16, bfloat16 and float32");
    }
}

// Pixels of any dtype, rows of a float dtype.
template <template <typename, typename> class Op, typename... Arguments>
void for_pixel_dtypes(DType pixels, DType rows, Arguments&&... arguments) {
    switch (pixels) {
        case kU8:
            return for_float_dtype<Op, uint8_t>(rows, arguments...);
        case kU16:
            return for_float_dtype<Op, uint16_t>(rows, arguments...);
        case kF16:
            return for_float_dtype<Op, Half>(rows, arguments...);
        case kBF16:
            return for_float_dtype<Op, BFloat16>(rows, arguments...);
        default:
            return for_float_dtype<Op, float>(rows, arguments...);
    }
}

// Gradients of images, of rows: both of a float dtype.
template <template <typename, typename> class Op, typename... Arguments>
void for_float_dtypes(DType images, DType rows, Arguments&&... arguments) {
    switch (images) {
        case kF16:
            return for_float_dtype<Op, Half>(rows, arguments...);
        case kBF16:
            return for_float_dtype<Op, BFloat16>(rows, arguments...);
        case kF32:
            return for_float_dtype<Op, float>(rows, arguments...);
        default:
            check(false, "dtype of the images' gradient: accepted are float16, bfloat16 and float32");
    }
}

}  // namespace hdxray
