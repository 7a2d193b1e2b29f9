// NumPy's .npy and .npz files: feeds and outputs of a run.
//
// Read: version 1 to 3 headers, little endian, C order, stored or deflated archive members; bool,
// int8/16/32/64, uint8/16/32/64, float16/32/64. NumPy has no bfloat16: it is written as 2-byte void
// ("<V2", what ml_dtypes gives) and a "V2" array is read as bfloat16. Of bools every byte but 0 is
// read as 1.
//
// Errors (not such a file, truncated, Fortran order, big endian, other types) are Error and name
// the file and the array.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "ir/tensor.h"

namespace autosp::executor {

using Arrays = std::map<std::string, ir::Tensor>;

// `what` names the array in errors.
ir::Tensor parse_npy(std::span<const std::byte> bytes, const std::string& what);
std::string encode_npy(const ir::Tensor& tensor);

Arrays read_npz(const std::filesystem::path& path);

// Deterministic (no time stamps), uncompressed unless `deflate`; appears under its name by rename.
void write_npz(const std::filesystem::path& path, const Arrays& arrays, bool deflate = false);

}  // namespace autosp::executor
