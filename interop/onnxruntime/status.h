// Statuses and exceptions: each becomes the other where our code meets ONNX Runtime's.
#pragma once

#include <string>

#include "base/error.h"
#include "onnxruntime/api.h"

namespace autosp::onnxruntime {

// Throws what the runtime says went wrong, if anything did.
inline void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = call(api, kGetErrorMessage, status);
  call(api, kReleaseStatus, status);
  throw Error("{}", message)
      .note("ONNX Runtime says so")
      .help("check the rank graph with 'autosp-onnx run'");
}

// Runs `action`; null, or a status with the message of what it threw.
template <typename Action>
OrtStatus* guarded(const OrtApi& api, Action&& action) {
  try {
    std::forward<Action>(action)();
    return nullptr;
  } catch (const std::exception& failure) {
    return call(api, kCreateStatus, ErrorCode::kFail, failure.what());
  }
}

}  // namespace autosp::onnxruntime
