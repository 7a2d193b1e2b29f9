#include "reference/kernels.h"

#include <algorithm>
#include <unordered_map>

#include "base/context.h"
#include "ir/operator_traits.h"
#include "reference/call.h"

namespace autosp::reference {

namespace {

using Table = std::unordered_map<std::string_view, const KernelRow*>;

Table make_table(std::initializer_list<std::span<const KernelRow>> parts) {
  Table result;
  for (const auto rows : parts) {
    for (const KernelRow& row : rows) {
      AUTOSP_CHECK(result.emplace(row.op, &row).second, "two kernels for {}", row.op);
    }
  }
  return result;
}

const Table& standard_table() {
  static const Table table = make_table(
      {unary_kernels(), binary_kernels(), select_kernels(), reduce_kernels(), ordering_kernels(),
       matmul_kernels(), convolution_kernels(), transposed_convolution_kernels(), pooling_kernels(),
       movement_kernels(), indexing_kernels(), normalization_kernels(), generator_kernels(),
       loss_kernels()});
  return table;
}

const Table& own_table() {
  static const Table table = make_table({attention_kernels(), draw_kernels()});
  return table;
}

const Table& training_table() {
  static const Table table = make_table({training_kernels()});
  return table;
}

const Table* table_of(std::string_view domain) {
  if (domain.empty()) return &standard_table();
  if (domain == ir::kAutospDomain) return &own_table();
  return domain == ir::kTrainingDomain ? &training_table() : nullptr;
}

const KernelRow* find_row(std::string_view domain, std::string_view op) {
  const Table* table = table_of(domain);
  if (table == nullptr) return nullptr;
  const auto found = table->find(op);
  return found == table->end() ? nullptr : found->second;
}

}  // namespace

Kernel find_kernel(std::string_view domain, std::string_view op) {
  const KernelRow* row = find_row(domain, op);
  return row == nullptr ? nullptr : row->kernel;
}

Aliasing aliasing_of(std::string_view domain, std::string_view op) {
  const KernelRow* row = find_row(domain, op);
  return row == nullptr ? Aliasing::kNone : row->aliasing;
}

std::vector<std::string> operators_with_kernels() {
  std::vector<std::string> names;
  for (const Table* table : {&standard_table(), &training_table()}) {
    for (const auto& [op, row] : *table) names.emplace_back(op);
  }
  std::ranges::sort(names);
  return names;
}

std::vector<ir::Tensor> evaluate(const ir::Graph& graph, const ir::Node& node,
                                 std::span<const ir::Tensor> operands) {
  const Kernel kernel = find_kernel(node.domain, node.op);
  if (kernel == nullptr) {
    throw Error("{}: there is no kernel for this operator", graph.describe(node))
        .note("it is evaluated before the run, because its operands are constants")
        .help("export the model with this part folded into a constant");
  }
  std::vector<Operand> inputs;
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    if (!node.inputs[k]) {
      inputs.emplace_back();
      continue;
    }
    AUTOSP_CHECK(k < operands.size(), "{}: operand {} is missing", graph.describe(node), k);
    const ir::Tensor& tensor = operands[k];
    inputs.push_back({tensor.dtype(), &tensor.shape(), tensor.bytes().data()});
  }
  std::vector<ir::Tensor> tensors;
  for (ValueId id : node.outputs) {
    tensors.push_back(id ? ir::Tensor(graph.type(id)) : ir::Tensor());
  }
  std::vector<Result> results;
  for (ir::Tensor& tensor : tensors) {
    if (tensor.dtype() == ir::DataType::kUndefined) {
      results.emplace_back();
    } else {
      results.push_back({tensor.dtype(), &tensor.shape(), tensor.mutable_bytes()});
    }
  }
  try {
    kernel(Call{node, inputs, results});
  } catch (Error& error) {
    error.note("while evaluating " + graph.describe(node));
    throw complete(error, "", "the model computes this from constants alone: export it again");
  }
  return tensors;
}

std::vector<int64_t> integers(const Operand& operand) {
  const auto count = static_cast<size_t>(size_of(operand));
  std::vector<int64_t> result(count);
  visit(TypeList<int64_t, int32_t>{}, operand.dtype, [&]<typename T>(std::type_identity<T>) {
    std::copy_n(data<T>(operand), count, result.begin());
  });
  return result;
}

}  // namespace autosp::reference
