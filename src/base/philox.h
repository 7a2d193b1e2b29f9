// Philox4x32-10: four random words as a function of a counter and a key, without state.
//
// J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: Parallel Random Numbers: As Easy as 1, 2, 3.
// SC'11, https://doi.org/10.1145/2063384.2063405, section 3.3. The known answers that its authors
// publish are in test/unit/philox_test.cpp.
#pragma once

#include <array>
#include <cstdint>

namespace autosp::philox {

using Counter = std::array<uint32_t, 4>;
using Key = std::array<uint32_t, 2>;

inline constexpr int kRounds = 10;
inline constexpr std::array<uint32_t, 2> kMultipliers = {0xD2511F53U, 0xCD9E8D57U};
inline constexpr std::array<uint32_t, 2> kKeySteps = {0x9E3779B9U, 0xBB67AE85U};

// The four words that belong to this counter under this key.
constexpr Counter words(Counter counter, Key key) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = uint64_t{kMultipliers[0]} * counter[0];
    const uint64_t b = uint64_t{kMultipliers[1]} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32U) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32U) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += kKeySteps[0];
    key[1] += kKeySteps[1];
  }
  return counter;
}

}  // namespace autosp::philox
