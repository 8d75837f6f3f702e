// What the core can do on a CUDA device; present in every build, so that the Python side asks one question everywhere.
#pragma once
#include <string>

namespace hdxray {

// Why CUDA device `index` cannot be used by this build, in words; empty if it can.
std::string why_no_cuda(int index);

// Whether this call goes to a CUDA device. Throws std::invalid_argument for a device code that is neither the CPU (-1)
// nor a device of this build.
bool on_cuda(int device);

}  // namespace hdxray
