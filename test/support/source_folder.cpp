#include "support/source_folder.h"

#include <cstdlib>

namespace autosp::test {

std::filesystem::path source_folder() {
  const char* given = std::getenv("AUTOSP_SOURCE_DIR");
  return given != nullptr ? given : AUTOSP_SOURCE_DIR;
}

}  // namespace autosp::test
