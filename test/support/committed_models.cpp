#include "support/committed_models.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "onnx/model.h"
#include "support/source_folder.h"

namespace autosp::test {

namespace {

std::filesystem::path graphs() { return source_folder() / "models" / "graphs"; }

}  // namespace

std::vector<CommittedModel> committed_models(const std::vector<int64_t>& sequences) {
  std::vector<CommittedModel> models;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(graphs())) {
    if (entry.path().extension() != ".onnx") continue;
    const std::string file = std::filesystem::relative(entry.path(), graphs()).string();
    // What float32 holds to 1e-5 bfloat16 does not: test/e2e/test_validate.py compares these.
    if (file.starts_with("bfloat16")) continue;
    if (onnx_io::symbolic_dims(entry.path()).empty()) {
      models.push_back({.file = file});
      continue;
    }
    for (int64_t sequence : sequences) models.push_back({.file = file, .sequence = sequence});
  }
  std::ranges::sort(models, {}, [](const CommittedModel& model) {
    return std::pair(model.file, model.sequence);
  });
  return models;
}

ir::Graph import_committed(const CommittedModel& model) {
  onnx_io::ImportOptions options;
  for (const auto& dim : onnx_io::symbolic_dims(graphs() / model.file)) {
    options.dims[dim.name] = dim.name.find("batch") != std::string::npos ? 2 : model.sequence;
  }
  return onnx_io::import_model(graphs() / model.file, options);
}

std::string identifier_of(const CommittedModel& model) {
  std::string name = model.file.substr(0, model.file.rfind('.'));
  std::ranges::replace_if(
      name, [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return model.sequence == 0 ? name : fmt::format("{}_{}", name, model.sequence);
}

}  // namespace autosp::test
