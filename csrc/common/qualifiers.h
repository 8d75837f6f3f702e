// Qualifiers that mean something to a CUDA compiler and nothing to a C++ compiler, for code that both compile.
#pragma once

#ifdef __CUDACC__
#define HDXRAY_HD __host__ __device__
#define HDXRAY_DEVICE __device__  // of functions that nvcc sees in kernels only, other compilers in the emulation only
#else
#define HDXRAY_HD
#define HDXRAY_DEVICE
#endif

// UNROLL: small arrays stay in a GPU's registers only if every index into them is known when compiling. ROLL: large
// bodies are not repeated, as a kernel of a few microseconds waits for its own instructions.
#ifdef __CUDA_ARCH__
#define HDXRAY_UNROLL _Pragma("unroll")
#define HDXRAY_ROLL _Pragma("unroll 1")
#else
#define HDXRAY_UNROLL
#define HDXRAY_ROLL
#endif
