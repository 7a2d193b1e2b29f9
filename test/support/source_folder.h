// Where this repository's files lie that tests read.
#pragma once

#include <filesystem>

namespace autosp::test {

// What the tests were built from; $AUTOSP_SOURCE_DIR where they run on another machine.
std::filesystem::path source_folder();

}  // namespace autosp::test
