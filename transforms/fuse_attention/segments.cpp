// Equalities of run-time segment ids.
#include <algorithm>

#include "transforms/fuse_attention/masks.h"

namespace autosp::transforms::fusion {

ValueId source_of(const GraphFacts& facts, ValueId value) {
  for (const ir::Node* node = facts.graph().producer(value); node != nullptr && is_view(*node);
       node = facts.graph().producer(value)) {
    value = node->inputs[0];
  }
  return facts.representative(value);
}

std::vector<Literal> distinct_segments(const GraphFacts& facts, const Cutout& cutout,
                                       const std::vector<Literal>& literals) {
  std::vector<Literal> distinct;
  std::set<std::pair<ValueId, ValueId>> known;
  for (const Literal& literal : literals) {
    if (literal.kind != Literal::Kind::kSameSegment) continue;
    const ValueId query = cutout.original[literal.value.index()];
    const ValueId key = cutout.original[literal.key_segment.index()];
    if (known.emplace(source_of(facts, query), source_of(facts, key)).second) {
      distinct.push_back(literal);
    }
  }
  return distinct;
}

int segment_bits(const ir::Graph& cutout, const Literal& segment) {
  const auto bits = [&](ValueId value) {
    const ir::DataType dtype = cutout.type(value).dtype;
    const bool is_unsigned = ir::name_of(dtype).starts_with("u");
    return 8 * static_cast<int>(element_size(dtype)) + (is_unsigned ? 1 : 0);
  };
  return std::max(bits(segment.value), bits(segment.key_segment));
}

std::string why_segments_stay(const ir::Graph& cutout, const std::vector<Literal>& segments) {
  int bits = 0;
  for (const Literal& segment : segments) {
    bits += segment_bits(cutout, segment);
    if (bits <= 64) continue;
    return fmt::format("'{}' and '{}' have more bits than one id",
                       cutout.name_of(segments[0].value), cutout.name_of(segment.value));
  }
  return "";
}

}  // namespace autosp::transforms::fusion
