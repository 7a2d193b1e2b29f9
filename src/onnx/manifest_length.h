// Manifests of graphs that take sequences of several lengths.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "onnx/manifest.h"

namespace autosp::onnx_io {

// "multiples of 4 from 8 to 64", for messages.
std::string allowed_lengths(const ManifestOpenLength& open);

// The manifest of one length: shapes, slices and the dimension's value are those of it; byte counts
// stay those of the length that was planned for. Throws Error for a length that the graphs do not
// take. The manifest must have an open length.
Manifest at_length(const Manifest& manifest, int64_t length);

// The length of the sequence that inputs of these shapes, by name, have. Throws Error when they
// have none, or none that fits: an input of which the length follows is missing, or has another
// rank.
int64_t length_of(const Manifest& manifest, const std::map<std::string, ir::Shape>& shapes);

}  // namespace autosp::onnx_io
