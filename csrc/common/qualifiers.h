// Qualifiers that mean something to a CUDA compiler and nothing to a C++ compiler, for code that both compile.
#pragma once

#ifdef __CUDACC__
#define HDXRAY_HD __host__ __device__
#else
#define HDXRAY_HD
#endif

// Small arrays stay in a GPU's registers only if every index into them is known when compiling.
#ifdef __CUDA_ARCH__
#define HDXRAY_UNROLL _Pragma("unroll")
#define HDXRAY_NO_UNROLL _Pragma("unroll 1")
#else
#define HDXRAY_UNROLL
#define HDXRAY_NO_UNROLL
#endif
