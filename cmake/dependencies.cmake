# Everything comes from Debian packages but libonnx, which scripts/setup builds into .deps/.
set(AUTOSP_ONNX_VERSION 1.23.2)
list(PREPEND CMAKE_PREFIX_PATH ${CMAKE_SOURCE_DIR}/.deps/onnx-${AUTOSP_ONNX_VERSION})

find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(ONNX ${AUTOSP_ONNX_VERSION} CONFIG QUIET)
if(NOT ONNX_FOUND)
  message(FATAL_ERROR "libonnx ${AUTOSP_ONNX_VERSION} was not found in ${CMAKE_SOURCE_DIR}/.deps: "
                      "run scripts/setup there first (before 'pip install' too), or name the folder it is "
                      "installed in with CMAKE_PREFIX_PATH")
endif()
find_package(fmt 9 REQUIRED)
find_package(CLI11 2 REQUIRED)
find_package(nlohmann_json 3 REQUIRED)
find_package(yaml-cpp 0.7 REQUIRED)
find_package(Boost 1.74 REQUIRED)
find_package(MPI REQUIRED COMPONENTS CXX)
find_package(PkgConfig REQUIRED)
pkg_check_modules(OPENBLAS REQUIRED IMPORTED_TARGET openblas)
pkg_check_modules(LIBZIP REQUIRED IMPORTED_TARGET libzip)
