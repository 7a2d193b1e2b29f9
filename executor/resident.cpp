#include "executor/resident.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace autosp::executor {

int64_t resident_peak() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word == "VmHWM:") {
      int64_t kibibytes = 0;
      status >> kibibytes;
      return kibibytes * 1024;
    }
  }
  return 0;
}

int64_t OwnResidentPeak::bytes() {
  // Where the mark has not risen, what this process has itself has not either: foreign pages only
  // become more, but for those of a finished run.
  const int64_t mark = resident_peak();
  if (mark > mark_) own_ = std::max(own_, mark - foreign_);
  mark_ = mark;
  return own_;
}

void OwnResidentPeak::add_foreign(int64_t bytes) {
  (void)this->bytes();
  foreign_ += bytes;
}

}  // namespace autosp::executor
