#include "transforms/recompute/forward_pass.h"

#include <algorithm>
#include <limits>
#include <set>

#include "ir/operator_traits.h"

namespace autosp::transforms {

namespace {

bool moves_no_bytes(const SpmdProgram& program, const Instruction& instruction) {
  if (const auto* move = std::get_if<Move>(&instruction)) {
    return move->kind == StepKind::kKeepOnFirst;
  }
  return ir::is_view(program.graph().node(std::get<Compute>(instruction).node));
}

}  // namespace

ForwardPass::ForwardPass(const SpmdProgram& program) : program_(&program) {
  measure();
  find_storages();
  find_dependences();
  find_attention();
  find_decisive();
  find_distances();
  find_layers();
}

const ir::Node* ForwardPass::node(size_t k) const {
  const auto* compute = std::get_if<Compute>(&instructions()[k]);
  return compute == nullptr ? nullptr : &program_->graph().node(compute->node);
}

void ForwardPass::measure() {
  const shard::Mesh& mesh = program_->plan->mesh;
  for (const Placed& placed : program_->placed) {
    int64_t most = 0;
    for (int64_t rank = 0; rank < mesh.size(); ++rank) {
      most = std::max(most, ir::num_elements(local_shape(placed, mesh, rank)));
    }
    const ir::DataType dtype = program_->graph().type(placed.value).dtype;
    bytes_.push_back(most * static_cast<int64_t>(ir::element_size(dtype)));
  }
  is_output_.assign(program_->placed.size(), false);
  for (PlacedId output : program_->outputs) is_output_[output.index()] = true;
}

void ForwardPass::find_storages() {
  const size_t count = program_->placed.size();
  producer_.assign(count, -1);
  readers_.resize(count);
  for (size_t v = 0; v < count; ++v) storage_.emplace_back(v);
  std::vector<bool> is_wanted(count, false);
  for (size_t k = 0; k < instructions().size(); ++k) {
    const Instruction& instruction = instructions()[k];
    is_view_.push_back(moves_no_bytes(*program_, instruction));
    const auto operands = operands_of(instruction);
    for (PlacedId operand : operands) {
      auto& readers = readers_[operand.index()];
      if (readers.empty() || readers.back() != k) readers.push_back(k);
      const int made = producer(operand);
      if (is_forward(k) || made < 0 || !is_forward(static_cast<size_t>(made))) continue;
      if (!is_wanted[operand.index()]) wanted_.push_back(operand);
      is_wanted[operand.index()] = true;
    }
    for (PlacedId result : results_of(instruction)) {
      producer_[result.index()] = static_cast<int>(k);
      if (is_view_[k]) storage_[result.index()] = storage(operands[0]);
    }
  }
}

void ForwardPass::find_dependences() {
  const ir::Graph& graph = program_->graph();
  const auto& is_parameter = program_->plan->roles.is_parameter;
  for (const Placed& placed : program_->placed) {
    const ir::ValueKind kind = graph.value(placed.value).kind;
    const bool parameter = is_parameter[placed.value.index()] || kind == ir::ValueKind::kExternal;
    on_parameters_.push_back(parameter);
    on_data_.push_back(kind == ir::ValueKind::kInput && !parameter);
    on_draws_.push_back(false);
  }
  for (size_t k = 0; k < instructions().size(); ++k) {
    bool data = false;
    bool parameters = false;
    bool draws = node(k) != nullptr && ir::is_draw(*node(k));
    for (PlacedId operand : operands_of(instructions()[k])) {
      data = data || depends_on_data(operand);
      parameters = parameters || depends_on_parameters(operand);
      draws = draws || depends_on_draws(operand);
    }
    for (PlacedId result : results_of(instructions()[k])) {
      on_data_[result.index()] = data;
      on_parameters_[result.index()] = parameters;
      on_draws_[result.index()] = draws;
    }
  }
}

void ForwardPass::find_attention() {
  const shard::AttentionSites& sites = program_->plan->attention;
  const std::set<NodeId> contractions(sites.contractions.begin(), sites.contractions.end());
  const std::set<ValueId> two_home(sites.two_home_values.begin(), sites.two_home_values.end());
  is_attention_.assign(instructions().size(), false);
  makes_attention_output_.assign(instructions().size(), false);
  for (size_t k = 0; k < instructions().size(); ++k) {
    const auto* compute = std::get_if<Compute>(&instructions()[k]);
    if (compute == nullptr || !is_forward(k)) continue;
    const bool fused = node(k)->op == "Attention" || node(k)->op == "MultiHeadAttention";
    is_attention_[k] = fused || contractions.contains(compute->node);
    makes_attention_output_[k] =
        is_attention_[k] && (fused || !two_home.contains(node(k)->outputs[0]));
  }
}

namespace {

// Whether a result holds elements of the first operand as they are.
bool copies(const Instruction& instruction, const ir::Node* node) {
  if (node == nullptr) {
    const StepKind kind = std::get<Move>(instruction).kind;
    return kind != StepKind::kAllReduce && kind != StepKind::kReduceScatter;
  }
  return ir::is_view(*node) || node->is("Expand") || node->is("Slice") || node->is("Transpose") ||
         node->is("Cast");
}

bool is_choice(const ir::Node& node) {
  return node.is("TopK") || node.is("ArgMax") || node.is("ArgMin");
}

bool is_comparison(const ir::Node& node) {
  return node.is("Equal") || node.is("Less") || node.is("LessOrEqual") || node.is("Greater") ||
         node.is("GreaterOrEqual");
}

}  // namespace

void ForwardPass::find_decisive() {
  is_decisive_.assign(instructions().size(), false);
  const auto mark = [&](PlacedId id) {
    int made = producer(id);
    while (made >= 0 &&
           copies(instructions()[static_cast<size_t>(made)], node(static_cast<size_t>(made)))) {
      id = operands_of(instructions()[static_cast<size_t>(made)])[0];
      made = producer(id);
    }
    if (made >= 0) is_decisive_[static_cast<size_t>(made)] = true;
  };
  for (size_t k = 0; k < instructions().size(); ++k) {
    if (node(k) == nullptr) continue;
    if (is_choice(*node(k))) is_decisive_[k] = true;
    const std::vector<PlacedId> operands = operands_of(instructions()[k]);
    const bool compares =
        is_comparison(*node(k)) && operands.size() == 2 &&
        std::ranges::all_of(operands, [&](PlacedId id) {
          return producer(id) >= 0 && is_activation(id) &&
                 is_floating(program_->graph().type(program_->at(id).value).dtype);
        });
    if (compares) std::ranges::for_each(operands, mark);
  }
}

std::vector<ForwardPass::Articulation> ForwardPass::articulations() const {
  constexpr int kNever = -1;
  std::vector<int> last(program_->placed.size(), kNever);  // forward reader of a storage
  for (size_t k = 0; k < instructions().size(); ++k) {
    if (!is_forward(k)) continue;
    for (PlacedId operand : operands_of(instructions()[k])) {
      last[storage(operand).index()] = static_cast<int>(k);
    }
  }
  std::set<PlacedId> live;
  std::vector<Articulation> result;
  for (size_t k = 0; k < instructions().size(); ++k) {
    if (!is_forward(k)) continue;
    for (PlacedId operand : operands_of(instructions()[k])) {
      if (last[storage(operand).index()] == static_cast<int>(k)) live.erase(storage(operand));
    }
    for (PlacedId id : results_of(instructions()[k])) {
      if (is_activation(id) && last[storage(id).index()] > static_cast<int>(k)) {
        live.insert(storage(id));
      }
    }
    if (live.size() != 1) continue;
    const PlacedId alone = *live.begin();
    if (producer(alone) < 0 || (!result.empty() && result.back().storage == alone)) continue;
    result.push_back({alone, static_cast<size_t>(producer(alone))});
  }
  return result;
}

void ForwardPass::find_layers() {
  const std::vector<Articulation> points = articulations();
  std::optional<size_t> last_attention;
  for (size_t k = 0; k < instructions().size(); ++k) {
    if (!is_attention(k)) continue;
    last_attention = k;
    const auto after = std::ranges::partition_point(
        points, [k](const Articulation& point) { return point.made < k; });
    if (after == points.begin()) continue;
    const PlacedId input = std::prev(after)->storage;
    if (layer_inputs_.empty() || layer_inputs_.back() != input) layer_inputs_.push_back(input);
  }
  tail_ = instructions().size();
  if (!last_attention) {  // no attention: every such point begins a layer
    for (const Articulation& point : points) layer_inputs_.push_back(point.storage);
    return;
  }
  // The first point after attention is inside the layer (its first residual), the second its end.
  const auto after = std::ranges::partition_point(
      points, [&](const Articulation& point) { return point.made <= *last_attention; });
  const auto count = points.end() - after;
  if (count == 0) return;
  const Articulation& output = count > 1 ? after[1] : after[0];
  tail_ = output.made;
  layer_inputs_.push_back(output.storage);
}

void ForwardPass::find_distances() {
  constexpr int kFar = std::numeric_limits<int>::max() - 1;
  distance_.assign(instructions().size(), kFar);
  for (size_t k = instructions().size(); k-- > 0;) {
    if (!is_forward(k)) continue;
    int nearest = kFar - 1;
    for (PlacedId result : results_of(instructions()[k])) {
      for (size_t reader : readers(result)) {
        nearest = std::min(nearest, is_forward(reader) ? distance_[reader] : 0);
      }
    }
    distance_[k] = std::min(nearest, kFar - 1) + 1;
  }
}

}  // namespace autosp::transforms
