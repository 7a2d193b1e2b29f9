// The source of a chain's kernel (executor/kernels/chain/chain.h), as C++ that CUDA compiles.
//
// kLanes threads take a row of the iteration shape, kPack elements of it at a time. Where the chain
// has sums or maxima along rows, these end passes over the row: in each, a thread adds up what it
// takes, and what all threads of the row have is combined. The next pass reads the operands again
// (from the cache, mostly) and computes again what it needs of the elements: nothing but totals is
// kept from one pass to the next. The last one writes the results. For y = x * (sum of x * x):
//
//     struct Pass0 {
//       static void run(const Arguments& args, int row, int lane, float* totals) {
//         const float* a0 = static_cast<const float*>(args.operand[0]) + row * 4096LL;
//         for (int c = lane * kPack; c < columns_of(args, row); c += kLanes * kPack) {
//           const auto p0 = load<kPack>(a0 + c);
//           for (int k = 0; k < kPack; ++k) {
//             const float x0 = widen(p0.element[k]);
//             const float s0 = x0 * x0;
//             totals[0] = totals[0] + s0;
//           }
//         }
//       }
//     };
//
// Every step computes in float32 and rounds to its element type, as its own kernel would, in the
// same order of operations; sums along rows alone are added in another order.
//
// Results may lie over operands of their type: an element of a full operand is read by the thread
// that then writes its place, in the last pass; numbers of rows are written after all passes.
//
// Sizes that divide and constants of one element are in the text; what it is called with are
// addresses and the number of rows. So layers of a model have one text.
#pragma once

#include <string>
#include <vector>

#include "ir/graph.h"

namespace autosp::chains {

struct Source {
  // Goes between a prelude, which defines AUTOSP_CHAIN (what a function is declared with), float16,
  // bfloat16, widen() and narrow<T>(), and an entry, which runs the passes on all rows.
  std::string text;
  int threads = 0;               // of a block
  int rows_per_block = 0;        // each has kLanes of the threads
  int64_t rows = 0;              // Arguments::rows; of a flat chain, pieces of kColumns elements
  int64_t elements = 0;          // Arguments::elements
  std::vector<size_t> operands;  // of the node, as Arguments::operand has them
};

// Whether there is a source for the chain: its element types and sizes fit.
bool has_source(const ir::Graph& graph, const ir::Node& chain);

Source source_of(const ir::Graph& graph, const ir::Node& chain);

}  // namespace autosp::chains
