#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "open_export.h"

namespace autosp::cli {

using onnx_io::Manifest;
using transforms::LengthForm;

namespace {

// What numbers gain with every unit. Throws Error unless they grow evenly.
class Growth {
 public:
  Growth(std::vector<int64_t> units, const transforms::OpenLength& open)
      : units_(std::move(units)), open_(open) {}

  LengthForm form(const std::string& name, const std::vector<int64_t>& values) const {
    const auto found = transforms::fit(units_, values);
    if (found && found->quadratic == 0) return *found;
    throw Error("'{}' cannot stay open: the parts of '{}' that ranks take do not grow evenly",
                open_.dim, name)
        .note(fmt::format("at several lengths one of their numbers is {}", fmt::join(values, ", ")))
        .help(fmt::format("give the length: --dim {}=N", open_.dim));
  }

  // `read(k)` gives the numbers at length k.
  template <typename Read>
  std::vector<LengthForm> forms(const std::string& name, Read&& read) const {
    std::vector<LengthForm> result;
    for (size_t d = 0; d < read(0).size(); ++d) {
      std::vector<int64_t> values;
      for (size_t k = 0; k < units_.size(); ++k) values.push_back(read(k)[d]);
      result.push_back(form(name, values));
    }
    return result;
  }

 private:
  std::vector<int64_t> units_;
  const transforms::OpenLength& open_;
};

std::vector<int64_t> linear(const std::vector<LengthForm>& forms) {
  std::vector<int64_t> result;
  for (const LengthForm& form : forms) result.push_back(form.linear);
  return result;
}

std::string range_text(const std::vector<LengthForm>& begin, const std::vector<LengthForm>& extent,
                       const transforms::OpenLength& open) {
  std::vector<std::string> ranges;
  for (size_t k = 0; k < begin.size(); ++k) {
    const LengthForm end{.constant = begin[k].constant + extent[k].constant,
                         .linear = begin[k].linear + extent[k].linear};
    ranges.push_back(transforms::to_string(begin[k], open) + ":" +
                     transforms::to_string(end, open));
  }
  return fmt::format("{}", fmt::join(ranges, ", "));
}

bool all_zero(const std::vector<int64_t>& values) {
  return std::ranges::all_of(values, [](int64_t value) { return value == 0; });
}

// What input `i` and the ranks' parts of it gain; nothing where it is the same at all lengths.
std::optional<onnx_io::ManifestGrowth> growth_of_input(const Growth& growth,
                                                       const std::vector<Manifest>& at, size_t i,
                                                       const transforms::OpenLength& open) {
  const std::string& name = at[0].inputs[i].name;
  onnx_io::ManifestGrowth grown{
      .name = name,
      .shape = linear(growth.forms(name, [&](size_t k) { return at[k].inputs[i].type.shape; })),
      .slices = {},
      .formulas = {}};
  bool moves = !all_zero(grown.shape);
  for (size_t rank = 0; rank < at[0].inputs[i].slices.size(); ++rank) {
    const auto slice = [&](size_t k) { return at[k].inputs[i].slices.at(rank); };
    const auto begin = growth.forms(name, [&](size_t k) { return slice(k).begin; });
    const auto extent = growth.forms(name, [&](size_t k) { return slice(k).extent; });
    grown.slices.push_back({linear(begin), linear(extent)});
    grown.formulas.push_back(range_text(begin, extent, open));
    moves = moves || !all_zero(grown.slices.back().begin) || !all_zero(grown.slices.back().extent);
  }
  return moves ? std::optional(std::move(grown)) : std::nullopt;
}

}  // namespace

Manifest open_manifest(const std::vector<int64_t>& units, const std::vector<Manifest>& at,
                       const transforms::OpenLength& open, int64_t shortest, int64_t longest) {
  const Growth growth(units, open);
  onnx_io::ManifestOpenLength lengths{.dim = open.dim,
                                      .planned = units.front() * open.multiple,
                                      .multiple = open.multiple,
                                      .minimum = shortest * open.multiple,
                                      .maximum = longest * open.multiple,
                                      .inputs = {},
                                      .outputs = {}};
  for (size_t i = 0; i < at[0].inputs.size(); ++i) {
    if (auto grown = growth_of_input(growth, at, i, open)) {
      lengths.inputs.push_back(*std::move(grown));
    }
  }
  for (size_t i = 0; i < at[0].outputs.size(); ++i) {
    const std::string& name = at[0].outputs[i].name;
    const auto shape =
        linear(growth.forms(name, [&](size_t k) { return at[k].outputs[i].type.shape; }));
    if (!all_zero(shape)) lengths.outputs.push_back({name, shape, {}, {}});
  }
  Manifest manifest = at.front();
  manifest.plan_hash =
      onnx_io::fingerprint(fmt::format("{} {} {}", manifest.plan_hash, open.dim, open.multiple));
  manifest.open_length = std::move(lengths);
  return manifest;
}

}  // namespace autosp::cli
