#include "open_sequence.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "base/context.h"
#include "base/error.h"
#include "longest_sequence.h"
#include "make_manifest.h"
#include "onnx/model.h"
#include "open_export.h"
#include "prediction.h"
#include "transforms/spmd/tile_loop.h"

namespace autosp::cli {

using transforms::SpmdProgram;

namespace {

constexpr std::string_view kDynamic = "dynamic";
constexpr int64_t kPlannedByDefault = 4096;  // tokens
// Beyond it a model is taken to have no longest sequence.
constexpr int64_t kFarAway = int64_t{1} << 20;
// Lengths that are compared, besides the shortest and the longest.
constexpr size_t kCompared = 5;

int64_t round_up(int64_t length, int64_t multiple) {
  return (length + multiple - 1) / multiple * multiple;
}

}  // namespace

std::optional<OpenDim> take_open_dim(ModelArguments& arguments) {
  std::optional<OpenDim> found;
  for (const std::string& text : arguments.dims) {
    const auto [name, value] = split_assignment(text, "--dim");
    if (!value.starts_with(kDynamic)) continue;
    const std::string rest = value.substr(kDynamic.size());
    if (!rest.empty() && rest[0] != ':') continue;
    if (found) {
      throw Error("--dim leaves both '{}' and '{}' open", found->name, name)
          .note("one length may stay open: that of the sequence")
          .help(fmt::format("give the other one a number: --dim {}=N", name));
    }
    found = OpenDim{.name = name, .planned = std::nullopt};
    if (!rest.empty()) {
      found->planned = parse_count(rest.substr(1), fmt::format("--dim {}=dynamic:", name),
                                   "for example: --dim seq=dynamic:131072, which plans for that "
                                   "length");
    }
  }
  std::erase_if(arguments.dims, [&](const std::string& text) {
    return found && text.starts_with(fmt::format("{}={}", found->name, kDynamic));
  });
  return found;
}

struct OpenSharding::AtLength {
  int64_t units = 0;
  LoadedModel model;
  std::optional<shard::Plan> plan;
  std::optional<SpmdProgram> program;
};

namespace {

ModelArguments bound(const OpenArguments& arguments, int64_t length) {
  ModelArguments result = arguments.model;
  result.dims.push_back(fmt::format("{}={}", arguments.dim.name, length));
  return result;
}

// Messages of passes are those of the length that is planned for.
PassArguments silent(PassArguments passes) {
  passes.print_after.clear();
  passes.timing = false;
  return passes;
}

}  // namespace

namespace {

bool same_step(const transforms::Instruction& a, const transforms::Instruction& b) {
  const auto* move = std::get_if<transforms::Move>(&a);
  const auto* other = std::get_if<transforms::Move>(&b);
  if ((move == nullptr) != (other == nullptr)) return false;
  if (move != nullptr) {
    return std::tie(move->from, move->to, move->kind, move->axes, move->phase) ==
           std::tie(other->from, other->to, other->kind, other->axes, other->phase);
  }
  const auto& x = std::get<transforms::Compute>(a);
  const auto& y = std::get<transforms::Compute>(b);
  return std::tie(x.node, x.operands, x.results, x.phase) ==
         std::tie(y.node, y.operands, y.results, y.phase);
}

// What is recomputed and tiled is told by the places of instructions.
void check_same_steps(const SpmdProgram& program, const SpmdProgram& decided, int64_t length) {
  const auto [here, there] =
      std::ranges::mismatch(program.instructions, decided.instructions, same_step);
  if (here == program.instructions.end() && there == decided.instructions.end()) return;
  std::string value = "the results";
  if (there != decided.instructions.end() && !results_of(*there).empty()) {
    const transforms::PlacedId made = results_of(*there).front();
    value = fmt::format("'{}'", decided.graph().name_of(decided.at(made).value));
  }
  throw Error("at a length of {}, ranks exchange {} in another way than at the length planned for",
              length, value)
      .note("one plan holds for all lengths")
      .help("plan for a longer sequence, as in --dim seq=dynamic:131072, or give the length");
}

}  // namespace

OpenSharding::~OpenSharding() = default;

const LoadedModel& OpenSharding::model() const { return lengths_.front()->model; }
const shard::Plan& OpenSharding::plan() const { return *lengths_.front()->plan; }

bool OpenSharding::takes(int64_t length) const {
  try {
    const LoadedModel model = load_model(bound(arguments_, length), silent(arguments_.passes));
    plan_model(model, arguments_.plan);
    return true;
  } catch (const Error&) {
    return false;
  }
}

void OpenSharding::decide(int64_t length) {
  decided_ = std::make_unique<AtLength>();
  decided_->model = load_model(bound(arguments_, length), arguments_.passes);
  decided_->plan = plan_model(decided_->model, arguments_.plan);
  decided_->program = transforms::build_program(*decided_->plan);
  const SpmdProgram& kept = *decided_->program;
  recomputed_ = with_recompute(kept, arguments_.recompute, load_device(arguments_.device),
                               memory_of_this_machine(kept));
  // Whatever is cut into parts is to have parts of one size.
  open_.multiple = accepted_multiple([this](int64_t other) { return takes(other); }, length);
  for (const shard::MeshAxis& axis : decided_->plan->mesh.axes()) {
    if (axis.name != "dp") open_.multiple *= axis.size;
  }
  int64_t tiles = 1;
  for (const transforms::TileLoop& loop : recomputed_->program.tile_loops) {
    tiles = std::lcm(tiles, loop.stretch->tiles);
  }
  open_.multiple *= tiles;
}

// Whether the decisions can be carried out at a length.
bool OpenSharding::joins(int64_t units) const {
  try {
    at(units * open_.multiple);
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::unique_ptr<OpenSharding::AtLength> OpenSharding::at(int64_t length) const {
  auto at = std::make_unique<AtLength>();
  at->units = length / open_.multiple;
  at->model = load_model(bound(arguments_, length), silent(arguments_.passes));
  at->plan = with_context(
      fmt::format("while planning '{}' for {}={} as for {}={}", at->model.path.string(), open_.dim,
                  length, open_.dim, decided_->model.bindings.dims.at(open_.dim)),
      fmt::format("give the length: --dim {}=N", open_.dim), [&] {
        return shard::make_plan_like(at->model.graph, at->model.roles,
                                     plan_options(arguments_.plan), *decided_->plan);
      });
  const SpmdProgram kept = transforms::build_program(*at->plan);
  check_same_steps(kept, *decided_->program, length);
  at->program = with_recompute_like(kept, *recomputed_);
  return at;
}

namespace {

void check_open_dim(const OpenArguments& arguments) {
  std::vector<std::string> names;
  for (const auto& dim : onnx_io::symbolic_dims(arguments.model.model)) names.push_back(dim.name);
  if (std::ranges::find(names, arguments.dim.name) != names.end()) return;
  Error error("the model has no symbolic dimension '{}'", arguments.dim.name);
  error.note(names.empty() ? "all its inputs have fixed shapes"
                           : fmt::format("it has: {}", fmt::join(names, ", ")));
  const std::string near = nearest_name(arguments.dim.name, names);
  throw error.help(near.empty() ? "export the model with an open sequence to leave it open here"
                                : fmt::format("did you mean --dim {}=dynamic?", near));
}

void check_sequence(const LoadedModel& model, const std::string& dim) {
  const std::string sequence = sequence_dimension(model);
  if (sequence == dim) return;
  throw Error("'{}' is not the sequence, and cannot stay open", dim)
      .note(sequence.empty() ? std::string("the model fixes the length of its sequence")
                             : fmt::format("the sequence is '{}'", sequence))
      .help(fmt::format("give it a number (--dim {}=N), or name the sequence with --seq", dim));
}

}  // namespace

OpenSharding::OpenSharding(OpenArguments arguments)
    : arguments_(std::move(arguments)), open_{.dim = arguments_.dim.name} {
  check_open_dim(arguments_);
  // Decisions can be made at any length; the multiple follows from them.
  int64_t known = arguments_.dim.planned.value_or(kPlannedByDefault);
  while (!arguments_.dim.planned && known > 1 && !takes(known)) known /= 2;
  decide(known);
  check_sequence(decided_->model, open_.dim);
  find_longest(known);
  // A table of positions that is taken as a whole has no window: other operators than elsewhere.
  const int64_t shorter = (known - 1) / open_.multiple;
  if (longest_ != 0 && shorter > 0 && known > (longest_ - 1) * open_.multiple && !joins(shorter)) {
    known = shorter * open_.multiple;
    decide(known);
    find_longest(known);
  }
  choose_lengths(known);
  find_shortest();
  make_open_manifest();
}

// By bisection between a length at which the decisions can be carried out and one at which they
// cannot.
void OpenSharding::find_longest(int64_t known) {
  longest_ = 0;
  const int64_t far = std::max(kFarAway, 16 * known) / open_.multiple;
  if (joins(far)) return;
  int64_t fits = known / open_.multiple;
  int64_t fails = far;
  while (fails - fits > 1) {
    const int64_t middle = fits + (fails - fits) / 2;
    (joins(middle) ? fits : fails) = middle;
  }
  longest_ = fits;
}

void OpenSharding::add(int64_t units) {
  const auto same = [units](const auto& at) { return at->units == units; };
  if (std::ranges::any_of(lengths_, same)) return;
  lengths_.push_back(at(units * open_.multiple));
}

void OpenSharding::choose_lengths(int64_t known) {
  int64_t planned = round_up(known, open_.multiple) / open_.multiple;
  if (longest_ != 0) planned = std::min(planned, longest_);
  std::vector<int64_t> chosen;
  for (int64_t units : {planned, planned + 1, planned + 3, 2 * planned + 1, 3 * planned + 2,
                        planned - 1, planned - 3, planned / 2 + 1, planned - 2, planned / 2}) {
    const bool possible = units >= 1 && (longest_ == 0 || units <= longest_);
    if (!possible || std::ranges::find(chosen, units) != chosen.end()) continue;
    if (chosen.size() < kCompared) chosen.push_back(units);
  }
  constexpr size_t kFewest = 4;
  if (chosen.size() < kFewest) {
    throw Error("'{}' cannot stay open: the model takes too few lengths that are multiples of {}",
                open_.dim, open_.multiple)
        .note(fmt::format("the longest that it takes is {}; {} lengths are compared",
                          longest_ * open_.multiple, kFewest))
        .help(fmt::format("give the length (--dim {}=N), or use fewer ranks or tiles", open_.dim));
  }
  for (int64_t units : chosen) add(units);
  if (longest_ != 0) add(longest_);
  std::vector<const AtLength*> all;
  for (const auto& at : lengths_) all.push_back(at.get());
  check_joins(all);
}

// Short sequences may have other graphs (a rank without a token, dimensions of 1).
void OpenSharding::find_shortest() {
  const int64_t least = (*std::ranges::min_element(lengths_, {}, &AtLength::units))->units;
  shortest_ = least;
  std::vector<const AtLength*> all;
  for (const auto& at : lengths_) all.push_back(at.get());
  for (int64_t units = 1; units < least; units += std::max<int64_t>(1, units / 2)) {
    try {
      auto shorter = at(units * open_.multiple);
      all.push_back(shorter.get());
      check_joins(all);
      lengths_.push_back(std::move(shorter));
      shortest_ = units;
      return;
    } catch (const Error&) {
      all.resize(lengths_.size());
    }
  }
}

namespace {

// What is written of a sharded model: graphs of ranks, or the emulated one.
std::vector<std::pair<Dialect, int64_t>> written(const std::set<Dialect>& dialects, int64_t ranks) {
  std::vector<std::pair<Dialect, int64_t>> graphs;
  for (const Dialect dialect : dialects) {
    const int64_t count = dialect == Dialect::kStandard ? 1 : ranks;
    for (int64_t rank = 0; rank < count; ++rank) graphs.emplace_back(dialect, rank);
  }
  return graphs;
}

}  // namespace

ir::Graph OpenSharding::graph_at(const AtLength& at, Dialect dialect, int64_t rank) const {
  return dialect_graph(*at.program, dialect, rank, &recomputed_->program);
}

void OpenSharding::check_joins(const std::vector<const AtLength*>& lengths) const {
  std::vector<int64_t> units;
  for (const AtLength* at : lengths) units.push_back(at->units);
  for (const auto& [dialect, rank] : written(arguments_.dialects, decided_->plan->mesh.size())) {
    std::vector<ir::Graph> graphs;
    for (const AtLength* at : lengths) graphs.push_back(graph_at(*at, dialect, rank));
    join_graphs(units, graphs, open_);
  }
}

WrittenGraph OpenSharding::graph(Dialect dialect, int64_t rank) const {
  std::vector<int64_t> units;
  std::vector<ir::Graph> graphs;
  for (const auto& at : lengths_) {
    units.push_back(at->units);
    graphs.push_back(graph_at(*at, dialect, rank));
  }
  return open_graph(std::move(units), std::move(graphs), open_);
}

void OpenSharding::make_open_manifest() {
  std::vector<int64_t> units;
  std::vector<onnx_io::Manifest> manifests;
  for (const auto& at : lengths_) {
    units.push_back(at->units);
    manifests.push_back(make_manifest(at->model, *at->program));
    manifests.back().recompute = recomputed_->summary;
  }
  manifest_ = open_manifest(units, manifests, open_, shortest_, longest_);
}
}  // namespace autosp::cli
