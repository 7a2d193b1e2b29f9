# autosp_shard(TARGET MODEL model.onnx SP n [DP m] [OUTPUT folder] [OPTIONS option...])
#
# Builds the target TARGET, which splits MODEL over SP ranks (times DP) into the folder OUTPUT, by
# default TARGET in the binary directory of the caller. It is made again when the model, a data file
# that the model names, or the program changes. OPTIONS are further ones of `autosp-onnx shard`. The
# result's manifest is the target's property AUTOSP_MANIFEST.
#
# The program is the target autosp::autosp-onnx where there is one (find_package(autosp)), otherwise
# AUTOSP_ONNX_PROGRAM, which is looked for on the path.
cmake_policy(PUSH)
cmake_policy(VERSION 3.25)  # how ninja reads depfiles, whatever the caller's version

function(autosp_shard target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "MODEL;SP;DP;OUTPUT" "OPTIONS")
  if(NOT arg_MODEL OR NOT arg_SP)
    message(FATAL_ERROR "autosp_shard(${target}): MODEL and SP are needed")
  endif()
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "autosp_shard(${target}): what is '${arg_UNPARSED_ARGUMENTS}'?")
  endif()
  if(TARGET autosp::autosp-onnx)
    set(program $<TARGET_FILE:autosp::autosp-onnx>)
    set(program_dependency autosp::autosp-onnx)
  else()
    find_program(AUTOSP_ONNX_PROGRAM autosp-onnx REQUIRED)
    set(program ${AUTOSP_ONNX_PROGRAM})
    set(program_dependency ${AUTOSP_ONNX_PROGRAM})
  endif()
  if(NOT arg_OUTPUT)
    set(arg_OUTPUT ${target})
  endif()
  get_filename_component(model ${arg_MODEL} ABSOLUTE BASE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
  get_filename_component(output ${arg_OUTPUT} ABSOLUTE BASE_DIR ${CMAKE_CURRENT_BINARY_DIR})
  if(arg_DP)
    list(APPEND arg_OPTIONS --dp=${arg_DP})
  endif()
  set(manifest ${output}/manifest.json)
  get_filename_component(parent ${output} DIRECTORY)  # which the depfile is written into
  add_custom_command(
    OUTPUT ${manifest}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${parent}
    COMMAND ${program} shard ${model} --sp=${arg_SP} ${arg_OPTIONS} -o ${output} --depfile ${output}.d
    DEPENDS ${model} ${program_dependency}
    DEPFILE ${output}.d
    COMMENT "Splitting ${arg_MODEL} over ${arg_SP} ranks"
    VERBATIM)
  add_custom_target(${target} ALL DEPENDS ${manifest})
  set_target_properties(${target} PROPERTIES AUTOSP_MANIFEST ${manifest})
endfunction()

cmake_policy(POP)
