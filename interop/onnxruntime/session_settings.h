// Settings of a session: its config entries whose keys begin with "autosp.".
#pragma once

#include "onnxruntime/api.h"
#include "onnxruntime/member.h"

namespace autosp::onnxruntime {

// Throws Error for values that mean nothing.
Settings read_settings(const OrtApi& api, const OrtSessionOptions& options);

}  // namespace autosp::onnxruntime
