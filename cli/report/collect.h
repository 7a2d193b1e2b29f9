// A report's figures, measured: runs the ranks of a sharded folder as threads of this process.
#pragma once

#include <filesystem>

#include "cost/device.h"
#include "onnx/manifest.h"
#include "report/data.h"

namespace autosp::cli {

struct ReportOptions {
  std::filesystem::path feed;   // empty: generated
  uint64_t seed = 1;            // of generated inputs
  std::filesystem::path model;  // empty: nothing is compared with the whole model
  cost::Device device;          // whose rates the operators are held against
  double timeout = 60;          // seconds that a collective waits
  int threads_per_rank = 0;     // 0: the cores divided by the ranks
  int repeat = 3;               // steps; the last is told
};

ReportData collect_report(const std::filesystem::path& folder, const onnx_io::Manifest& manifest,
                          const ReportOptions& options);

}  // namespace autosp::cli
