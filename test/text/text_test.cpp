// Graph in, passes, graph out: one test for every .txt file of this folder.
//
//   What the case shows, in a line or two.
//   --- import S=9                       (bindings of symbolic dimensions, if any)
//   g (float[S] x) => (float[S] y) { ... }
//   --- after import                     (or: after PASS PASS ...)
//   the graph, as ONNX text without its header
//
// The header gives the operator set as "opset N" when it is not 20. With AUTOSP_UPDATE=1 in the
// environment the files are rewritten with what comes out: read the difference before keeping it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>

#include "onnx/model.h"
#include "transforms/pipeline.h"

namespace autosp {
namespace {

namespace fs = std::filesystem;

const fs::path kFolder = AUTOSP_SOURCE_DIR "/test/text";

struct Case {
  std::string description;
  std::string import_line;
  std::string input;
  std::string after_line;
  std::string expected;
};

std::string read(const fs::path& path) {
  std::ifstream stream(path);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

Case parse(const std::string& text) {
  static const std::regex kForm(
      R"(([\s\S]*?)--- import([^\n]*)\n([\s\S]*?)--- after([^\n]*)\n([\s\S]*))");
  std::smatch match;
  if (!std::regex_match(text, match, kForm)) throw Error("the case lacks its '---' lines");
  return {match[1], match[2], match[3], match[4], match[5]};
}

std::vector<std::string> words(const std::string& line) {
  std::istringstream stream(line);
  return {std::istream_iterator<std::string>(stream), {}};
}

// Without the model's header, which is the same everywhere.
std::string body_text(const ir::Graph& graph) {
  const std::string text = onnx_io::print_text(graph);
  const size_t end = text.find("\n>\n");
  AUTOSP_CHECK(end != std::string::npos);
  return std::regex_replace(text.substr(end + 3), std::regex("[ \t]+\n"), "\n");
}

std::string run(const Case& given) {
  onnx_io::ImportOptions options;
  std::string opset = "20";
  const auto bindings = words(given.import_line);
  for (size_t k = 0; k < bindings.size(); ++k) {
    if (bindings[k] == "opset") {
      opset = bindings.at(++k);
      continue;
    }
    const size_t equals = bindings[k].find('=');
    options.dims[bindings[k].substr(0, equals)] = std::stoll(bindings[k].substr(equals + 1));
  }
  const std::string header = fmt::format(
      "<ir_version: 8, opset_import: [\"\" : {}, \"com.microsoft\" : 1, \"local\" : 1]>\n", opset);
  ir::Graph graph = onnx_io::parse_text(header + given.input, options);
  const auto passes = words(given.after_line);
  if (passes != std::vector<std::string>{"import"}) {
    graph = transforms::run_passes(graph, {.passes = passes});
  }
  return body_text(graph);
}

std::vector<std::string> cases() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() == ".txt") names.push_back(entry.path().stem());
  }
  std::ranges::sort(names);
  return names;
}

class Text : public testing::TestWithParam<std::string> {};

TEST_P(Text, GraphComesOutAsWritten) {
  const fs::path path = kFolder / (GetParam() + ".txt");
  const Case given = parse(read(path));
  const std::string actual = run(given);
  if (std::getenv("AUTOSP_UPDATE") != nullptr) {
    std::ofstream(path) << given.description << "--- import" << given.import_line << '\n'
                        << given.input << "--- after" << given.after_line << '\n'
                        << actual;
  }
  EXPECT_EQ(actual, given.expected) << given.description;
}

INSTANTIATE_TEST_SUITE_P(Folder, Text, testing::ValuesIn(cases()),
                         [](const auto& parameters) { return parameters.param; });

}  // namespace
}  // namespace autosp
