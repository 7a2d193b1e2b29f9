#include "training/runtime_optimizer.h"

#include <fmt/ranges.h>

#include <set>

#include "base/error.h"
#include "onnx/optimizer_model.h"

namespace autosp::cli {

namespace {

// A float attribute as the decimal number that was written, such as 0.9.
double decimal(float value) { return std::stod(fmt::format("{}", value)); }

void read_adamw(const onnx_io::PlainNode& node, const std::filesystem::path& path,
                transforms::OptimizerSettings& settings) {
  const ir::Attributes& a = node.attributes;
  // Left out, an attribute has ONNX Runtime's default.
  settings.name = a.get_int("adam_mode", 0) == 0 ? "adamw" : "adamw_after";
  settings.beta1 = decimal(a.get_float("alpha", 0.9F));
  settings.beta2 = decimal(a.get_float("beta", 0.999F));
  settings.epsilon = decimal(a.get_float("epsilon", 1e-8F));
  settings.weight_decay = decimal(a.get_float("weight_decay", 1e-2F));
  if (a.get_int("correct_bias", 1) == 1) return;
  throw Error("'{}' updates by a variant of AdamW that has no graph here", path.string())
      .note("its correct_bias is 0: averages are not corrected for beginning at zero")
      .help("make the artifacts with correct_bias, or give --optimizer and its options instead");
}

}  // namespace

transforms::OptimizerSettings read_optimizer_model(const std::filesystem::path& path) {
  transforms::OptimizerSettings settings{.name = ""};
  std::set<std::string> operators;
  for (const onnx_io::PlainNode& node : onnx_io::read_nodes(path)) {
    if (node.domain != ir::kMicrosoftDomain) continue;
    operators.insert(node.op);
    if (node.op == "AdamWOptimizer") read_adamw(node, path, settings);
    if (node.op == "SGDOptimizerV2") settings.name = "sgd";
    if (node.op == "InplaceClipGradNorm") {
      settings.clip_norm = decimal(node.attributes.get_float("max_norm", 1.0F));
    }
  }
  if (!settings.name.empty()) return settings;
  throw Error("'{}' has no optimizer", path.string())
      .note(operators.empty()
                ? "it has no operator of ONNX Runtime's"
                : fmt::format("of ONNX Runtime's operators it has {}", fmt::join(operators, ", ")))
      .help("give optimizer_model.onnx of ONNX Runtime's training artifacts, or --optimizer NAME");
}

}  // namespace autosp::cli
