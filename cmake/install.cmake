# What `cmake --install` puts where, and the Debian package that `cpack -G DEB` makes of it:
#
#   bin/autosp-onnx
#   lib/libautosp_ort_collectives.so            for ONNX Runtime (docs/other_runtimes.md)
#   lib/libautosp_cuda.so                       code for CUDA devices, where it was built
#   lib/cmake/autosp/                           find_package(autosp): the target autosp::autosp-onnx
#                                               and the function autosp_shard
#   share/bash-completion, share/fish, share/zsh
#   share/man/man1/autosp-onnx*.1.gz            where help2man is installed
include(CMakePackageConfigHelpers)

set(AUTOSP_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/autosp)
install(TARGETS autosp-onnx EXPORT autosp-targets RUNTIME)
install(TARGETS autosp_ort_collectives LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(AUTOSP_WITH_CUDA)
  install(TARGETS autosp_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
# What the Python package holds (pyproject.toml), below its folder.
install(TARGETS autosp-onnx RUNTIME DESTINATION autosp_onnx/bin COMPONENT python EXCLUDE_FROM_ALL)
install(TARGETS autosp_ort_collectives LIBRARY DESTINATION autosp_onnx/lib COMPONENT python EXCLUDE_FROM_ALL)
install(EXPORT autosp-targets NAMESPACE autosp:: DESTINATION ${AUTOSP_CMAKE_DIR})
configure_package_config_file(cmake/autosp-config.cmake.in ${CMAKE_BINARY_DIR}/autosp-config.cmake
                              INSTALL_DESTINATION ${AUTOSP_CMAKE_DIR})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/autosp-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/autosp-config.cmake
              ${CMAKE_BINARY_DIR}/autosp-config-version.cmake
              ${CMAKE_SOURCE_DIR}/cmake/autosp_shard.cmake DESTINATION ${AUTOSP_CMAKE_DIR})
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# Made from the program itself, whenever it is linked.
set(AUTOSP_SHARE ${CMAKE_BINARY_DIR}/share)
set(AUTOSP_COMMANDS batch check completion devices explain feed inspect plan replay report run shard train validate)
set(made ${AUTOSP_SHARE}/bash-completion/completions/autosp-onnx
         ${AUTOSP_SHARE}/fish/vendor_completions.d/autosp-onnx.fish
         ${AUTOSP_SHARE}/zsh/vendor-completions/_autosp-onnx)
add_custom_command(
  OUTPUT ${made}
  COMMAND ${CMAKE_COMMAND} -E make_directory ${AUTOSP_SHARE}/bash-completion/completions
          ${AUTOSP_SHARE}/fish/vendor_completions.d ${AUTOSP_SHARE}/zsh/vendor-completions
  COMMAND autosp-onnx completion bash > ${AUTOSP_SHARE}/bash-completion/completions/autosp-onnx
  COMMAND autosp-onnx completion fish > ${AUTOSP_SHARE}/fish/vendor_completions.d/autosp-onnx.fish
  COMMAND autosp-onnx completion zsh > ${AUTOSP_SHARE}/zsh/vendor-completions/_autosp-onnx
  DEPENDS autosp-onnx
  COMMENT "Writing what shells complete")

find_program(AUTOSP_HELP2MAN help2man)
if(AUTOSP_HELP2MAN)
  set(pages ${AUTOSP_SHARE}/man/man1)
  set(page ${pages}/autosp-onnx.1.gz)
  add_custom_command(
    OUTPUT ${page}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${pages}
    COMMAND ${CMAKE_COMMAND} -DHELP2MAN=${AUTOSP_HELP2MAN} -DPROGRAM=$<TARGET_FILE:autosp-onnx>
            "-DCOMMANDS=${AUTOSP_COMMANDS}" -DPAGES=${pages} -P ${CMAKE_SOURCE_DIR}/cmake/man_pages.cmake
    DEPENDS autosp-onnx ${CMAKE_SOURCE_DIR}/cmake/man_pages.cmake
    COMMENT "Writing manual pages"
    VERBATIM)
  list(APPEND made ${page})
endif()
add_custom_target(autosp_share ALL DEPENDS ${made})
install(DIRECTORY ${AUTOSP_SHARE}/ DESTINATION ${CMAKE_INSTALL_DATADIR})

set(CPACK_PACKAGE_NAME autosp-onnx)
set(CPACK_PACKAGE_VENDOR autosp-onnx)
set(CPACK_PACKAGE_CONTACT "the autosp-onnx authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY ${PROJECT_DESCRIPTION})
set(CPACK_GENERATOR DEB)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS openmpi-bin)
include(CPack)
