// Attention and its gradient under every mask, bias and kind of dead row.
#include "reference/attention_problem.h"
#include "support/operator_cases.h"

namespace autosp::test {

using ir::DataType;
using ir::Shape;

namespace {

using Make = CaseBuilder&;

struct Sizes {
  int64_t batch, kv_heads, group, queries, keys, width, value_width;
};

struct Drawn {
  std::vector<ValueId> main;      // query, key, value
  std::vector<ValueId> optional;  // bias, masks, sink, step
  ir::Attributes attributes;
};

ValueId maybe(Make c, ValueId value) { return c.coin() ? value : ValueId(); }

// Numbers of the weights in some part of a larger whole, rarely a multiple of four apart.
void add_dropout(Make c, const Sizes& s, Drawn& drawn) {
  const int64_t by_query = s.keys + c.integer(0, 5);
  const int64_t by_member = by_query * (s.queries + c.integer(0, 2));
  const int64_t by_head = by_member * s.group;
  reference::set_attention_dropout(
      drawn.attributes,
      {.key = {static_cast<uint64_t>(c.integer(0, 1000)), static_cast<uint32_t>(c.integer(0, 9))},
       .offset = c.integer(0, 100),
       .strides = {by_head * s.kv_heads, by_head, by_member, by_query, 1},
       .from = 0.25F,
       .below = c.one_of<float>({1.0F, 0.75F}),
       .scale = 1.5F});
  drawn.optional[7] = maybe(c, c.integers({}, 0, 9));
}

// Of gradients in double: those that are zero come out as rounding errors.
Drawn draw(Make c, DataType type) {
  const Sizes s = {c.integer(1, 3), c.integer(1, 4), c.integer(1, 3), c.extent(),
                   c.integer(3, 9), c.integer(1, 4), c.integer(1, 4)};
  const int64_t heads = s.kv_heads * s.group;
  const auto batch = [&] { return c.one_of<int64_t>({1, s.batch}); };
  const auto either = [&](int64_t extent) { return c.one_of<int64_t>({1, extent}); };
  Drawn drawn;
  drawn.main = {c.floats({s.batch, heads, s.queries, s.width}, type),
                c.floats({s.batch, s.kv_heads, s.keys, s.width}, type),
                c.floats({s.batch, s.kv_heads, s.keys, s.value_width}, type)};
  drawn.optional.resize(8);
  drawn.optional[0] =
      maybe(c, c.floats({either(s.batch), either(heads), either(s.queries), either(s.keys)}, type));
  drawn.optional[1] = maybe(c, c.integers({batch(), s.queries}, 0, (s.keys + 1) / 2));
  drawn.optional[2] = maybe(c, c.integers({batch(), s.queries}, (s.keys + 1) / 2, s.keys + 1));
  drawn.optional[3] = maybe(c, c.bools({batch(), s.keys}));
  if (c.coin()) {
    drawn.optional[4] = c.integers({batch(), s.queries}, 0, 2);
    drawn.optional[5] = c.integers({batch(), s.keys}, 0, 2);
  }
  drawn.optional[6] = maybe(c, c.floats({heads}, type));
  drawn.attributes = {
      {"scale", 0.7F},
      {"softcap", c.one_of<float>({0.0F, 2.0F})},
      {"dead_rows", c.one_of<std::string>({"none", "uniform", "zero", "unmasked", "nan"})},
      {"dead_row_gradient", c.integer(0, 1)}};
  if (c.coin()) add_dropout(c, s, drawn);
  return drawn;
}

// Trailing absent operands are not written.
std::vector<ValueId> operands(std::vector<ValueId> first, const Drawn& drawn) {
  first.insert(first.end(), drawn.optional.begin(), drawn.optional.end());
  while (!first.back()) first.pop_back();
  return first;
}

void attention(Make c) {
  const Drawn drawn = draw(c, DataType::kFloat32);
  c.test("autosp::Attention", operands(drawn.main, drawn), drawn.attributes, 3);
}

void attention_grad(Make c) {
  constexpr DataType kType = DataType::kFloat64;
  const Drawn drawn = draw(c, kType);
  const Shape& query = c.build().shape(drawn.main[0]);
  const Shape& value = c.build().shape(drawn.main[2]);
  const Shape rows = {query[0], query[1], query[2]};
  const Shape output = {query[0], query[1], query[2], value[3]};
  const auto forward =
      c.build().node("Attention", operands(drawn.main, drawn),
                     std::vector<ir::Type>{{kType, output}, {kType, rows}, {kType, rows}},
                     drawn.attributes, std::string(ir::kAutospDomain));
  std::vector<ValueId> first = {c.floats(output, kType)};
  first.insert(first.end(), drawn.main.begin(), drawn.main.end());
  first.insert(first.end(), forward.begin(), forward.end());
  std::vector<bool> results = {true, true, true};
  if (drawn.optional[0] || drawn.optional[6]) results.push_back(drawn.optional[0].valid());
  if (drawn.optional[6]) results.push_back(true);
  c.test("autosp::AttentionGrad", operands(std::move(first), drawn), drawn.attributes, results);
}

}  // namespace

CaseMakers attention_cases() {
  return {{"autosp::Attention", attention}, {"autosp::AttentionGrad", attention_grad}};
}

}  // namespace autosp::test
