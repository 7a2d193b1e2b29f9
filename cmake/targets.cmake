# Defines the targets of the house's folders.

set(AUTOSP_WARNINGS -Wall -Wextra -Wpedantic -Wshadow=local -Wnon-virtual-dtor -Woverloaded-virtual
                    -Wno-missing-field-initializers -Werror=return-type)

function(autosp_compile_options target)
  target_compile_options(${target} PRIVATE ${AUTOSP_WARNINGS})
  if(AUTOSP_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${AUTOSP_SANITIZE} -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${AUTOSP_SANITIZE})
  endif()
endfunction()

# autosp_library(NAME [LINK target...] [PRIVATE target...])
#
# A static library of this folder's *.cpp files, whose headers are included as "NAME/header.h".
# They are reached through an include directory that holds this folder alone, so including the
# header of a folder that is not linked does not compile.
function(autosp_library name)
  cmake_parse_arguments(arg "" "" "LINK;PRIVATE" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  set(includes ${CMAKE_BINARY_DIR}/include/${name})
  file(MAKE_DIRECTORY ${includes})
  file(CREATE_LINK ${CMAKE_CURRENT_SOURCE_DIR} ${includes}/${name} SYMBOLIC)
  add_library(autosp_${name} STATIC ${sources})
  target_include_directories(autosp_${name} PUBLIC ${includes})
  target_link_libraries(autosp_${name} PUBLIC ${arg_LINK} PRIVATE ${arg_PRIVATE})
  autosp_compile_options(autosp_${name})
endfunction()
