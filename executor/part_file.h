// A file that appears complete or not at all.
#pragma once

#include <filesystem>
#include <string>

namespace autosp::executor {

// A name beside the final one, to write under. What is there is removed again unless it takes its
// place.
class PartFile {
 public:
  explicit PartFile(std::filesystem::path target);
  ~PartFile();
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  const std::filesystem::path& path() const { return part_; }

  // Throws Error when the system refuses.
  void commit();
  // Throws the Error that says so, with the system's reason.
  [[noreturn]] void refuse(const std::string& reason) const;

 private:
  std::filesystem::path target_;
  std::filesystem::path part_;
};

}  // namespace autosp::executor
