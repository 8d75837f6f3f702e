# Looks for a CUDA compiler that works. Sets HDXRAY_HAVE_CUDA to 0 or 1 and HDXRAY_CUDA_NOTE to what to tell the user;
# where it is 1, also CMAKE_CUDA_COMPILER and CMAKE_CUDA_ARCHITECTURES. A compiler may be there and fail (no host compiler
# that it accepts, a part of the toolkit missing): enable_language(CUDA) would stop the whole build, so it is tried first.
set(HDXRAY_HAVE_CUDA 0)

set(nvcc "${CMAKE_CUDA_COMPILER}")
if(NOT nvcc)
  set(nvcc "$ENV{CUDACXX}")
endif()
if(NOT IS_ABSOLUTE "${nvcc}")  # a name, or nothing; looked for anew each time, as PATH may have changed
  if(NOT nvcc)
    set(nvcc nvcc)
  endif()
  unset(HDXRAY_NVCC CACHE)
  find_program(HDXRAY_NVCC NAMES "${nvcc}" HINTS ENV CUDA_PATH PATH_SUFFIXES bin NO_CMAKE_SYSTEM_PATH)
  mark_as_advanced(HDXRAY_NVCC)
  set(nvcc "${HDXRAY_NVCC}")
endif()
if(NOT nvcc)
  set(HDXRAY_CUDA_NOTE "off: no CUDA compiler was found (looked for nvcc on PATH and for what CUDACXX and CUDA_PATH name)")
  return()
endif()

# --- what it compiles for ------------------------------------------------------------------------------------------------
execute_process(COMMAND "${nvcc}" --list-gpu-code RESULT_VARIABLE failed OUTPUT_VARIABLE known ERROR_VARIABLE said)
if(failed)
  set(HDXRAY_CUDA_NOTE "off: ${nvcc} does not run (${failed})")
  return()
endif()
set(architectures "")
foreach(architecture IN LISTS HDXRAY_CUDA_ARCHITECTURES)
  if(known MATCHES "sm_${architecture}[^0-9a-z]")
    list(APPEND architectures "${architecture}")
  elseif(NOT HDXRAY_CUDA_ARCHITECTURES STREQUAL "80;90;100")
    string(REGEX REPLACE "[ \n]+" " " known "${known}")
    message(FATAL_ERROR "HDXRAY_CUDA_ARCHITECTURES=${HDXRAY_CUDA_ARCHITECTURES}: ${nvcc} does not know ${architecture}, it "
                        "knows ${known}")
  endif()
endforeach()
if(NOT architectures)
  set(HDXRAY_CUDA_NOTE "off: ${nvcc} is too old, it knows none of the compute capabilities ${HDXRAY_CUDA_ARCHITECTURES}")
  return()
endif()
list(SORT architectures COMPARE NATURAL)
list(GET architectures -1 newest)

# --- whether it works ----------------------------------------------------------------------------------------------------
set(probe "${CMAKE_CURRENT_BINARY_DIR}/cuda_probe")
file(WRITE "${probe}.cu" "#include <cuda_runtime.h>\n#include <cuda_bf16.h>\n"
     "__global__ void kernel(float* x) { *x = 1.0f; }\n"
     "int main() { kernel<<<1, 1>>>(nullptr); return cudaGetLastError() == cudaSuccess; }\n")
set(host_compiler "")
if(CMAKE_CUDA_HOST_COMPILER)
  set(host_compiler "-ccbin=${CMAKE_CUDA_HOST_COMPILER}")
elseif(DEFINED ENV{CUDAHOSTCXX} AND NOT "$ENV{CUDAHOSTCXX}" STREQUAL "")
  set(host_compiler "-ccbin=$ENV{CUDAHOSTCXX}")
endif()
separate_arguments(flags NATIVE_COMMAND "$ENV{CUDAFLAGS} ${CMAKE_CUDA_FLAGS}")
execute_process(COMMAND "${nvcc}" ${host_compiler} ${flags} -std=c++17 -arch=sm_${newest} -o "${probe}" "${probe}.cu"
                RESULT_VARIABLE failed OUTPUT_VARIABLE printed ERROR_VARIABLE said)
if(failed)
  # The first line that names an error, or the last one: the reason, without quotes that would end a C string.
  string(REPLACE ";" "," said "${printed}${said}")
  string(REGEX MATCH "[^\n]*(error|fatal|not found|[Nn]o such)[^\n]*" reason "${said}")
  if(NOT reason)
    string(STRIP "${said}" reason)
    string(REGEX REPLACE ".*\n" "" reason "${reason}")
  endif()
  string(REGEX REPLACE "[\"\\\\\t]" "'" reason "${reason}")
  set(HDXRAY_CUDA_NOTE "off: ${nvcc} was found, but does not compile (${reason})")
  return()
endif()

set(HDXRAY_HAVE_CUDA 1)
set(CMAKE_CUDA_COMPILER "${nvcc}" CACHE FILEPATH "CUDA compiler")
# Machine code for each, and PTX of the newest, which the driver compiles for devices newer than all of them.
set(CMAKE_CUDA_ARCHITECTURES "${architectures}")
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES APPEND "-real")
list(APPEND CMAKE_CUDA_ARCHITECTURES "${newest}-virtual")
list(TRANSFORM architectures PREPEND "sm_")
string(REPLACE ";" " " HDXRAY_CUDA_NOTE "on: ${architectures} ptx")
