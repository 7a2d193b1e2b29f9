// Text in models and paths, which need not be UTF-8, on its way into files that must be.
#pragma once

#include <cstddef>
#include <string_view>

namespace autosp {

// Bytes of the UTF-8 character that `text`, which is not empty, begins with; 0 when it begins with
// none.
size_t utf8_length(std::string_view text);

}  // namespace autosp
