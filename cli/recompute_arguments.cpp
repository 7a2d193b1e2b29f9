#include "recompute_arguments.h"

#include <algorithm>

#include "base/error.h"
#include "executor/memory_limit.h"
#include "executor/program.h"
#include "prediction.h"
#include "rank_kinds.h"
#include "sharded_folder.h"
#include "transforms/recompute/budget.h"
#include "transforms/recompute/price.h"
#include "transforms/tile/tile.h"

namespace autosp::cli {

using transforms::RecomputePolicy;
using transforms::SpmdProgram;

void add_recompute_options(CLI::App& command, RecomputeArguments& arguments) {
  command
      .add_option(
          "--recompute", arguments.policy,
          "What the backward pass computes again instead of keeping it, from most memory to "
          "least: none; mincut (default): cheap operators only; sac (selective activation "
          "checkpointing): all but layer inputs and attention outputs; full: all but layer "
          "inputs; budget=BYTES, as in budget=8GiB: as little as keeps a rank's planned peak below "
          "that; auto: as "
          "little as fits into memory")
      ->type_name("POLICY");
  command
      .add_option("--tile", arguments.tile,
                  "Whether loss head and MLPs run in tiles of the sequence: auto (where they are "
                  "wide and long), off, or the tokens of a tile on a rank")
      ->type_name("auto|off|TOKENS")
      ->capture_default_str();
}

namespace {

constexpr std::string_view kBudget = "budget=";

RecomputePolicy parse_policy(const std::string& text) {
  std::vector<std::string> names;
  for (RecomputePolicy policy : {RecomputePolicy::kNone, RecomputePolicy::kMinCut,
                                 RecomputePolicy::kSac, RecomputePolicy::kFull}) {
    if (text == name_of(policy)) return policy;
    names.emplace_back(name_of(policy));
  }
  names.insert(names.end(), {"auto", "budget=BYTES"});
  const std::string near = nearest_name(text, names);
  throw Error("--recompute takes {}, not '{}'", fmt::join(names, ", "), text)
      .note("it says what the backward pass computes again instead of keeping it")
      .help(near.empty() ? "leave it out for mincut" : fmt::format("did you mean '{}'?", near));
}

int64_t tile_tokens(const std::string& option) {
  const std::string near = nearest_name(option, {"auto", "off"});
  return parse_count(option, "--tile",
                     near.empty() ? "give the tokens of a tile, or auto, which chooses, or off"
                                  : fmt::format("did you mean '{}'?", near));
}

using MaybeTiles = std::optional<transforms::TilePlan>;

MaybeTiles plan_tiles(const SpmdProgram& program, const std::string& option) {
  if (option == "off") return std::nullopt;
  if (option == "auto") return transforms::plan_tiles(program);
  return transforms::plan_tiles(program, {.tokens = tile_tokens(option)});
}

SpmdProgram with_tiles(SpmdProgram program, const MaybeTiles& tiles) {
  return tiles ? transforms::apply_tiles(program, *tiles) : std::move(program);
}

transforms::RecomputePlan plan_within(const SpmdProgram& program,
                                      const RecomputeArguments& arguments,
                                      const cost::Device& device, int64_t bytes) {
  const std::vector<int64_t> ranks = rank_kinds(program);
  const auto peak = [&](const SpmdProgram& candidate, int64_t enough) {
    const SpmdProgram tiled = with_tiles(candidate, plan_tiles(candidate, arguments.tile));
    int64_t most = 0;
    for (size_t k = 0; k < ranks.size() && most <= enough; ++k) {
      most = std::max(most, compile_rank(tiled, ranks[k]).memory().arena);
    }
    return most;
  };
  return transforms::plan_recompute_within(
      program, {.bytes = bytes,
                .seconds = transforms::instruction_seconds(program, device),
                .peak = peak,
                .tiled = arguments.tile != "off"});
}

}  // namespace

std::optional<int64_t> budget_of(const RecomputeArguments& arguments) {
  if (!arguments.policy.starts_with(kBudget)) return std::nullopt;
  return parse_bytes(arguments.policy.substr(kBudget.size()), "--recompute budget=BYTES");
}

int64_t fed_bytes(const SpmdProgram& program) {
  int64_t bytes = 0;
  for (transforms::PlacedId input : program.inputs) {
    const transforms::Placed& placed = program.at(input);
    const ir::Type type{program.graph().type(placed.value).dtype,
                        transforms::local_shape(placed, program.plan->mesh, 0)};
    bytes += type.num_bytes();
  }
  for (const ir::Value& value : program.graph().values()) {
    if (value.kind == ir::ValueKind::kExternal) bytes += value.type.num_bytes();
  }
  return bytes;
}

int64_t memory_of_this_machine(const SpmdProgram& program) {
  constexpr double kUsable = 0.8;
  const double share = kUsable * static_cast<double>(executor::usable_memory()) /
                       static_cast<double>(program.plan->mesh.size());
  return static_cast<int64_t>(share) - fed_bytes(program);
}

RecomputedProgram with_recompute(const SpmdProgram& program, const RecomputeArguments& arguments,
                                 const cost::Device& device, int64_t limit) {
  const bool has_loss = program.plan->roles.loss.has_value();
  const std::string policy = !arguments.policy.empty() ? arguments.policy
                             : has_loss                ? "mincut"
                                                       : "none";
  RecomputedProgram result{
      .program = program, .summary = {.policy = policy}, .recompute = {}, .tiles = {}};
  if (has_loss || policy != "none") {
    const std::optional<int64_t> budget = budget_of(arguments);
    result.recompute = budget || policy == "auto"
                           ? plan_within(program, arguments, device, budget.value_or(limit))
                           : transforms::plan_recompute(program, parse_policy(policy));
    result.program = transforms::apply_recompute(program, result.recompute);
  }
  result.tiles = plan_tiles(result.program, arguments.tile);
  result.program = with_tiles(std::move(result.program), result.tiles);
  result.summary.kept_bytes = result.recompute.kept_bytes;
  result.summary.operators = std::ranges::count_if(
      result.program.instructions, [](const transforms::Instruction& instruction) {
        return phase_of(instruction) == transforms::Phase::kRecompute;
      });
  return result;
}

SpmdProgram with_recompute_like(const SpmdProgram& program, const RecomputedProgram& like) {
  const bool recomputes = !like.recompute.recomputed.empty();
  return with_tiles(recomputes ? transforms::apply_recompute(program, like.recompute) : program,
                    like.tiles);
}

}  // namespace autosp::cli
