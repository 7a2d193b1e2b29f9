// Where the ranks of a run get their inputs: from whole ones, from a file of their own each, or
// some from these and the rest from those.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "batch_stamp.h"
#include "executor/npz.h"
#include "onnx/manifest.h"
#include "output_file.h"

namespace autosp::cli {

struct FeedFiles {
  std::filesystem::path whole;  // --feed
  std::string by_rank;          // --feed-rank: a path with "{rank}" in it
  std::optional<int64_t> step;
  std::filesystem::path folder;  // of the sharded model, whose initial parameters may be left out
};

// The files that a run reads its inputs from, for check_output_files.
std::vector<InputFile> files_of(const FeedFiles& arguments, const onnx_io::Manifest& manifest);

// The manifest at the length of the sequence that `rank` is fed; itself where the graphs are for
// one length. Throws Error for a length that they do not take.
onnx_io::Manifest at_length_of(const onnx_io::Manifest& manifest, const FeedFiles& arguments,
                               int64_t rank);

class FeedSource {
 public:
  // Reads the whole inputs. Throws Error for a feed that does not fit the model.
  FeedSource(const onnx_io::Manifest& manifest, const FeedFiles& arguments);

  // What the rank is fed. Throws Error for a file of its own that lacks an input, has one of
  // another shape or type, or was cut for another rank or model.
  executor::Arrays of_rank(int64_t rank);

  // Whether ranks have files of their own, which may be of different batches.
  bool by_rank() const { return !arguments_.by_rank.empty(); }
  // Of the rank whose feed was asked for last.
  const FeedDigest& digest() const { return digest_; }

 private:
  const onnx_io::Manifest& manifest_;
  FeedFiles arguments_;
  executor::Arrays whole_;
  FeedDigest digest_;
};

}  // namespace autosp::cli
