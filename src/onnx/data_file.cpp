#include "onnx/data_file.h"

#include <algorithm>
#include <fstream>
#include <vector>

#include "base/error.h"

namespace autosp::onnx_io {

namespace {

// Tensors start at pages, so that readers can map them into memory.
constexpr int64_t kPage = 4096;

}  // namespace

void DataFile::add(const std::string& name, ir::Tensor tensor) {
  const int64_t offset = (end_ + kPage - 1) / kPage * kPage;
  end_ = offset + tensor.type().num_bytes();
  const bool added = entries_.emplace(name, Entry{std::move(tensor), offset}).second;
  AUTOSP_CHECK(added, "'{}' is added twice", name);
}

std::optional<ir::ExternalData> DataFile::find(const std::string& name,
                                               const ir::Tensor& tensor) const {
  const auto found = entries_.find(name);
  if (found == entries_.end() || !found->second.tensor.identical(tensor)) return std::nullopt;
  return ir::ExternalData{location_, found->second.offset, tensor.type().num_bytes()};
}

void DataFile::write(const std::filesystem::path& folder) const {
  std::vector<const Entry*> entries;
  for (const auto& [name, entry] : entries_) entries.push_back(&entry);
  std::ranges::sort(entries, {}, &Entry::offset);
  const auto path = folder / location_;
  std::ofstream file(path, std::ios::binary);
  for (const Entry* entry : entries) {
    file.seekp(entry->offset);
    const auto bytes = entry->tensor.bytes();
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  file.close();
  if (!file) {
    throw Error("cannot write {} bytes to '{}'", end_, path.string())
        .note("it holds the large weights that all ranks share")
        .help("check that the folder is writable and has space");
  }
}

}  // namespace autosp::onnx_io
