// Integers that depend on the length of the sequence.
//
// A graph that is open in the length takes lengths that are a multiple of some number, the
// `multiple`; a length is counted in *units* of that many tokens. Extents, cut points and whatever
// else a graph says in numbers are polynomials of the units, of degree 2 at most: every cut point
// is a share of the sequence, and a product of two extents is the most that operators ask for.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace autosp::transforms {

// constant + linear * units + quadratic * units^2
struct LengthForm {
  int64_t constant = 0;
  int64_t linear = 0;
  int64_t quadratic = 0;

  bool is_constant() const { return linear == 0 && quadratic == 0; }
  int64_t at(int64_t units) const { return constant + units * (linear + units * quadratic); }
  auto operator<=>(const LengthForm&) const = default;
};

// The dimension that stays open.
struct OpenLength {
  std::string dim;       // its name in the model
  int64_t multiple = 1;  // tokens of a unit
};

// "seq/4+1", "3*seq/4", "17".
std::string to_string(const LengthForm& form, const OpenLength& open);

// The form that has these values at these units, of the lowest degree; at least one value more than
// the degree needs must confirm it. Nullopt when there is none. `units` are distinct.
std::optional<LengthForm> fit(std::span<const int64_t> units, std::span<const int64_t> values);

}  // namespace autosp::transforms
