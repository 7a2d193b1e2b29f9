// What the lowerings of com.microsoft operators share.
//
// Definitions are those of ONNX Runtime's operator schemas (contrib and training operators).
#pragma once

#include "ir/rewriter.h"

namespace autosp::transforms::microsoft {

// One operator being replaced by standard ones.
struct Lowering {
  ir::Rewriter& rewriter;
  const ir::Node& node;  // in rewriter.from()

  ir::Builder& build() const { return rewriter.build(); }
  bool has(size_t k) const { return node.input(k).valid(); }
  ValueId operand(size_t k) const { return rewriter.mapped(node.input(k)); }
  bool wants(size_t k) const { return node.output(k).valid(); }
  const ir::Type& result_type(size_t k) const { return rewriter.from().type(node.output(k)); }
  const std::string& name(size_t k) const { return rewriter.from().name_of(node.output(k)); }
  // `value` stands for result k; reshaped when a size-1 dimension is kept in one and not in both.
  void result(size_t k, ValueId value) const;
  // The integers of constant operand k. Throws Error when it is not constant.
  std::vector<int64_t> constant_ints(size_t k) const;
};

using LoweringFunction = void (*)(const Lowering&);

struct LoweringRow {
  std::string_view op;
  LoweringFunction lower;
};

// One table per family; `activations.cpp` and so on.
const std::vector<LoweringRow>& activation_lowerings();
const std::vector<LoweringRow>& dropout_lowerings();
const std::vector<LoweringRow>& matmul_lowerings();
const std::vector<LoweringRow>& normalization_lowerings();
const std::vector<LoweringRow>& indexing_lowerings();
const std::vector<LoweringRow>& loss_lowerings();
const std::vector<LoweringRow>& attention_lowerings();

}  // namespace autosp::transforms::microsoft
