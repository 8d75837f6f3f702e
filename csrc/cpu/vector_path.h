// Which vector path runs: found once at start, and settable so that tests compare the paths in one process.
#pragma once
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace hdxray {

std::vector<std::string> cpu_features();        // of this machine, among those the core knows about
std::vector<std::string> vector_paths();        // names that set_vector_path accepts here, the best one last
std::string vector_path();                      // the one in use
void set_vector_path(const std::string& name);  // throws std::invalid_argument for a name not in vector_paths()
const Kernels& kernels();

}  // namespace hdxray
