# cmake -DHELP2MAN=… -DPROGRAM=… -DCOMMANDS=… -DPAGES=… -P man_pages.cmake
#
# A page for the program and one for each of its commands, from their --help.
function(write_page name words)
  execute_process(COMMAND ${HELP2MAN} --no-info --no-discard-stderr --section=1 --name=${ARGV2}
                          --version-string=${version} ${words}
                  OUTPUT_FILE ${PAGES}/${name}.1 COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND gzip -9nf ${PAGES}/${name}.1 COMMAND_ERROR_IS_FATAL ANY)
endfunction()

execute_process(COMMAND ${PROGRAM} --version OUTPUT_VARIABLE version OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "autosp-onnx " "" version ${version})
foreach(command ${COMMANDS})
  write_page(autosp-onnx-${command} "${PROGRAM} ${command}" "the command '${command}' of autosp-onnx")
endforeach()
write_page(autosp-onnx ${PROGRAM} "sequence-parallel sharding of ONNX training graphs")
