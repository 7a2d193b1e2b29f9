#include "report/style.h"

#include <fmt/format.h>

#include <algorithm>

namespace autosp::cli {

namespace {

// Fills differ in lightness as well as in hue, so that they can be told apart without colour
// vision; neighbours in a stack are parted by a line besides.
constexpr std::string_view kStyleSheet = R"css(
:root {
  color-scheme: light dark;
  --page: #ffffff; --raised: #f5f6f8; --ink: #1b1f27; --faint: #5a6372; --rule: #d9dde4;
  --grid: #e6e9ee; --accent: #0b5c9e; --good: #1b6e3c; --bad: #b3261e;
  --grey: #667184; --pale: #8b96a7; --blue: #0b6bb0; --green: #15936c; --pink: #c8719f;
  --amber: #b58307; --red: #c9480a; --sky: #3399cc; --hollow: #eceff3; --on-fill: #10131a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --raised: #1c2027; --ink: #e8ebf0; --faint: #a3adbb; --rule: #363d48;
    --grid: #282e37; --accent: #7fbdf2; --good: #6fd08f; --bad: #ff8a80;
    --grey: #78849a; --pale: #5f697a; --blue: #3d97dc; --green: #2fb489; --pink: #dc8fb8;
    --amber: #e9b23f; --red: #ee6f35; --sky: #93cdf3; --hollow: #262c35; --on-fill: #10131a;
  }
}
@media print {
  :root {
    color-scheme: light;
    --page: #ffffff; --raised: #ffffff; --ink: #000000; --faint: #444444; --rule: #bbbbbb;
    --grid: #dddddd; --accent: #000000; --good: #000000; --bad: #000000;
    --grey: #667184; --pale: #8b96a7; --blue: #0b6bb0; --green: #15936c; --pink: #c8719f;
    --amber: #b58307; --red: #c9480a; --sky: #3399cc; --hollow: #eceff3; --on-fill: #10131a;
  }
  body { font-size: 9.5pt; }
  main { max-width: none; padding: 0; }
  section, figure, tr { break-inside: avoid; }
  details:not([open]) { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1060px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 20px 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0 10px; max-width: 78ch; }
.origin { color: var(--faint); overflow-wrap: anywhere; }
.headline { font-size: 1.12rem; margin: 16px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 18px 0; padding: 0; }
.tile { background: var(--raised); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; }
.tile dt { color: var(--faint); font-size: .82rem; }
.tile dd { margin: 2px 0 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile dd.detail { font-size: .82rem; font-weight: 400; color: var(--faint); }
.scroll { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 50%; }
caption { text-align: left; color: var(--faint); padding-bottom: 4px; }
th, td { padding: 4px 12px 4px 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; white-space: nowrap; }
td.name { white-space: normal; overflow-wrap: anywhere; min-width: 12ch; }
th { color: var(--faint); font-weight: 600; }
th.number, td.number { text-align: right; padding: 4px 18px 4px 8px; }
tr.sum td { font-weight: 600; border-top: 1px solid var(--faint); }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
figure { margin: 10px 0 6px; }
figure .chart { overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 620px; height: auto; }
figcaption { color: var(--faint); font-size: .88rem; margin-top: 6px; max-width: 90ch; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0; padding: 0; font-size: .86rem; }
ul.legend svg { display: inline-block; width: 14px; min-width: 14px; height: 12px; margin-right: 6px; vertical-align: -1px; }
details { margin: 4px 0 12px; } summary { cursor: pointer; color: var(--accent); font-size: .88rem; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
footer { margin-top: 48px; color: var(--faint); font-size: .82rem; border-top: 1px solid var(--rule); padding-top: 10px; }
svg text { fill: var(--ink); font-size: 12px; font-family: inherit; }
svg .label.end { text-anchor: end; } svg .label.middle { text-anchor: middle; }
svg .label.faint, svg .label.note { fill: var(--faint); font-size: 11px; }
svg .label.strong { font-weight: 600; } svg .row-title { font-size: 13px; }
svg .label.cell-label { fill: var(--on-fill); font-size: 11px; }
svg .fill-hollow + .cell-label { fill: var(--ink); }
svg .halo { paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--faint); }
svg .limit { stroke: var(--ink); stroke-dasharray: 5 4; }
svg .roof { stroke: var(--faint); stroke-width: 1.5; }
svg .hint { fill: transparent; } svg .hint:hover { fill: var(--ink); fill-opacity: .1; }
svg .cell { stroke: var(--page); stroke-width: 1.5; }
svg .arrow { stroke: var(--faint); stroke-width: 1.5; } svg .head { fill: var(--faint); }
svg .arrow.exchange { stroke: var(--red); stroke-width: 2.5; } svg .head.exchange { fill: var(--red); }
svg .exposed { fill: var(--ink); }
svg rect.memory { stroke: var(--page); stroke-width: .6; }
svg circle { stroke: var(--page); fill-opacity: .85; }
.fill-grey { fill: var(--grey); } .fill-pale { fill: var(--pale); } .fill-blue { fill: var(--blue); }
.fill-green { fill: var(--green); } .fill-pink { fill: var(--pink); } .fill-amber { fill: var(--amber); }
.fill-red { fill: var(--red); } .fill-sky { fill: var(--sky); } .fill-hollow { fill: var(--hollow); }
)css";

struct Style {
  std::string_view name;
  std::string_view fill;
};

constexpr Style kBuckets[] = {{"parameters", "grey"},
                              {"inputs", "pale"},
                              {"gradients and loss", "blue"},
                              {"kept activations", "green"},
                              {"recomputed values", "pink"},
                              {"attention temporaries", "amber"},
                              {"communication buffers", "red"},
                              {"temporaries", "sky"},
                              {"gaps", "hollow"}};

constexpr Style kSegments[] = {{"forward", "sky"},
                               {"backward", "green"},
                               {"recompute", "pink"},
                               {"waiting", "amber"},
                               {"transfer", "red"}};

constexpr Style kFamilies[] = {{"product", "blue"},
                               {"attention", "green"},
                               {"attention backward", "pink"},
                               {"collective", "red"},
                               {"memory", "sky"}};

// Those on which a dark label can be read.
constexpr std::string_view kParts[] = {"sky", "amber", "green", "pink"};

template <size_t N>
std::string style_of(const Style (&styles)[N], std::string_view name) {
  const auto* const found = std::ranges::find(styles, name, &Style::name);
  return fmt::format("fill-{}", found == std::end(styles) ? "grey" : found->fill);
}

}  // namespace

std::string_view report_style_sheet() { return kStyleSheet; }

std::string bucket_style(const std::string& bucket) {
  return style_of(kBuckets, bucket) + " memory";
}

std::string segment_style(const std::string& kind) { return style_of(kSegments, kind); }

std::string family_style(const std::string& family) { return style_of(kFamilies, family); }

std::string part_style(size_t part) {
  return fmt::format("fill-{}", kParts[part % std::size(kParts)]);
}

}  // namespace autosp::cli
