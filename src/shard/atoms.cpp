#include "shard/atoms.h"

#include <deque>

#include "base/error.h"

namespace autosp::shard {

namespace {

// Whether two lists of sizes refine to a common list.
bool reconcilable(std::deque<int64_t> a, std::deque<int64_t> b) {
  while (!a.empty() && !b.empty()) {
    int64_t x = a.front();
    int64_t y = b.front();
    a.pop_front();
    b.pop_front();
    if (x == y) continue;
    auto& longer = x > y ? a : b;
    if (x < y) std::swap(x, y);
    if (y == 0 || x % y != 0) return false;
    longer.push_front(x / y);
  }
  return a.empty() && b.empty();
}

}  // namespace

AtomId Atoms::make(int64_t size) {
  atoms_.push_back({.size = size});
  return AtomId(atoms_.size() - 1);
}

AtomId Atoms::find(AtomId atom) const {
  while (atoms_[atom.index()].same_as) atom = atoms_[atom.index()].same_as;
  return atom;
}

void Atoms::resolve_into(AtomId atom, AtomList& out) const {
  atom = find(atom);
  const AtomList& pieces = atoms_[atom.index()].pieces;
  if (pieces.empty()) {
    out.push_back(atom);
    return;
  }
  for (AtomId piece : pieces) resolve_into(piece, out);
}

AtomList Atoms::resolve(const AtomList& list) const {
  AtomList result;
  for (AtomId atom : list) resolve_into(atom, result);
  return result;
}

bool Atoms::unify(const AtomList& a, const AtomList& b) {
  const AtomList left = resolve(a);
  const AtomList right = resolve(b);
  auto sizes_of = [this](const AtomList& list) {
    std::deque<int64_t> sizes;
    for (AtomId atom : list) sizes.push_back(size(atom));
    return sizes;
  };
  if (!reconcilable(sizes_of(left), sizes_of(right))) return false;

  std::deque<AtomId> x(left.begin(), left.end());
  std::deque<AtomId> y(right.begin(), right.end());
  // An atom may occur in both lists and be split while it waits in one: resolve what comes up.
  auto expose = [this](std::deque<AtomId>& list) {
    const AtomList pieces = resolve({list.front()});
    list.pop_front();
    list.insert(list.begin(), pieces.begin(), pieces.end());
    return list.front();
  };
  while (!x.empty() && !y.empty()) {
    const AtomId p = expose(x);
    const AtomId q = expose(y);
    if (p == q) {
      x.pop_front();
      y.pop_front();
    } else if (size(p) == size(q)) {
      atoms_[q.index()].same_as = p;
      x.pop_front();
      y.pop_front();
    } else {
      const AtomId larger = size(p) > size(q) ? p : q;
      const int64_t major = std::min(size(p), size(q));
      // Splitting the larger atom changes every occurrence; another size of it further on may then
      // no longer line up, which the check above cannot foresee.
      if (size(larger) % major != 0) return false;
      const AtomId first = make(major);
      const AtomId rest = make(size(larger) / major);
      atoms_[larger.index()].pieces = {first, rest};
    }
  }
  return x.empty() && y.empty();
}

void Atoms::unite_classes(AtomId a, AtomId b) {
  const ClassId x = class_of(a);
  const ClassId y = class_of(b);
  if (x != y) atoms_[y.index()].class_parent = AtomId(x.index());
}

ClassId Atoms::class_of(AtomId atom) const {
  while (atoms_[atom.index()].class_parent) atom = atoms_[atom.index()].class_parent;
  return ClassId(atom.index());
}

}  // namespace autosp::shard
