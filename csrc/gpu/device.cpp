// From a device code to the side that takes the call, in every build.
#include "gpu/device.h"

#include <stdexcept>

namespace hdxray {

bool on_cuda(int device) {
    if (device == -1) return false;
    if (device < -1) throw std::invalid_argument("device " + std::to_string(device) + ": accepted are -1 and above");
#if HDXRAY_HAVE_CUDA
    return true;
#else
    throw std::invalid_argument("device " + std::to_string(device) + ": " + why_no_cuda(device));
#endif
}

}  // namespace hdxray
