// Strong integer identifiers: a ValueId is not a NodeId, and neither is an int.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace autosp {

template <typename Tag>
class Id {
 public:
  constexpr Id() = default;  // the invalid id
  constexpr explicit Id(size_t index) : index_(static_cast<int32_t>(index)) {}

  constexpr bool valid() const { return index_ >= 0; }
  constexpr size_t index() const { return static_cast<size_t>(index_); }
  constexpr explicit operator bool() const { return valid(); }
  constexpr auto operator<=>(const Id&) const = default;

 private:
  int32_t index_ = -1;
};

using ValueId = Id<struct ValueTag>;
using NodeId = Id<struct NodeTag>;

}  // namespace autosp

template <typename Tag>
struct std::hash<autosp::Id<Tag>> {
  size_t operator()(autosp::Id<Tag> id) const noexcept {
    return id.valid() ? id.index() : ~size_t{0};
  }
};
