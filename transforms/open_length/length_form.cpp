#include "transforms/open_length/length_form.h"

#include <fmt/format.h>

#include <numeric>

namespace autosp::transforms {

namespace {

// "3*seq/4" of 3 and 4.
std::string term(int64_t count, int64_t parts, const std::string& what) {
  const int64_t common = std::gcd(count, parts);
  count /= common;
  parts /= common;
  return fmt::format("{}{}{}", count == 1 ? "" : fmt::format("{}*", count), what,
                     parts == 1 ? "" : fmt::format("/{}", parts));
}

bool holds(const LengthForm& form, std::span<const int64_t> units,
           std::span<const int64_t> values) {
  for (size_t k = 0; k < units.size(); ++k) {
    if (form.at(units[k]) != values[k]) return false;
  }
  return true;
}

// Nullopt where it is no integer.
std::optional<int64_t> slope(int64_t rise, int64_t run) {
  return rise % run == 0 ? std::optional(rise / run) : std::nullopt;
}

}  // namespace

std::string to_string(const LengthForm& form, const OpenLength& open) {
  std::string text;
  const auto add = [&](int64_t count, int64_t parts, const std::string& what) {
    if (count == 0) return;
    if (count < 0) text += "-";
    if (count > 0 && !text.empty()) text += "+";
    text += term(std::abs(count), parts, what);
  };
  add(form.quadratic, open.multiple * open.multiple, open.dim + "*" + open.dim);
  add(form.linear, open.multiple, open.dim);
  if (text.empty()) return std::to_string(form.constant);
  if (form.constant != 0) text += fmt::format("{:+}", form.constant);
  return text;
}

std::optional<LengthForm> fit(std::span<const int64_t> units, std::span<const int64_t> values) {
  if (units.size() < 2) return std::nullopt;
  const LengthForm same{.constant = values[0]};
  if (holds(same, units, values)) return same;
  if (units.size() < 3) return std::nullopt;
  const auto first = slope(values[1] - values[0], units[1] - units[0]);
  if (first) {
    const LengthForm line{.constant = values[0] - *first * units[0], .linear = *first};
    if (holds(line, units, values)) return line;
  }
  const auto second = slope(values[2] - values[1], units[2] - units[1]);
  if (units.size() < 4 || !first || !second) return std::nullopt;
  const auto curve = slope(*second - *first, units[2] - units[0]);
  if (!curve) return std::nullopt;
  LengthForm form{.quadratic = *curve};
  form.linear = *first - *curve * (units[0] + units[1]);
  form.constant = values[0] - form.at(units[0]);
  if (!holds(form, units, values)) return std::nullopt;
  return form;
}

}  // namespace autosp::transforms
