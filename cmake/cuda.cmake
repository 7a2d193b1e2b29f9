# CUDA devices: code for them is a library that the program opens when it is asked for one (cuda/).
#
# AUTO builds it where a toolkit is found, ON fails without one. Nothing of the toolkit is needed to
# run on the CPU, and cuBLASLt, cuDNN and NCCL are looked for when a device is used.
set(AUTOSP_CUDA AUTO CACHE STRING "Build for CUDA devices: ON, OFF or AUTO (where a toolkit is found)")
set_property(CACHE AUTOSP_CUDA PROPERTY STRINGS AUTO ON OFF)
set(AUTOSP_CUDA_VERSION 13.0)

set(AUTOSP_CUDA_MISSING "")
if(NOT AUTOSP_CUDA)
  set(AUTOSP_CUDA_MISSING "AUTOSP_CUDA is OFF")
elseif(AUTOSP_SANITIZE)
  set(AUTOSP_CUDA_MISSING "sanitizers do not know device code")
else()
  find_package(CUDAToolkit ${AUTOSP_CUDA_VERSION} QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(AUTOSP_CUDA_MISSING "no CUDA toolkit ${AUTOSP_CUDA_VERSION} or newer was found")
  elseif(NOT CUDAToolkit_NVCC_EXECUTABLE)
    set(AUTOSP_CUDA_MISSING "the CUDA toolkit in ${CUDAToolkit_ROOT_DIR} has no nvcc")
  endif()
endif()

if(AUTOSP_CUDA_MISSING)
  if(AUTOSP_CUDA STREQUAL ON)
    message(FATAL_ERROR "-DAUTOSP_CUDA=ON, but ${AUTOSP_CUDA_MISSING}: install one, name its folder with "
                        "CUDAToolkit_ROOT, or leave the option out to build for the CPU alone")
  endif()
  message(STATUS "CUDA devices: not built, as ${AUTOSP_CUDA_MISSING}")
  set(AUTOSP_WITH_CUDA OFF)
  return()
endif()

set(AUTOSP_WITH_CUDA ON)
if(NOT DEFINED CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
endif()
# Machine code for Hopper, and PTX that later chips' drivers compile when they first see it.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90)
endif()
if(AUTOSP_CCACHE AND NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${AUTOSP_CCACHE})
endif()
enable_language(CUDA)
# CMake 3.25 does not know that nvcc has C++20.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
message(STATUS "CUDA devices: toolkit ${CUDAToolkit_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
