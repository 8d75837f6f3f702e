// Argument checks of the core. hdxray_fast/ops/native.py has already named the argument in the caller's words; what fails
// here is a bug in that module, or a hand-made call, and must still never become a wild read or write.
#pragma once
#include <stdexcept>

namespace hdxray {

inline void check(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

}  // namespace hdxray
