// Disjoint sets of the numbers 0 ... n - 1 (union-find with path halving).
#pragma once

#include <cstddef>
#include <numeric>
#include <vector>

namespace autosp {

class UnionFind {
 public:
  UnionFind() = default;
  // So many elements, each a set of its own.
  explicit UnionFind(size_t elements) : parents_(elements) {
    std::iota(parents_.begin(), parents_.end(), size_t{0});
  }

  // One more element, whose number is returned.
  size_t add() {
    parents_.push_back(parents_.size());
    return parents_.back();
  }

  // The number that stands for an element's set; valid until the next `unite`.
  size_t find(size_t element) {
    while (parents_[element] != element) {
      parents_[element] = parents_[parents_[element]];
      element = parents_[element];
    }
    return element;
  }

  void unite(size_t a, size_t b) { parents_[find(b)] = find(a); }

 private:
  std::vector<size_t> parents_;
};

}  // namespace autosp
