// What dropout multiplies weights by, drawn by place (docs/random.md), tile by tile. See simd.h for
// how this is compiled.
//
// A counter gives four numbers. Where those of a query's keys follow each other, as they do in the
// graphs that exporters write, four keys share one, from a word on that may differ from query to
// query; else each weight has a counter of its own.
#pragma once

#include "base/philox.h"
#include "executor/kernels/attention/scores.h"

namespace autosp::executor::attention {
namespace {

inline constexpr int64_t kWords = 4;  // of a counter

// A counter per lane: words in, numbers out.
using Counters = Simd::U[kWords];

// Philox4x32-10 (base/philox.h) of several vectors of counters, in turns: a round waits for the one
// before.
template <int N>
AUTOSP_AI void philox_rounds(Counters (&counters)[N], philox::Key key) {
  using U = Simd::U;
  for (int round = 0; round < philox::kRounds; ++round) {
    unrolled<N>([&](auto n) __attribute__((always_inline)) {
      Counters& c = counters[n];
      U a_high;
      U b_high;
      U a_low;
      U b_low;
      Simd::multiply(c[0], philox::kMultipliers[0], a_high, a_low);
      Simd::multiply(c[2], philox::kMultipliers[1], b_high, b_low);
      c[0] = b_high ^ c[1] ^ Simd::words(key[0]);
      c[2] = a_high ^ c[3] ^ Simd::words(key[1]);
      c[1] = b_low;
      c[3] = a_low;
    });
    key[0] += philox::kKeySteps[0];
    key[1] += philox::kKeySteps[1];
  }
}

// Draws for the weights of a patch: keys from its first on, of one panel of queries.
class Dropper {
 public:
  Dropper(const Problem& p, const Patch& patch)
      : dropout_(*p.sizes.dropout),
        step_(p.sizes.step == nullptr ? 0 : static_cast<uint32_t>(*p.sizes.step)),
        by_key_(static_cast<uint64_t>(dropout_.strides[4])) {
    const int64_t group = p.sizes.group;
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      first_[lane] = dropout_.at(patch.batch, patch.head / group, patch.head % group,
                                 patch.query + lane, patch.key);
    }
    const auto by_query = static_cast<uint64_t>(dropout_.strides[3]);
    keys_follow_ = by_key_ == 1;
    same_word_ = keys_follow_ && by_query % kWords == 0;
    needs_next_ = keys_follow_ && !(same_word_ && first_[0] % kWords == 0);
  }

  // Calls use(j, factors) for the first `rows` keys: a factor for each query of the panel.
  template <typename Use>
  AUTOSP_AI void for_each(int64_t rows, Use&& use) const {
    Window window;
    alignas(64) uint32_t picked[kPanel];
    alignas(64) float factors[kPanel];
    for (int64_t j = 0; j < rows; ++j) {
      if (!keys_follow_ || j % kWords == 0) draw_window(j, window);
      const uint64_t shift = keys_follow_ ? static_cast<uint64_t>(j % kWords) : 0;
      const uint32_t* numbers = picked;
      if (same_word_) {
        numbers = window[first_[0] % kWords + shift];
      } else {
        const uint64_t moved = keys_follow_ ? 0 : static_cast<uint64_t>(j) * by_key_;
        for (int64_t lane = 0; lane < kPanel; ++lane) {
          picked[lane] = window[(first_[lane] + moved) % kWords + shift][lane];
        }
      }
      decide(numbers, factors);
      use(j, static_cast<const float*>(factors));
    }
  }

 private:
  // The numbers of a counter per query, and of the ones that follow.
  using Window = uint32_t[2 * kWords][kPanel];

  AUTOSP_AI void draw_window(int64_t j, Window& window) const {
    if (!keys_follow_) return draw(static_cast<uint64_t>(j) * by_key_, window);
    if (j == 0 || !needs_next_) {
      draw(static_cast<uint64_t>(j), window);
    } else {
      __builtin_memcpy(window, window + kWords, kWords * sizeof(*window));
    }
    if (needs_next_) draw(static_cast<uint64_t>(j + kWords), window + kWords);
  }

  // The counters in which every query's number lies, `moved` from its first.
  AUTOSP_AI void draw(uint64_t moved, uint32_t (*numbers)[kPanel]) const {
    alignas(64) uint32_t low[kPanel];
    alignas(64) uint32_t high[kPanel];
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const uint64_t counter = (first_[lane] + moved) / kWords;
      low[lane] = static_cast<uint32_t>(counter);
      high[lane] = static_cast<uint32_t>(counter >> 32U);
    }
    Counters counters[Simd::kScoreVectors];
    unrolled<Simd::kScoreVectors>([&](auto v) __attribute__((always_inline)) {
      counters[v][0] = Simd::load(low + v * kWidth);
      counters[v][1] = Simd::load(high + v * kWidth);
      counters[v][2] = Simd::words(dropout_.key.stream);
      counters[v][3] = Simd::words(step_);
    });
    philox_rounds(counters, {static_cast<uint32_t>(dropout_.key.seed),
                             static_cast<uint32_t>(dropout_.key.seed >> 32U)});
    unrolled<Simd::kScoreVectors>([&](auto v) __attribute__((always_inline)) {
      for (int64_t word = 0; word < kWords; ++word) {
        Simd::store(numbers[word] + v * kWidth, counters[v][word]);
      }
    });
  }

  // Bounds are multiples of 2^-24, as draws are.
  AUTOSP_AI void decide(const uint32_t* numbers, float* factors) const {
    const auto from = static_cast<int32_t>(dropout_.from * 0x1p24F);
    const auto below = static_cast<int32_t>(dropout_.below * 0x1p24F);
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const auto digits = static_cast<int32_t>(numbers[lane] >> 8U);
      factors[lane] = digits >= from && digits < below ? dropout_.scale : 0.0F;
    }
  }

  const reference::AttentionDropout& dropout_;
  uint32_t step_;
  uint64_t by_key_;
  uint64_t first_[kPanel];  // numbers of the first key
  bool keys_follow_ = false;
  bool same_word_ = false;   // of its counter, every query's
  bool needs_next_ = false;  // four keys reach into a second counter
};

// Weights of a patch, in its scores' place, after dropout: 0 where they are dropped.
inline void drop_weights(const Problem& p, const Patch& patch) {
  Dropper(p, patch).for_each(
      patch.rows, [&](int64_t j, const float* factors) __attribute__((always_inline)) {
        for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
          float* weight = patch.scores + j * kQueryBlock + lane;
          Simd::store(weight, Simd::load(weight) * Simd::load(factors + lane));
        }
      });
}

}  // namespace
}  // namespace autosp::executor::attention
