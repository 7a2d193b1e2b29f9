#include "ir/collective_numbers.h"

#include "base/error.h"

namespace autosp::ir {

namespace {

constexpr const char* kSizes[] = {"sizes"};
constexpr const char* kBoxes[] = {"shape", "send_begin", "send_extent", "recv_begin",
                                  "recv_extent"};

}  // namespace

std::span<const char* const> collective_lists(const std::string& op) {
  if (op == "AllToAll") return kBoxes;
  if (op == "AllGather" || op == "ReduceScatter") return kSizes;
  return {};
}

void set_collective_lists(const std::string& op, std::span<const int64_t> numbers, size_t rank,
                          const std::string& where, Attributes& attributes) {
  const auto refuse = [&](const std::string& expected) {
    throw Error("{} has {} numbers in operand 2, where {} belong", where, numbers.size(), expected)
        .note("they are the sizes of what its ranks exchange")
        .help("the rank graph is damaged: shard the model again");
  };
  const size_t members = attributes.get_ints("group").size();
  if (op != "AllToAll") {
    if (numbers.size() != members) refuse(std::to_string(members));
    attributes.set("sizes", std::vector<int64_t>(numbers.begin(), numbers.end()));
    return;
  }
  // The result's shape has as many numbers as begin and extent of the box of each member.
  const size_t sent = 2 * members * rank;
  const size_t per_axis = 1 + 2 * members;
  if (numbers.size() < sent || (numbers.size() - sent) % per_axis != 0) {
    refuse(fmt::format("{} and a multiple of {}", sent, per_axis));
  }
  const size_t result_rank = (numbers.size() - sent) / per_axis;
  const size_t counts[] = {result_rank, sent / 2, sent / 2, members * result_rank,
                           members * result_rank};
  for (size_t k = 0; k < std::size(kBoxes); ++k) {
    const auto list = numbers.first(counts[k]);
    attributes.set(kBoxes[k], std::vector<int64_t>(list.begin(), list.end()));
    numbers = numbers.subspan(counts[k]);
  }
}

}  // namespace autosp::ir
