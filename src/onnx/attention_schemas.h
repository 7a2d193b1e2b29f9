// Private to this folder.
#pragma once

#include <onnx/defs/schema.h>

namespace autosp::onnx_io {

// Once per process, after the domain is known.
void register_attention_schemas();

}  // namespace autosp::onnx_io
