// For every processor.
#include "executor/kernels/chain/loops.inc"

namespace autosp::executor::chain {

const Loops* portable_loops() { return &kLoops; }

const Loops& best_loops() {
  for (const Loops* loops : {avx512_loops(), avx2_loops()}) {
    if (loops != nullptr) return *loops;
  }
  return *portable_loops();
}

}  // namespace autosp::executor::chain
