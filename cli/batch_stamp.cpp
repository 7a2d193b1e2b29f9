#include "batch_stamp.h"

#include <algorithm>
#include <boost/crc.hpp>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

Json to_json(const Checksums& checksums) {
  Json json = Json::object();
  for (const auto& [name, sum] : checksums) json[name] = fmt::format("{:08x}", sum);
  return json;
}

Checksums to_checksums(const Json& json) {
  Checksums checksums;
  for (const auto& [name, sum] : json.items()) {
    checksums[name] = static_cast<uint32_t>(std::stoul(sum.get<std::string>(), nullptr, 16));
  }
  return checksums;
}

// The ranks of one sequence differ in their coordinates on axes other than dp.
std::vector<int64_t> replica_of(const onnx_io::Manifest& manifest, size_t rank) {
  std::vector<int64_t> replica;
  for (size_t k = 0; k < manifest.mesh.size(); ++k) {
    if (manifest.mesh[k].name == "dp") replica.push_back(manifest.ranks[rank].coordinates[k]);
  }
  return replica;
}

std::string box_text(const onnx_io::ManifestInput& input, size_t rank) {
  if (input.slices.empty()) return "all of it";
  const onnx_io::ManifestSlice& slice = input.slices[rank];
  std::string text;
  for (size_t k = 0; k < slice.begin.size(); ++k) {
    text += fmt::format("{}{}:{}", text.empty() ? "" : ", ", slice.begin[k],
                        slice.begin[k] + slice.extent[k]);
  }
  return fmt::format("[{}] of it", text);
}

bool take_the_same(const onnx_io::ManifestInput& input, size_t a, size_t b) {
  if (input.slices.empty()) return true;
  return input.slices[a].begin == input.slices[b].begin &&
         input.slices[a].extent == input.slices[b].extent;
}

void check_equal_parts(const onnx_io::Manifest& manifest, const std::vector<FeedDigest>& ranks) {
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    for (size_t b = 1; b < ranks.size(); ++b) {
      for (size_t a = 0; a < b; ++a) {
        if (!take_the_same(input, a, b)) continue;
        const uint32_t first = ranks[a].taken.at(input.name);
        const uint32_t second = ranks[b].taken.at(input.name);
        if (first == second) break;  // and so are those before
        throw Error("ranks {} and {} are fed different '{}'", a, b, input.name)
            .note(fmt::format("both take {}; the checksums of what they were given are {:08x} and "
                              "{:08x}",
                              box_text(input, a), first, second))
            .help("feed all ranks of a sequence from one batch: 'autosp-onnx feed' cuts it");
      }
    }
  }
}

void check_one_whole(const onnx_io::Manifest& manifest, const std::vector<FeedDigest>& ranks) {
  for (size_t b = 1; b < ranks.size(); ++b) {
    for (size_t a = 0; a < b; ++a) {
      if (!ranks[a].whole || !ranks[b].whole) continue;
      if (replica_of(manifest, a) != replica_of(manifest, b)) continue;
      for (const auto& [name, sum] : *ranks[a].whole) {
        const auto other = ranks[b].whole->find(name);
        if (other == ranks[b].whole->end() || other->second == sum) continue;
        throw Error("ranks {} and {} share a sequence, but are fed slices of different batches", a,
                    b)
            .note(fmt::format("'{}' had the checksum {:08x} before it was cut for rank {}, and "
                              "{:08x} for rank {}",
                              name, sum, a, other->second, b))
            .help("give files that one call of 'autosp-onnx feed' wrote");
      }
      break;
    }
  }
}

}  // namespace

uint32_t checksum(const ir::Tensor& tensor) {
  boost::crc_32_type sum;
  sum.process_bytes(tensor.bytes().data(), tensor.bytes().size());
  return sum.checksum();
}

Checksums whole_checksums(const onnx_io::Manifest& manifest, const executor::Arrays& batch) {
  Checksums checksums;
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    const bool step = manifest.random && manifest.random->step_input == input.name;
    if (input.role == onnx_io::InputRole::kData && !step) {
      checksums[input.name] = checksum(batch.at(input.name));
    }
  }
  return checksums;
}

ir::Tensor encode(const BatchStamp& stamp) {
  const std::string text =
      Json{{"rank", stamp.rank}, {"plan", stamp.plan}, {"batch", to_json(stamp.whole)}}.dump(
          -1, ' ', true, Json::error_handler_t::replace);
  return ir::Tensor::from_values<uint8_t>({static_cast<int64_t>(text.size())},
                                          std::vector<uint8_t>(text.begin(), text.end()));
}

BatchStamp decode(const ir::Tensor& tensor, const std::string& where) {
  try {
    if (tensor.dtype() != ir::DataType::kUInt8) throw std::invalid_argument("it is not of bytes");
    const auto bytes = tensor.values<uint8_t>();
    const Json json = Json::parse(bytes.begin(), bytes.end());
    return {
        .rank = json.at("rank"), .plan = json.at("plan"), .whole = to_checksums(json.at("batch"))};
  } catch (const std::exception& problem) {
    throw Error("'{}' in {} does not say what the file was cut from: {}", kStampName, where,
                problem.what())
        .note("'autosp-onnx feed' writes it as the bytes of a JSON text")
        .help("cut the batch again with 'autosp-onnx feed'");
  }
}

std::string to_text(const FeedDigest& digest) {
  Json json{{"taken", to_json(digest.taken)}};
  if (digest.whole) json["whole"] = to_json(*digest.whole);
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

FeedDigest parse_digest(const std::string& text) {
  const Json json = Json::parse(text);
  FeedDigest digest{.taken = to_checksums(json.at("taken")), .whole = std::nullopt};
  if (json.contains("whole")) digest.whole = to_checksums(json["whole"]);
  return digest;
}

void check_one_batch(const onnx_io::Manifest& manifest, const std::vector<FeedDigest>& ranks) {
  check_equal_parts(manifest, ranks);
  check_one_whole(manifest, ranks);
}

}  // namespace autosp::cli
