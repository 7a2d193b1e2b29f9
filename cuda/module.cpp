// What the program finds in this library.
#include "cuda/backend.h"
#include "cuda/survey.h"
#include "executor/device_module.h"

extern "C" __attribute__((visibility("default")))
const autosp::executor::ModuleEntry autosp_device_module;
const autosp::executor::ModuleEntry autosp_device_module = {autosp::executor::kModuleVersion,
                                                            AUTOSP_BUILD, autosp::cuda::survey,
                                                            autosp::cuda::make_backend};
