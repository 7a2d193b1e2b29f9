#include "cuda/chains/kernel.h"

#include <algorithm>

#include "base/error.h"
#include "executor/kernels/chain/chain.h"

namespace autosp::chains {

namespace {

constexpr int64_t kMostBlocks = 1 << 16;  // more rows are taken in turn

void start(const Kernel& kernel, const Source& source, const executor::KernelCall& call) {
  Arguments arguments;
  const auto add = [&](const void* address) {
    const auto number = reinterpret_cast<uint64_t>(address);
    AUTOSP_CHECK(number % 16 == 0, "data are not aligned");
    arguments.push_back(number);
  };
  for (size_t k : source.operands) add(call.call.operands[k].data);
  if (source.operands.empty()) add(nullptr);
  for (const auto& result : call.call.results) add(result.data);
  arguments.push_back(static_cast<uint64_t>(source.rows));
  arguments.push_back(static_cast<uint64_t>(source.elements));
  const int64_t blocks = (source.rows + source.rows_per_block - 1) / source.rows_per_block;
  kernel.start(kernels::Queue(call), std::min(blocks, kMostBlocks), source.threads,
               std::move(arguments));
}

}  // namespace

std::shared_ptr<const Kernel> Compiler::kernel(const std::string& text) {
  const std::lock_guard lock(mutex_);
  const auto [entry, is_new] = kernels_.try_emplace(text);
  if (!is_new) return entry->second;
  try {
    entry->second = compile(text);
  } catch (const Error& error) {
    reasons_.insert(error.message());
  }
  return entry->second;
}

std::vector<std::string> Compiler::notices() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> notices;
  for (const std::string& reason : reasons_) {
    notices.push_back("elementwise operators that could be one kernel are one each: " + reason);
  }
  return notices;
}

std::function<void(const executor::KernelCall&)> make_chain(Compiler& compiler,
                                                            const ir::Graph& graph,
                                                            const ir::Node& chain) {
  Source source = source_of(graph, chain);
  std::shared_ptr<const Kernel> kernel = compiler.kernel(source.text);
  if (kernel == nullptr) return nullptr;
  source.text.clear();
  return [kernel = std::move(kernel), source = std::move(source)](
             const executor::KernelCall& call) { start(*kernel, source, call); };
}

executor::KernelRow chain_row(decltype(executor::KernelRow::make) make) {
  return {.domain = ir::kAutospDomain,
          .op = executor::chain::kOp,
          .accepts = has_source,
          .aliasing = reference::Aliasing::kElementwise,
          .make = make};
}

}  // namespace autosp::chains
