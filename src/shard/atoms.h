// Atoms: the indivisible pieces of dimensions.
//
// A dimension of a value is a list of atoms, major to minor, whose sizes multiply to its extent; a
// dimension of extent 1 is the empty list. Two dimensions that hold the same atom run over the same
// index. `unify` states that two lists are the same index space, splitting atoms where one list is
// finer than the other: unify((12), (3, 4)) splits 12 into 3 and 4.
//
// Two relations exist between atoms:
//   same index  kept by unify: equal positions mean equal elements, so cut points are shared
//   same class  kept by unite_classes: related by a window (Slice, Pad), so 63 and 64 tokens are
//   one
//               class with different cut points
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace autosp::shard {

using AtomId = Id<struct AtomTag>;
using ClassId = Id<struct ClassTag>;
using AtomList = std::vector<AtomId>;

class Atoms {
 public:
  AtomId make(int64_t size);

  // The atoms a list stands for after all refinement so far; only these are compared elsewhere.
  AtomList resolve(const AtomList& list) const;
  int64_t size(AtomId atom) const { return atoms_[atom.index()].size; }

  // Makes two lists of equal product the same. False, with nothing changed, when their boundaries
  // cannot be reconciled, as in (4, 6) and (6, 4).
  bool unify(const AtomList& a, const AtomList& b);

  // Classes, of resolved atoms; call only after all refinement.
  void unite_classes(AtomId a, AtomId b);
  ClassId class_of(AtomId atom) const;

 private:
  struct Atom {
    int64_t size = 1;
    AtomId same_as;       // united with: follow it
    AtomList pieces;      // split into, major to minor
    AtomId class_parent;  // of resolved atoms
  };

  AtomId find(AtomId atom) const;
  void resolve_into(AtomId atom, AtomList& out) const;
  std::vector<int64_t> sizes(const AtomList& list) const;

  std::vector<Atom> atoms_;
};

}  // namespace autosp::shard
