#include <cstdio>
#include <cstring>
#include <filesystem>
#include <new>
#include <system_error>

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

Error not_printed(int problem) {
  return Error("the report could not be printed: {}", std::strerror(problem))
      .note("standard output leads to a file or device that does not take it")
      .help("send it somewhere with room, or to a terminal");
}

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
  } catch (const std::system_error& error) {
    // As fmt::print has it when text is more than the buffer takes.
    if (std::ferror(stdout) != 0) return to_failure(not_printed(error.code().value()));
    return bug(error.what());
  } catch (const std::exception& error) {
    return bug(error.what());
  } catch (...) {
    return bug("an exception of unknown type");
  }
}

}  // namespace autosp::cli
