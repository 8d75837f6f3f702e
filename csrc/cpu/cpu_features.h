// What this machine's processor and operating system have, asked of CPUID itself: the compilers' own function for it
// does not know F16C before Clang 18 and GCC 11.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>

namespace hdxray {

struct CpuFeatures {
    bool sse42 = false, avx = false, avx2 = false, fma = false, f16c = false, avx512f = false;
};

// A processor's vector registers are of use only if the operating system saves them: CPUID tells of the processor
// alone, XGETBV of what is saved. Bits: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID.
inline CpuFeatures detect_cpu() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    const auto has = [](unsigned bits, int bit) { return (bits >> bit & 1u) != 0; };
    CpuFeatures found;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return found;
    found.sse42 = has(c, 20);
    unsigned saved = 0;
    if (has(c, 27)) {  // OSXSAVE: XGETBV may be executed
        unsigned high = 0;
        __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    }
    const bool ymm = (saved & 0x6u) == 0x6u, zmm = (saved & 0xE6u) == 0xE6u;
    found.avx = ymm && has(c, 28);
    found.fma = found.avx && has(c, 12);
    found.f16c = found.avx && has(c, 29);
    if (__get_cpuid_max(0, nullptr) >= 7) {
        __cpuid_count(7, 0, a, b, c, d);
        found.avx2 = found.avx && has(b, 5);
        found.avx512f = found.avx && zmm && has(b, 16);
    }
    return found;
}

}  // namespace hdxray
#endif
