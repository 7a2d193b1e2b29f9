// autosp-onnx devices: what ranks can run on here.
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "command.h"
#include "executor/device_module.h"
#include "executor/kernels/attention/blocks.h"
#include "executor/openblas.h"
#include "json_text.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
'run', 'validate' and 'train' take --device cpu (the default) or --device cuda. The code for
CUDA devices is a library of its own, libautosp_cuda.so, which is opened when it is asked for.

Examples:
  autosp-onnx devices
  autosp-onnx run out --feed inputs.npz --device cuda)";

struct CpuReport {
  int cores = 0;                     // that this process may use
  std::vector<std::string> kernels;  // instruction sets that this build has kernels for, and runs
};

CpuReport cpu_report() {
  CpuReport report{.cores = executor::default_blas_threads(1), .kernels = {}};
  for (const auto* functions :
       {executor::attention::avx2_functions(), executor::attention::avx512_functions(),
        executor::attention::amx_functions()}) {
    if (functions != nullptr) report.kernels.emplace_back(functions->name);
  }
  return report;
}

struct CudaReport {
  bool built = false;
  executor::DeviceSurvey survey;  // of what was built
  std::string reason;             // why no device can be used; empty where one can
};

CudaReport cuda_report() {
  CudaReport report;
  try {
    const executor::ModuleEntry* module = executor::cuda_module();
    if (module == nullptr) {
      report.reason = "this program was built without CUDA";
      return report;
    }
    report.built = true;
    report.survey = module->survey();
    report.reason = report.survey.reason;
  } catch (const Error& error) {
    report.reason = error.message();
  }
  return report;
}

Json to_json(const CpuReport& cpu, const CudaReport& cuda) {
  const executor::DeviceSurvey& survey = cuda.survey;
  Json libraries = Json::object();
  for (const auto& library : survey.libraries) {
    libraries[library.name] = library.version.empty() ? Json() : Json(library.version);
  }
  Json devices = Json::array();
  for (const executor::DeviceInfo& device : survey.devices) {
    devices.push_back({{"name", device.name},
                       {"architecture", device.architecture},
                       {"memory_bytes", device.memory},
                       {"multiprocessors", device.multiprocessors}});
  }
  return {{"cpu", {{"cores", cpu.cores}, {"instruction_sets", cpu.kernels}}},
          {"cuda",
           {{"built", cuda.built},
            {"toolkit", survey.toolkit.empty() ? Json() : Json(survey.toolkit)},
            {"architectures", survey.architectures},
            {"driver", survey.driver.empty() ? Json() : Json(survey.driver)},
            {"libraries", libraries},
            {"devices", devices},
            {"reason", cuda.reason.empty() ? Json() : Json(cuda.reason)}}}};
}

void print(const CpuReport& cpu, const CudaReport& cuda) {
  fmt::print("cpu    {} core{}, {}\n", cpu.cores, cpu.cores == 1 ? "" : "s",
             cpu.kernels.empty() ? "no vector instructions that there are kernels for"
                                 : fmt::format("{}", fmt::join(cpu.kernels, ", ")));
  const executor::DeviceSurvey& survey = cuda.survey;
  if (!cuda.built) {
    fmt::print("cuda   not available: {}\n", cuda.reason);
    return;
  }
  fmt::print("cuda   built with {} for {}\n", survey.toolkit,
             fmt::join(survey.architectures, ", "));
  for (const auto& library : survey.libraries) {
    fmt::print("       {:<9} {}\n", library.name,
               library.version.empty() ? "not found" : library.version);
  }
  fmt::print("       {:<9} {}\n", "driver",
             survey.driver.empty() ? "not found" : "runs CUDA up to " + survey.driver);
  for (size_t k = 0; k < survey.devices.size(); ++k) {
    const executor::DeviceInfo& device = survey.devices[k];
    fmt::print("       device {}: {}, {}, {}, {} multiprocessors\n", k, device.name,
               device.architecture, format_bytes(static_cast<double>(device.memory)),
               device.multiprocessors);
  }
  if (survey.devices.empty()) fmt::print("       no device: {}\n", cuda.reason);
}

int run(bool json) {
  const CpuReport cpu = cpu_report();
  const CudaReport cuda = cuda_report();
  if (json) {
    fmt::print("{}\n", json_text(to_json(cpu, cuda)));
  } else {
    print(cpu, cuda);
  }
  return 0;
}

}  // namespace

void add_devices(CLI::App& app, Action& action) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("devices", "Lists what ranks can run on here");
  command->footer(kFooter);
  command->add_flag("--json", *json, "Prints the list as JSON");
  command->callback([json, &action] { action = [json] { return run(*json); }; });
}

}  // namespace autosp::cli
