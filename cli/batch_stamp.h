// What tells a rank's feed file from every other: whose it is, and which batch it was cut from.
//
// `autosp-onnx feed` and the Python function write_feeds put it into each file, `run --feed-rank`
// reads it. Ranks that share a sequence must be fed one batch: that two slices are of the same one
// shows in nothing but this.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "executor/npz.h"
#include "onnx/manifest.h"

namespace autosp::cli {

// The array of a feed file that holds the stamp, as the bytes of a JSON text.
inline constexpr const char* kStampName = "autosp.feed";

using Checksums = std::map<std::string, uint32_t>;  // by input

struct BatchStamp {
  int64_t rank = 0;
  std::string plan;  // plan_signature
  Checksums whole;   // of every data input as it was before it was cut
};

// CRC-32 (zlib's) of the elements, in row-major order.
uint32_t checksum(const ir::Tensor& tensor);

// Of the data inputs among `batch`; the number of the step, which nothing is cut from, is none.
Checksums whole_checksums(const onnx_io::Manifest& manifest, const executor::Arrays& batch);

ir::Tensor encode(const BatchStamp& stamp);
// `where` names the file in errors.
BatchStamp decode(const ir::Tensor& tensor, const std::string& where);

// What a rank tells the others of its feed.
struct FeedDigest {
  Checksums taken;                 // of every input, as the rank is fed it
  std::optional<Checksums> whole;  // of its file's stamp; nullopt where that has none
};
std::string to_text(const FeedDigest& digest);
FeedDigest parse_digest(const std::string& text);

// Throws Error, naming input and ranks, where two ranks that take the same part of an input are fed
// different ones, or ranks that share a sequence are fed slices of different batches.
void check_one_batch(const onnx_io::Manifest& manifest, const std::vector<FeedDigest>& ranks);

}  // namespace autosp::cli
