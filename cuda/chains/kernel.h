// Chains as kernels of a device: made when a program is compiled, started as its other kernels are.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda/chains/source.h"
#include "cuda/kernels/launch.h"

namespace autosp::chains {

// What a kernel is called with: the bytes of the source's Arguments.
using Arguments = std::vector<uint64_t>;

// A source, compiled.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void start(const kernels::Queue& queue, int64_t blocks, int threads,
                     Arguments arguments) const = 0;
};

// A backend's compiler. Equal texts are compiled once.
class Compiler {
 public:
  virtual ~Compiler() = default;

  // Null where it cannot be compiled; notices() say why.
  std::shared_ptr<const Kernel> kernel(const std::string& text);
  // For the user.
  std::vector<std::string> notices() const;

 protected:
  // Throws Error.
  virtual std::shared_ptr<const Kernel> compile(const std::string& text) = 0;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const Kernel>> kernels_;  // by text
  std::set<std::string> reasons_;                                 // why there is no kernel
};

// What runs a node of a program; empty where there is no kernel for it. The compiler must outlive
// the program.
std::function<void(const executor::KernelCall&)> make_chain(Compiler& compiler,
                                                            const ir::Graph& graph,
                                                            const ir::Node& chain);

// The row of chains, of a backend that `make` knows.
executor::KernelRow chain_row(decltype(executor::KernelRow::make) make);

}  // namespace autosp::chains
