// JSON as the commands print it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace autosp::cli {

// Names in models and paths need not be UTF-8: what is not arrives as replacement characters.
inline std::string json_text(const nlohmann::ordered_json& json, int indent = 2) {
  return json.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace autosp::cli
