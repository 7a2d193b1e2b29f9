// Resident memory of this process.
#pragma once

#include <cstdint>

namespace autosp::executor {

// The high-water mark, VmHWM, in bytes. It never falls.
int64_t resident_peak();

// The same without pages of other processes, which the system counts in every process that maps
// them. Exact where it is asked for before such pages become more or fewer, and whenever this
// process may have most of its own afterwards: then nothing of its own hides below a mark that
// others' pages have set. What another thread takes and gives back meanwhile may be missed.
class OwnResidentPeak {
 public:
  int64_t bytes();
  // To be called before pages of others are mapped (bytes > 0) or after they have been unmapped.
  void add_foreign(int64_t bytes);

 private:
  int64_t mark_ = 0;  // VmHWM when it was last read
  int64_t own_ = 0;
  int64_t foreign_ = 0;
};

}  // namespace autosp::executor
