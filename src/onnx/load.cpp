#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <onnx/defs/parser.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>

#include "base/error.h"
#include "onnx/proto.h"

namespace autosp::onnx_io {

namespace {

namespace fs = std::filesystem;

int64_t to_int(const std::string& text, const std::string& what) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    throw Error("{} is '{}', not a number of bytes", what, text);
  }
  return value;
}

bool is_inside(const fs::path& file, const fs::path& folder) {
  const fs::path relative = file.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != "..";
}

[[noreturn]] void throw_unreadable(const fs::path& path) {
  throw Error("cannot read '{}': {}", path.string(), std::strerror(errno))
      .note("it is given as the model")
      .help("check that you may read it");
}

[[noreturn]] void throw_no_file(const fs::path& path) {
  std::error_code code;
  if (fs::is_directory(path, code)) {
    Error error("'{}' is a folder, not a file", path.string());
    if (fs::exists(path / "manifest.json", code)) {
      throw error.note("'shard' wrote it: it holds a model that is sharded already")
          .help("give the .onnx file that it was made from");
    }
    throw error.note("a model is one .onnx file, with its weights in it or beside it")
        .help("give the path of the .onnx file");
  }
  throw Error("there is no file '{}'", path.string())
      .help("give the path of an .onnx file that exists");
}

// PyTorch's archives and pickles, and safetensors.
bool is_checkpoint(const fs::path& path) {
  return path.extension() == ".pt" || path.extension() == ".pth" || path.extension() == ".bin" ||
         path.extension() == ".ckpt" || path.extension() == ".pt2" ||
         path.extension() == ".safetensors";
}

[[noreturn]] void throw_foreign(const fs::path& path) {
  Error error("'{}' is not an ONNX file", path.string());
  if (is_checkpoint(path)) {
    throw error.note("it looks like a file of weights, without the computation")
        .help(
            "make a training graph of the module with models/export_training_graph.py "
            "(models/README.md)");
  }
  throw error.help("give a model saved by an ONNX exporter");
}

std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw_unreadable(path);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// Every ModelProto written by any exporter starts with its first field, ir_version.
bool starts_like_a_model(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return stream.get() == 0x08;
}

}  // namespace

onnx::ModelProto load_model(const fs::path& path) {
  std::error_code code;
  if (!fs::is_regular_file(path, code)) {
    throw_no_file(path);
  }
  if (path.extension() == ".onnxtxt") return parse_model_text(read_file(path), path.string());
  const auto size = fs::file_size(path);
  if (size > static_cast<uintmax_t>(std::numeric_limits<int>::max())) {
    throw Error("'{}' holds {}, more than the 2 GiB that an ONNX file can", path.string(),
                format_bytes(static_cast<double>(size)))
        .help("save the model with its weights as external data");
  }
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw_unreadable(path);
  google::protobuf::io::IstreamInputStream input(&stream);
  google::protobuf::io::CodedInputStream coded(&input);
  coded.SetTotalBytesLimit(std::numeric_limits<int>::max());
  onnx::ModelProto model;
  const bool parsed = model.ParseFromCodedStream(&coded) && coded.ConsumedEntireMessage();
  if (!parsed && !is_checkpoint(path) && starts_like_a_model(path)) {
    throw Error("'{}' ends in the middle of the model: it is truncated or damaged ({} bytes)",
                path.string(), size)
        .help("copy or export the file again");
  }
  if (!parsed || model.ir_version() == 0) {
    throw_foreign(path);
  }
  if (!model.has_graph() || model.opset_import_size() == 0) {
    throw Error("'{}' holds no {}: it is truncated", path.string(),
                model.has_graph() ? "operator-set version" : "graph")
        .help("copy or export the file again");
  }
  return model;
}

onnx::ModelProto parse_model_text(const std::string& text, const std::string& where) {
  onnx::ModelProto model;
  onnx::OnnxParser parser(text);
  const auto status = parser.Parse(model);
  if (!status.IsOK()) throw Error("{} is not ONNX text: {}", where, status.ErrorMessage());
  if (!parser.EndOfInput()) throw Error("{} has text after the model's end", where);
  return model;
}

ir::ExternalData external_data(const onnx::TensorProto& proto, const ir::Type& type,
                               const fs::path& folder) {
  const std::string where = fmt::format("initializer '{}'", proto.name());
  ir::ExternalData data{.length = type.num_bytes()};
  bool has_length = false;
  for (const auto& entry : proto.external_data()) {
    if (entry.key() == "location") data.location = entry.value();
    if (entry.key() == "offset") data.offset = to_int(entry.value(), "the offset of " + where);
    if (entry.key() == "length") {
      has_length = true;
      data.length = to_int(entry.value(), "the length of " + where);
    }
  }
  if (data.location.empty()) throw Error("{} is external data without a location", where);
  if (has_length && data.length != type.num_bytes()) {
    throw Error("{} is {}, which takes {} bytes, but its external data has {}", where,
                ir::to_string(type), type.num_bytes(), data.length);
  }
  std::error_code code;
  const fs::path base = fs::weakly_canonical(folder.empty() ? "." : folder, code);
  const fs::path file = fs::weakly_canonical(base / data.location, code);
  const bool leads_out = fs::path(data.location).is_absolute() ||
                         !is_inside((base / data.location).lexically_normal(), base);
  if (!leads_out && !is_inside(file, base)) {
    throw Error("external data of {} is '{}', a symbolic link to '{}', outside the model's folder",
                where, data.location, file.string())
        .note(fmt::format("the model's folder is '{}'", base.string()))
        .help(
            "copy the model and its data to one folder, following links ('cp -rL'): ONNX asks for "
            "data files in the model's folder");
  }
  if (leads_out) {
    throw Error("external data of {} is '{}', outside the model's folder", where, data.location)
        .note(fmt::format("the model's folder is '{}'", base.string()))
        .help("keep the data file in the model's folder, as ONNX asks");
  }
  if (!fs::is_regular_file(file, code)) {
    throw Error("external data of {} is missing: there is no file '{}'", where, file.string())
        .help("put the data file beside the model");
  }
  const auto size = static_cast<int64_t>(fs::file_size(file, code));
  if (data.offset > size || data.length > size - data.offset) {
    throw Error("external data of {} is bytes {} to {} of '{}', which has {}", where, data.offset,
                data.offset + data.length, data.location, size)
        .help("the data file is truncated or belongs to another model: copy it again");
  }
  return data;
}

ir::Tensor read_external(const ir::ExternalData& data, const ir::Type& type,
                         const fs::path& folder) {
  ir::Tensor tensor(type);
  std::ifstream stream(folder / data.location, std::ios::binary);
  stream.seekg(data.offset);
  stream.read(reinterpret_cast<char*>(tensor.mutable_bytes()), type.num_bytes());
  if (!stream) {
    throw Error("cannot read {} bytes at {} of '{}'", type.num_bytes(), data.offset,
                (folder / data.location).string());
  }
  return tensor;
}

}  // namespace autosp::onnx_io
