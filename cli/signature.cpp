#include "signature.h"

#include <algorithm>

#include "ir/operator_traits.h"

namespace autosp::cli {

namespace {

constexpr const char* kRankKey = "autosp.rank";
constexpr const char* kRanksKey = "autosp.ranks";
constexpr const char* kPlanKey = "autosp.plan";
constexpr const char* kToolKey = "autosp.tool";
constexpr const char* kVersionKey = "autosp.version";

}  // namespace

std::string plan_signature(const onnx_io::Manifest& manifest) {
  return onnx_io::fingerprint(manifest.model_fingerprint + " " + manifest.plan_hash);
}

void sign(ir::Graph& graph, const onnx_io::Manifest& manifest, const std::string& rank) {
  if (!rank.empty()) graph.metadata[kRankKey] = rank;
  graph.metadata[kRanksKey] = std::to_string(manifest.ranks.size());
  graph.metadata[kPlanKey] = plan_signature(manifest);
  graph.metadata[kToolKey] = "autosp-onnx";
  graph.metadata[kVersionKey] = manifest.tool_version;
}

std::optional<Signature> signature_of(const ir::Graph& graph) {
  const auto read = [&](const char* key) {
    const auto found = graph.metadata.find(key);
    return found == graph.metadata.end() ? std::string() : found->second;
  };
  Signature result{.rank = read(kRankKey), .ranks = read(kRanksKey), .plan = read(kPlanKey)};
  if (!result.rank.empty()) return result;
  // Written before graphs were signed: only rank graphs have collectives.
  const bool collectives = std::ranges::any_of(graph.nodes(), ir::is_collective);
  if (!collectives) return std::nullopt;
  return result;
}

}  // namespace autosp::cli
