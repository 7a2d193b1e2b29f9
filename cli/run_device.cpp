#include "run_device.h"

#include "base/error.h"

namespace autosp::cli {

void add_run_device_options(CLI::App& command, RunDevice& arguments) {
  command
      .add_option("--device", arguments.name,
                  "What ranks run on; 'autosp-onnx devices' lists what is there")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command.add_flag("--tf32", arguments.options.tf32,
                   "With --device cuda: products of float32 round their operands to 10 bits");
  command.add_flag("--fuse", arguments.fuse,
                   "Runs elementwise operators that feed each other as one step, on a device as "
                   "one kernel");
}

std::shared_ptr<executor::Backend> open_device(const RunDevice& arguments) {
  if (arguments.options.tf32 && arguments.name == "cpu") {
    throw Error("--tf32 needs --device cuda")
        .note("it says how tensor cores multiply float32; the CPU multiplies it as it is")
        .help("leave it out, or give --device cuda");
  }
  return executor::open_backend(arguments.name, arguments.options);
}

std::vector<std::string> words_of(const RunDevice& arguments) {
  std::vector<std::string> words = {"--device", arguments.name};
  if (arguments.options.tf32) words.emplace_back("--tf32");
  if (arguments.fuse) words.emplace_back("--fuse");
  return words;
}

}  // namespace autosp::cli
