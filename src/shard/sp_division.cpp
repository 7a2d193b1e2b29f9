#include "shard/sp_division.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"

namespace autosp::shard {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::optional<SpDivision> by_heads(int64_t sp, const AttentionSizes& sizes) {
  if (!sizes.found) return SpDivision{.u = sp};
  for (int64_t u = std::min(sp, sizes.kv_heads); u >= 1; --u) {
    if (sp % u == 0 && sp / u <= sizes.head_groups) return SpDivision{.g = sp / u, .u = u};
  }
  return std::nullopt;
}

// Query heads of the rank that has most, per share of the queries, in units that all divisions of
// one sp have in common.
int64_t largest_work(const SpDivision& division, int64_t sp, const AttentionSizes& sizes) {
  return ceil_div(sizes.kv_heads, division.u) * ceil_div(sizes.head_groups, division.g) *
         (sp / division.r);
}

std::string text_of(const SpDivision& division) {
  return fmt::format("r={},g={},u={}", division.r, division.g, division.u);
}

}  // namespace

std::optional<SpDivision> divide_sp(int64_t sp, const AttentionSizes& sizes) {
  if (const auto division = by_heads(sp, sizes)) return division;
  if (!sizes.splits_queries) return std::nullopt;
  std::optional<SpDivision> best;
  auto order = [&](const SpDivision& d) {
    return std::tuple(largest_work(d, sp, sizes), d.r, -d.u);
  };
  for (int64_t r = 2; r <= sp; ++r) {
    if (sp % r != 0) continue;
    const auto inner = by_heads(sp / r, sizes);
    if (!inner) continue;
    const SpDivision division{.r = r, .g = inner->g, .u = inner->u};
    if (!best || order(division) < order(*best)) best = division;
  }
  return best;
}

std::vector<int64_t> sp_by_heads_alone(const AttentionSizes& sizes) {
  std::vector<int64_t> result;
  for (int64_t sp = 1; sp <= sizes.kv_heads * sizes.head_groups; ++sp) {
    if (by_heads(sp, sizes)) result.push_back(sp);
  }
  return result;
}

SpDivision requested_division(const std::map<std::string, int64_t>& mesh, int64_t sp,
                              const AttentionSizes& sizes) {
  SpDivision division;
  std::map<std::string, int64_t*> axes = {
      {"r", &division.r}, {"g", &division.g}, {"u", &division.u}};
  for (const auto& [name, size] : mesh) {
    if (!axes.contains(name)) {
      throw Error("--sp-mesh names the axis '{}'", name)
          .note("the axes are u (KV heads), g (query-head groups) and r (query positions)")
          .help("for example: --sp 8 --sp-mesh r=2,g=2,u=2");
    }
    if (size < 1) {
      throw Error("--sp-mesh gives axis {} the size {}", name, size)
          .note("every axis has at least one rank")
          .help("leave out the axes that are not wanted");
    }
    *axes[name] = size;
  }
  const auto suggestion = [&]() -> std::string {
    const auto found = divide_sp(sp, sizes);
    return found ? fmt::format("for example --sp-mesh {}, or leave --sp-mesh out", text_of(*found))
                 : std::string("leave --sp-mesh out");
  };
  if (division.r * division.g * division.u != sp) {
    throw Error("--sp-mesh {} has {} ranks, --sp asks for {}", text_of(division),
                division.r * division.g * division.u, sp)
        .note("axes that are not named have one rank")
        .help(suggestion());
  }
  const auto limit = [&](const char* axis, int64_t size, int64_t most, const char* what) {
    if (size <= most) return;
    throw Error("--sp-mesh {}={} leaves ranks without work: attention has {} {}", axis, size, most,
                what)
        .note(fmt::format("its {} query heads are {} KV heads x {} groups",
                          sizes.kv_heads * sizes.head_groups, sizes.kv_heads, sizes.head_groups))
        .help(suggestion());
  };
  if (sizes.found) limit("u", division.u, sizes.kv_heads, "KV heads");
  limit("g", division.g, sizes.head_groups, "query heads per KV head");
  if (division.r > 1 && !sizes.splits_queries) {
    throw Error("--sp-mesh r={}: no attention was found whose query positions could be split",
                division.r)
        .note("r splits the queries of attention and gathers its keys and values")
        .help("leave --sp-mesh out");
  }
  return division;
}

}  // namespace autosp::shard
