// Which vector path runs, and what this machine has.
#include "cpu/vector_path.h"

#include <atomic>
#include <stdexcept>

#include "cpu/cpu_features.h"

namespace hdxray {
namespace {

#if HDXRAY_HAVE_AVX2
const CpuFeatures& cpu() {
    static const CpuFeatures found = detect_cpu();
    return found;
}
#endif

const Kernels* best() {
#if HDXRAY_HAVE_AVX2
    if (cpu().avx2 && cpu().fma && cpu().f16c) return &avx2_kernels();
#endif
    return &baseline_kernels();
}

std::atomic<const Kernels*>& active() {
    static std::atomic<const Kernels*> chosen{best()};
    return chosen;
}

}  // namespace

std::vector<std::string> cpu_features() {
    std::vector<std::string> found;
#if HDXRAY_HAVE_AVX2
    if (cpu().sse42) found.emplace_back("sse4.2");
    if (cpu().avx) found.emplace_back("avx");
    if (cpu().avx2) found.emplace_back("avx2");
    if (cpu().fma) found.emplace_back("fma");
    if (cpu().f16c) found.emplace_back("f16c");
    if (cpu().avx512f) found.emplace_back("avx512f");
#elif defined(__aarch64__)
    found.emplace_back("neon");
#endif
    return found;
}

std::vector<std::string> vector_paths() {
    std::vector<std::string> names{baseline_kernels().name};
    if (best() != &baseline_kernels()) names.emplace_back(best()->name);
    return names;
}

std::string vector_path() {
    return active().load()->name;
}

void set_vector_path(const std::string& name) {
    if (name == baseline_kernels().name) {
        active() = &baseline_kernels();
    } else if (name == best()->name) {
        active() = best();
    } else {
        std::string accepted;
        for (const auto& path : vector_paths()) accepted += (accepted.empty() ? "" : ", ") + path;
        throw std::invalid_argument("vector path '" + name + "' is not available here; accepted: " + accepted);
    }
}

const Kernels& kernels() {
    return *active().load(std::memory_order_relaxed);
}

}  // namespace hdxray
