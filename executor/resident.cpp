#include "executor/resident.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace autosp::executor {

namespace {

struct Resident {
  int64_t now = 0;   // bytes
  int64_t peak = 0;  // bytes
};

Resident resident() {
  std::ifstream status("/proc/self/status");
  Resident result;
  std::string word;
  while (status >> word) {
    int64_t* field = word == "VmRSS:" ? &result.now : word == "VmHWM:" ? &result.peak : nullptr;
    if (field == nullptr) continue;
    status >> *field;
    *field *= 1024;
    if (result.now > 0 && result.peak > 0) break;
  }
  return result;
}

}  // namespace

int64_t resident_peak() { return resident().peak; }

int64_t OwnResidentPeak::bytes() {
  const auto [now, mark] = resident();
  own_ = std::max(own_, now - foreign_);
  // A mark that has risen since was set beside as many foreign pages as there are now.
  if (mark > mark_) own_ = std::max(own_, mark - foreign_);
  mark_ = mark;
  return own_;
}

void OwnResidentPeak::add_foreign(int64_t bytes) {
  (void)this->bytes();
  foreign_ += bytes;
}

}  // namespace autosp::executor
