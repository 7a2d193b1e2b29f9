// Runs a chain: blocks of rows, each by whoever is free, every step on the block before the next
// block.
#include <algorithm>
#include <cstring>

#include "executor/kernels/chain/loops.h"
#include "executor/kernels/rows.h"
#include "executor/workers.h"

namespace autosp::executor {

namespace {

using chain::Elements;
using chain::Layout;
using chain::Op;
using ir::Shape;

constexpr int64_t kBlockElements = 4096;

struct Step : chain::Link {
  int slot = -1;  // of its kind of scratch
};

// What is known before the run: steps, where their results lie, how large a block is.
class Plan {
 public:
  Plan(const ir::Node& node, const std::vector<Shape>& operands) {
    shape_ = node.attributes.get_ints("shape");
    columns_ = shape_.back();
    rows_ = ir::num_elements(shape_) / columns_;
    for (const Shape& operand : operands) layouts_.push_back(chain::layout_of(operand, shape_));
    for (chain::Link& link : chain::links_of(node)) steps_.push_back({std::move(link)});
    flatten();
    block_rows_ = std::clamp<int64_t>(kBlockElements / columns_, 1, rows_);
    assign_slots();
  }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t block_rows() const { return block_rows_; }
  const Shape& shape() const { return shape_; }
  const std::vector<Layout>& layouts() const { return layouts_; }
  const std::vector<Step>& steps() const { return steps_; }
  size_t num_operands() const { return layouts_.size(); }
  // Elements of the flat array that the last row has.
  int64_t last_columns() const { return last_columns_; }

  // In floats, of one worker.
  int64_t full_slot(int slot) const { return slot * block_rows_ * columns_; }
  int64_t row_slot(int slot) const {
    return full_slots_ * block_rows_ * columns_ + slot * block_rows_;
  }
  int64_t gathered(size_t operand) const {
    return row_slot(row_slots_) + static_cast<int64_t>(operand) * block_rows_;
  }
  int64_t floats() const { return (gathered(num_operands()) + 15) / 16 * 16; }

 private:
  // Blocks are then of any elements that follow each other.
  void flatten() {
    last_columns_ = columns_;
    if (!chain::is_flat({steps_.begin(), steps_.end()}, layouts_, shape_)) return;
    const int64_t total = rows_ * columns_;
    columns_ = std::min(kBlockElements, total);
    rows_ = (total + columns_ - 1) / columns_;
    last_columns_ = total - (rows_ - 1) * columns_;
    shape_ = {rows_, columns_};
    for (Layout& layout : layouts_) {
      layout = {layout.step == 0 ? 0 : columns_, layout.step, true, {0}};
    }
  }

  // Slots are used again when what is in them has been read for the last time. Results of the node
  // have one for the case that they may not be written before all operands are read.
  void assign_slots() {
    std::vector<size_t> last(steps_.size(), 0);
    for (size_t k = 0; k < steps_.size(); ++k) {
      last[k] = steps_[k].result >= 0 ? steps_.size() : k;
      for (size_t argument : steps_[k].arguments) {
        if (argument < num_operands()) continue;
        size_t& of_argument = last[argument - num_operands()];
        of_argument = std::max(of_argument, k);
      }
    }
    std::vector<int> free_full;
    std::vector<int> free_row;
    for (size_t k = 0; k < steps_.size(); ++k) {
      auto& free = steps_[k].is_row ? free_row : free_full;
      int& count = steps_[k].is_row ? row_slots_ : full_slots_;
      if (free.empty()) {
        steps_[k].slot = count++;
      } else {
        steps_[k].slot = free.back();
        free.pop_back();
      }
      for (size_t j = 0; j <= k; ++j) {
        if (last[j] != k) continue;
        (steps_[j].is_row ? free_row : free_full).push_back(steps_[j].slot);
        last[j] = steps_.size() + 1;  // given back
      }
    }
  }

  Shape shape_;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  int64_t last_columns_ = 0;
  int64_t block_rows_ = 0;
  std::vector<Layout> layouts_;
  std::vector<Step> steps_;
  int full_slots_ = 0;
  int row_slots_ = 0;
};

// One block of rows of one run, by one worker.
class Block {
 public:
  Block(const Plan& plan, const reference::Call& call, const chain::Loops& loops, bool in_place,
        float* scratch, int64_t first)
      : plan_(plan),
        call_(call),
        loops_(loops),
        in_place_(in_place),
        scratch_(scratch),
        first_(first),
        rows_(std::min(plan.block_rows(), plan.rows() - first)),
        columns_(first + rows_ == plan.rows() && plan.last_columns() != plan.columns()
                     ? plan.last_columns()
                     : plan.columns()) {}

  void run() {
    for (const Step& step : plan_.steps()) {
      float* y = target(step);
      if (step.is_row && !chain::reduces(step.op)) {
        run_row_step(step, y);
      } else {
        run_full_step(step, y);
      }
    }
    if (!in_place_) return;
    for (const Step& step : plan_.steps()) {
      if (step.result < 0) continue;
      const int64_t count = step.is_row ? rows_ : rows_ * columns_;
      std::memcpy(result(step), target(step), static_cast<size_t>(count) * sizeof(float));
    }
  }

 private:
  float* result(const Step& step) const {
    auto* data = static_cast<float*>(call_.results[static_cast<size_t>(step.result)].data);
    return data + first_ * (step.is_row ? 1 : plan_.columns());
  }
  float* target(const Step& step) const {
    if (step.result >= 0 && !in_place_) return result(step);
    return scratch_ + (step.is_row ? plan_.row_slot(step.slot) : plan_.full_slot(step.slot));
  }

  // Elements of an operand from the start of its row r (of the block).
  template <typename T>
  Elements<T> operand_row(size_t k, int64_t r) const {
    const Layout& layout = plan_.layouts()[k];
    const T* data = static_cast<const T*>(call_.operands[k].data);
    if (layout.regular) return {data + (first_ + r) * layout.row, layout.step};
    int64_t index = first_ + r;
    for (size_t d = layout.strides.size(); d-- > 0;) {
      data += index % plan_.shape()[d] * layout.strides[d];
      index /= plan_.shape()[d];
    }
    return {data, layout.step};
  }

  Elements<float> argument_row(size_t argument, int64_t r) const {
    if (argument < plan_.num_operands()) return operand_row<float>(argument, r);
    const Step& step = plan_.steps()[argument - plan_.num_operands()];
    const float* data = target(step);
    return step.is_row ? Elements<float>{data + r, 0} : Elements<float>{data + r * columns_, 1};
  }

  // Whether rows of the argument follow each other without a gap, or it is one number for all.
  bool is_flat(size_t argument) const {
    if (argument >= plan_.num_operands()) {
      return !plan_.steps()[argument - plan_.num_operands()].is_row;
    }
    const Layout& layout = plan_.layouts()[argument];
    return layout.regular && (layout.step == 1 ? layout.row == plan_.columns() : layout.row == 0);
  }

  void run_full_step(const Step& step, float* y) const {
    if (chain::needs_rows(step.op)) {
      for (int64_t r = 0; r < rows_; ++r) run_along_row(step, y, r);
      return;
    }
    if (std::ranges::all_of(step.arguments, [&](size_t a) { return is_flat(a); })) {
      return apply(step, 0, y, rows_ * columns_);
    }
    for (int64_t r = 0; r < rows_; ++r) apply(step, r, y + r * columns_, columns_);
  }

  void apply(const Step& step, int64_t r, float* y, int64_t count) const {
    if (step.op == Op::kWhere) {
      return loops_.where(operand_row<bool>(step.arguments[0], r),
                          argument_row(step.arguments[1], r), argument_row(step.arguments[2], r), y,
                          count);
    }
    const Elements<float> x = argument_row(step.arguments[0], r);
    if (step.arguments.size() == 2) {
      return loops_.binary(step.op, x, argument_row(step.arguments[1], r), y, count);
    }
    if (x.step == 1) return loops_.unary(step.op, x.data, y, count);
    float value = 0;
    loops_.unary(step.op, x.data, &value, 1);
    std::fill_n(y, count, value);
  }

  void run_along_row(const Step& step, float* y, int64_t r) const {
    const Elements<float> x = argument_row(step.arguments[0], r);
    switch (step.op) {
      case Op::kReduceSum:
        y[r] = loops_.sum(x.data, columns_);
        break;
      case Op::kReduceMax:
        y[r] = loops_.max(x.data, columns_);
        break;
      default:
        loops_.softmax(x.data, y + r * columns_, columns_, step.op == Op::kLogSoftmax);
    }
  }

  // All rows of the block at once: numbers per row are gathered where they do not lie side by side.
  Elements<float> per_row(size_t argument) const {
    if (argument >= plan_.num_operands()) {
      return {target(plan_.steps()[argument - plan_.num_operands()]), 1};
    }
    const Layout& layout = plan_.layouts()[argument];
    const Elements<float> first = operand_row<float>(argument, 0);
    if (layout.regular && layout.row <= 1) return {first.data, layout.row};
    float* gathered = scratch_ + plan_.gathered(argument);
    for (int64_t r = 0; r < rows_; ++r) gathered[r] = *operand_row<float>(argument, r).data;
    return {gathered, 1};
  }

  void run_row_step(const Step& step, float* y) const {
    if (step.op == Op::kWhere) {
      for (int64_t r = 0; r < rows_; ++r) apply(step, r, y + r, 1);
      return;
    }
    const Elements<float> x = per_row(step.arguments[0]);
    if (step.arguments.size() == 2) {
      return loops_.binary(step.op, x, per_row(step.arguments[1]), y, rows_);
    }
    if (x.step == 1) return loops_.unary(step.op, x.data, y, rows_);
    float value = 0;
    loops_.unary(step.op, x.data, &value, 1);
    std::fill_n(y, rows_, value);
  }

  const Plan& plan_;
  const reference::Call& call_;
  const chain::Loops& loops_;
  bool in_place_;
  float* scratch_;
  int64_t first_;
  int64_t rows_;
  int64_t columns_;
};

void run_chain(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  std::vector<Shape> shapes;
  for (const auto& operand : operands) shapes.push_back(*operand.shape);
  const Plan plan(node, shapes);
  // A result that lies over an operand is written when the block's operands have been read.
  const bool in_place = std::ranges::any_of(results, [&](const auto& result) {
    return std::ranges::any_of(operands,
                               [&](const auto& operand) { return operand.data == result.data; });
  });
  auto* scratch = reinterpret_cast<float*>(call.workspace);
  const int64_t blocks = (plan.rows() + plan.block_rows() - 1) / plan.block_rows();
  call.workers->for_each(blocks, [&](int worker, int64_t block) {
    Block(plan, call.call, chain::best_loops(), in_place, scratch + worker * plan.floats(),
          block * plan.block_rows())
        .run();
  });
}

int64_t chain_workspace(const ir::Graph& graph, const ir::Node& node, int workers) {
  std::vector<Shape> shapes;
  for (ValueId input : node.inputs) shapes.push_back(graph.shape(input));
  return Plan(node, shapes).floats() * workers * static_cast<int64_t>(sizeof(float));
}

// Chains of float32.
bool takes(const ir::Graph& graph, const ir::Node& node) {
  const auto is_float32 = [](const chain::Link& link) {
    return link.type == ir::DataType::kFloat32;
  };
  return std::ranges::all_of(chain::links_of(node), is_float32) &&
         std::ranges::all_of(node.inputs, [&](ValueId input) {
           const ir::DataType type = graph.type(input).dtype;
           return type == ir::DataType::kFloat32 || type == ir::DataType::kBool;
         });
}

constexpr KernelRow kRows[] = {
    {ir::kAutospDomain, chain::kOp, takes, run_chain, chain_workspace,
     reference::Aliasing::kElementwise},
};

}  // namespace

std::span<const KernelRow> chain_rows() { return kRows; }

}  // namespace autosp::executor
