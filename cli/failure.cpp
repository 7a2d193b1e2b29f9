#include <filesystem>
#include <new>

#include "base/error.h"
#include "command.h"
#include "interruption.h"

namespace autosp::cli {

namespace {

Failure bug(const char* what) {
  return {fmt::format("internal error: {}\nnote: this is a bug in autosp-onnx, not in your model",
                      what),
          kBug};
}

Failure to_failure(const Error& error) { return {error.what(), kUserError}; }

}  // namespace

Failure current_failure() {
  try {
    throw;
  } catch (const Error& error) {
    return to_failure(error);
  } catch (const Interruption& interruption) {
    return {"interrupted: nothing was written", interruption.exit_code()};
  } catch (const std::bad_alloc&) {
    return to_failure(Error("out of memory")
                          .note("the system refused a request for memory")
                          .help("use a machine with more memory, or shard over more ranks and "
                                "machines"));
  } catch (const std::filesystem::filesystem_error& error) {
    return to_failure(
        Error("'{}': {}", (error.path2().empty() ? error.path1() : error.path2()).string(),
              error.code().message())
            .note("the system refused it")
            .help("check that the path exists, that you may write there, and that the disk has "
                  "room"));
  } catch (const std::exception& error) {
    return bug(error.what());
  } catch (...) {
    return bug("an exception of unknown type");
  }
}

}  // namespace autosp::cli
