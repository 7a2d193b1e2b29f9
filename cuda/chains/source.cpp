#include "cuda/chains/source.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "cuda/chains/operations.h"
#include "executor/kernels/chain/chain.h"

namespace autosp::chains {

namespace {

using executor::chain::Layout;
using executor::chain::Link;
using executor::chain::Op;
using ir::DataType;
using ir::Shape;

constexpr int kMostLanes = 256;
constexpr int kLeastThreads = 128;
constexpr size_t kMostAddresses = 64;  // operands and results

const char* type_name(DataType type) {
  switch (type) {
    case DataType::kFloat16:
      return "float16";
    case DataType::kBFloat16:
      return "bfloat16";
    case DataType::kBool:
      return "bool";
    default:
      return "float";
  }
}

// One of a row's totals.
struct Total {
  enum class Kind : uint8_t { kSum, kMax, kSumOfExp };
  Kind kind;
  size_t link;  // whose argument is totalled
  size_t pass;  // that it ends
};

// What is emitted for one pass: lines before its loop over the row, and in the loop.
struct Code {
  std::string row;
  std::string loads;
  std::string element;
};

class Writer {
 public:
  Writer(const ir::Graph& graph, const ir::Node& node)
      : graph_(graph),
        node_(node),
        links_(executor::chain::links_of(node)),
        shape_(node.attributes.get_ints("shape")) {
    for (ValueId input : node.inputs) {
      layouts_.push_back(executor::chain::layout_of(graph.shape(input), shape_));
    }
    flat_ = executor::chain::is_flat(links_, layouts_, shape_);
    number_operands();
    choose_sizes();
    schedule();
  }

  Source write() {
    write_sizes();
    write_totals();
    for (size_t pass = 0; pass < passes_; ++pass) write_pass(pass);
    write_results();
    write_row_results();
    write_order();
    source_.elements = ir::num_elements(shape_);
    source_.rows = (source_.elements + columns_ - 1) / columns_;
    return std::move(source_);
  }

 private:
  // --- Operands, and links, as arguments.

  bool is_operand(size_t argument) const { return argument < layouts_.size(); }
  const Link& link_of(size_t argument) const { return links_[argument - layouts_.size()]; }
  DataType type_of(size_t argument) const {
    return is_operand(argument) ? graph_.type(node_.inputs[argument]).dtype
                                : link_of(argument).type;
  }
  bool is_constant(size_t operand) const {
    const ir::Value& value = graph_.value(node_.inputs[operand]);
    return value.kind == ir::ValueKind::kConstant && value.constant.num_elements() == 1;
  }

  void number_operands() {
    addresses_.assign(layouts_.size(), 0);
    for (size_t k = 0; k < layouts_.size(); ++k) {
      if (is_constant(k)) continue;
      addresses_[k] = source_.operands.size();
      source_.operands.push_back(k);
    }
  }

  // --- Sizes.

  // The narrowest of the floats that lie in rows fills 16 bytes.
  void choose_sizes() {
    size_t narrowest = sizeof(float);
    const auto consider = [&](DataType type) {
      if (type != DataType::kBool) narrowest = std::min(narrowest, ir::element_size(type));
    };
    for (size_t k : source_.operands) {
      if (layouts_[k].step == 1) consider(type_of(k));
    }
    for (const Link& link : links_) {
      if (link.result >= 0 && !link.is_row) consider(link.type);
    }
    const int64_t divisible = flat_ ? ir::num_elements(shape_) : shape_.back();
    pack_ = static_cast<int64_t>(16 / narrowest);
    while (divisible % pack_ != 0) pack_ /= 2;
    const auto packs = static_cast<uint64_t>(shape_.back() / pack_);
    lanes_ =
        flat_ ? kMostLanes : static_cast<int>(std::bit_ceil(std::min<uint64_t>(packs, kMostLanes)));
    columns_ = flat_ ? lanes_ * pack_ : shape_.back();
    // Lanes of a warp or less combine their totals without other warps: a block takes several rows.
    source_.threads = lanes_ > 32 ? lanes_ : kLeastThreads;
    source_.rows_per_block = source_.threads / lanes_;
  }

  void write_sizes() {
    const size_t operands = std::max<size_t>(source_.operands.size(), 1);
    const bool row_results = std::ranges::any_of(
        links_, [](const Link& link) { return link.result >= 0 && link.is_row; });
    add(R"(struct Arguments {{
  const void* operand[{}];
  void* result[{}];
  long long rows;
  long long elements;
}};
constexpr int kColumns = {};
constexpr int kLanes = {};
constexpr int kRowsPerBlock = {};
constexpr int kPack = {};
constexpr int kTotals = {};
constexpr bool kHasRowResults = {};
)",
        operands, node_.outputs.size(), columns_, lanes_, source_.rows_per_block, pack_,
        totals_.size(), row_results);
    source_.text += kOperations;
    add(R"(AUTOSP_CHAIN int columns_of(const Arguments& args, int row) {{
{}}}
)",
        flat_ ? "  const long long left = args.elements - row * static_cast<long long>(kColumns);\n"
                "  return left < kColumns ? static_cast<int>(left) : kColumns;\n"
              : "  return kColumns;\n");
  }

  // --- Totals and passes.

  // How many passes have to be over before an argument's values are known.
  size_t passes_before(size_t argument) const {
    return is_operand(argument) ? 0 : passes_before_[argument - layouts_.size()];
  }

  void schedule() {
    for (size_t k = 0; k < links_.size(); ++k) {
      size_t before = 0;
      for (size_t argument : links_[k].arguments)
        before = std::max(before, passes_before(argument));
      const Op op = links_[k].op;
      if (op == Op::kReduceSum) totals_.push_back({Total::Kind::kSum, k, before++});
      if (op == Op::kReduceMax) totals_.push_back({Total::Kind::kMax, k, before++});
      if (op == Op::kSoftmax || op == Op::kLogSoftmax) {
        totals_.push_back({Total::Kind::kMax, k, before++});
        totals_.push_back({Total::Kind::kSumOfExp, k, before++});
      }
      passes_before_.push_back(before);
      passes_ = std::max(passes_, before);
    }
    std::ranges::stable_sort(totals_, {}, &Total::pass);
  }

  // "totals[3]"
  std::string total(size_t link, bool of_exp) const {
    const auto found = std::ranges::find_if(totals_, [&](const Total& t) {
      return t.link == link && (t.kind == Total::Kind::kSumOfExp) == of_exp;
    });
    return fmt::format("totals[{}]", found - totals_.begin());
  }

  void write_totals() {
    std::string maxima;
    for (size_t k = 0; k < totals_.size(); ++k) {
      if (totals_[k].kind == Total::Kind::kMax) maxima += fmt::format(" || total == {}", k);
    }
    add(R"(AUTOSP_CHAIN bool is_maximum(int total) {{ return false{}; }}
AUTOSP_CHAIN float first_of(int total) {{ return is_maximum(total) ? from_bits(0xFF800000U) : 0.0F; }}
AUTOSP_CHAIN float combine(int total, float x, float y) {{
  return is_maximum(total) ? larger(x, y) : x + y;
}}
)",
        maxima);
  }

  // A total with the element of a lane that is at hand.
  std::string grown(const Total& t) const {
    const std::string x = value(links_[t.link].arguments[0]);
    const std::string max = total(t.link, false);
    const std::string sum = total(t.link, t.kind == Total::Kind::kSumOfExp);
    switch (t.kind) {
      case Total::Kind::kMax:
        return fmt::format("larger({}, {})", max, x);
      case Total::Kind::kSumOfExp:
        return fmt::format("{} + expf({} - {})", sum, x, max);
      default:
        return fmt::format("{} + {}", sum, x);
    }
  }

  void write_pass(size_t pass) {
    const auto is_of_pass = [&](const Total& t) { return t.pass == pass; };
    const auto begin = std::ranges::find_if(totals_, is_of_pass);
    const auto end = std::find_if_not(begin, totals_.end(), is_of_pass);
    std::vector<size_t> wanted;
    for (auto t = begin; t != end; ++t) wanted.push_back(links_[t->link].arguments[0]);
    Code code = code_for(wanted);
    for (auto t = begin; t != end; ++t) {
      code.element += fmt::format("        totals[{}] = {};\n", t - totals_.begin(), grown(*t));
    }
    add("struct Pass{} {{\n  static constexpr int kBegin = {};\n  static constexpr int kEnd = "
        "{};\n",
        pass, begin - totals_.begin(), end - totals_.begin());
    write_run(code, "");
    add("}};\n");
  }

  void write_results() {
    std::vector<size_t> wanted;
    std::string rows;
    std::string packs;
    std::string stores;
    std::string elements;
    for (size_t k = 0; k < links_.size(); ++k) {
      const Link& link = links_[k];
      if (link.result < 0 || link.is_row) continue;
      const char* type = type_name(link.type);
      wanted.push_back(layouts_.size() + k);
      rows += fmt::format(
          "    auto* r{0} = static_cast<{1}*>(args.result[{0}]) + row * static_cast<long "
          "long>(kColumns);\n",
          link.result, type);
      packs += fmt::format("      Pack<{}, kPack> q{};\n", type, link.result);
      elements += fmt::format("        q{}.element[k] = narrow<{}>(s{});\n", link.result, type, k);
      stores += fmt::format("      store(r{0} + c, q{0});\n", link.result);
    }
    Code code = code_for(wanted);
    code.row += rows;
    code.loads += packs;
    code.element += elements;
    add("struct Results {{\n");
    write_run(wanted.empty() ? Code() : code, stores);
    add("}};\n");
  }

  void write_run(const Code& code, const std::string& stores) {
    add("  AUTOSP_CHAIN static void run(const Arguments& args, int row, int lane, float* totals) "
        "{{\n");
    source_.text += code.row;
    if (!code.element.empty()) {
      add(R"(    const int columns = columns_of(args, row);
    for (int c = lane * kPack; c < columns; c += kLanes * kPack) {{
{}#pragma unroll
      for (int k = 0; k < kPack; ++k) {{
{}      }}
{}    }}
)",
          code.loads, code.element, stores);
    }
    add("  }}\n");
  }

  void write_row_results() {
    std::vector<size_t> wanted;
    std::string stores;
    for (size_t k = 0; k < links_.size(); ++k) {
      const Link& link = links_[k];
      if (link.result < 0 || !link.is_row) continue;
      const char* type = type_name(link.type);
      wanted.push_back(layouts_.size() + k);
      stores += fmt::format("    static_cast<{1}*>(args.result[{0}])[row] = narrow<{1}>(s{2});\n",
                            link.result, type, k);
    }
    add("struct RowResults {{\n");
    add("  AUTOSP_CHAIN static void run(const Arguments& args, int row, const float* totals) {{\n");
    source_.text += code_for(wanted).row + stores;
    add("  }}\n}};\n");
  }

  void write_order() {
    add("template <typename Row>\nAUTOSP_CHAIN void run_passes(Row& row) {{\n");
    for (size_t pass = 0; pass < passes_; ++pass) add("  row.template pass<Pass{}>();\n", pass);
    add("}}\n");
  }

  // --- Values.

  // What has to be computed for the arguments, totals being there.
  std::vector<bool> needed_for(const std::vector<size_t>& wanted) const {
    std::vector<bool> needed(layouts_.size() + links_.size(), false);
    for (size_t argument : wanted) needed[argument] = true;
    for (size_t k = links_.size(); k-- > 0;) {
      if (!needed[layouts_.size() + k] || executor::chain::reduces(links_[k].op)) continue;
      for (size_t argument : links_[k].arguments) needed[argument] = true;
    }
    return needed;
  }

  Code code_for(const std::vector<size_t>& wanted) const {
    Code code;
    const std::vector<bool> needed = needed_for(wanted);
    for (size_t k : source_.operands) {
      if (needed[k]) load(k, code);
    }
    for (size_t k = 0; k < links_.size(); ++k) {
      if (!needed[layouts_.size() + k]) continue;
      const Link& link = links_[k];
      const std::string line = fmt::format("const float s{} = {};\n", k, rounded(k));
      if (link.op == Op::kLogSoftmax) {
        code.row += fmt::format("    const float l{} = logf({});\n", k, total(k, true));
      }
      link.is_row ? code.row += "    " + line : code.element += "        " + line;
    }
    return code;
  }

  void load(size_t operand, Code& code) const {
    const char* type = type_name(type_of(operand));
    const char* widen = type_of(operand) == DataType::kBool ? "" : "widen";
    const char* held = type_of(operand) == DataType::kBool ? "bool" : "float";
    const std::string from =
        fmt::format("static_cast<const {}*>(args.operand[{}])", type, addresses_[operand]);
    if (layouts_[operand].step == 0) {
      code.row += fmt::format("    const {} x{} = {}({}[{}]);\n", held, operand, widen, from,
                              offset(layouts_[operand]));
      return;
    }
    code.row +=
        fmt::format("    const auto* a{} = {} + {};\n", operand, from, offset(layouts_[operand]));
    code.loads += fmt::format("      const auto p{0} = load<kPack>(a{0} + c);\n", operand);
    code.element +=
        fmt::format("        const {0} x{1} = {2}(p{1}.element[k]);\n", held, operand, widen);
  }

  // In elements, of what a row sees of an operand.
  std::string offset(const Layout& layout) const {
    if (flat_) return layout.step == 0 ? "0" : "row * static_cast<long long>(kColumns)";
    if (layout.regular) return fmt::format("row * {}LL", layout.row);
    std::string sum;
    int64_t inner = 1;
    for (size_t d = layout.strides.size(); d-- > 0; inner *= shape_[d]) {
      if (layout.strides[d] == 0) continue;
      sum += fmt::format("{}row / {} % {} * {}LL", sum.empty() ? "" : " + ", inner, shape_[d],
                         layout.strides[d]);
    }
    return sum;
  }

  // An argument of a step, as an expression.
  std::string value(size_t argument) const {
    if (!is_operand(argument)) return fmt::format("s{}", argument - layouts_.size());
    if (!is_constant(argument)) return fmt::format("x{}", argument);
    const ir::Tensor& tensor = graph_.value(node_.inputs[argument]).constant;
    if (tensor.dtype() == DataType::kBool) return tensor.value_as_double(0) != 0 ? "true" : "false";
    const auto number = static_cast<float>(tensor.value_as_double(0));
    if (std::isfinite(number)) return fmt::format("({:a}F)", number);
    return fmt::format("from_bits(0x{:X}U)", std::bit_cast<uint32_t>(number));
  }

  std::string rounded(size_t k) const {
    const Link& link = links_[k];
    std::string text = expression(k);
    const bool is_same = std::ranges::all_of(link.arguments, [&](size_t argument) {
      return type_of(argument) == link.type || type_of(argument) == DataType::kBool;
    });
    if (link.type == DataType::kFloat32 || (is_same && is_exact(link.op))) return text;
    return fmt::format("widen(narrow<{}>({}))", type_name(link.type), text);
  }

  std::string expression(size_t k) const {
    const Link& link = links_[k];
    if (link.op == Op::kReduceSum || link.op == Op::kReduceMax) return total(k, false);
    const std::string x = value(link.arguments[0]);
    if (link.op == Op::kSoftmax) {
      return fmt::format("expf({} - {}) / {}", x, total(k, false), total(k, true));
    }
    if (link.op == Op::kLogSoftmax) return fmt::format("({} - {}) - l{}", x, total(k, false), k);
    const size_t arity = link.arguments.size();
    return fmt::format(fmt::runtime(operation(link.op)), x,
                       arity > 1 ? value(link.arguments[1]) : "",
                       arity > 2 ? value(link.arguments[2]) : "");
  }

  template <typename... Args>
  void add(fmt::format_string<Args...> text, Args&&... args) {
    fmt::format_to(std::back_inserter(source_.text), text, std::forward<Args>(args)...);
  }

  const ir::Graph& graph_;
  const ir::Node& node_;
  const std::vector<Link> links_;
  const Shape shape_;
  std::vector<Layout> layouts_;    // by operand of the node
  std::vector<size_t> addresses_;  // by operand of the node: its place in Arguments
  bool flat_ = false;
  int64_t pack_ = 0;
  int lanes_ = 0;
  int64_t columns_ = 0;
  std::vector<Total> totals_;          // by pass
  std::vector<size_t> passes_before_;  // by link
  size_t passes_ = 0;
  Source source_;
};

}  // namespace

bool has_source(const ir::Graph& /*graph*/, const ir::Node& chain) {
  // Rows, pieces of flat arrays and columns are counted in int.
  constexpr int64_t kLargest = int64_t{1} << 30;
  const Shape shape = chain.attributes.get_ints("shape");
  const int64_t elements = ir::num_elements(shape);
  return chain.inputs.size() + chain.outputs.size() <= kMostAddresses && shape.back() <= kLargest &&
         elements / shape.back() <= kLargest && elements / kMostLanes <= kLargest;
}

Source source_of(const ir::Graph& graph, const ir::Node& chain) {
  return Writer(graph, chain).write();
}

}  // namespace autosp::chains
