#include "executor/npz.h"

#include <zip.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "executor/part_file.h"

namespace autosp::executor {

namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

struct DescriptionRow {
  std::string_view text;  // without the byte order
  ir::DataType dtype;
};
constexpr DescriptionRow kDescriptions[] = {
    {"f4", ir::DataType::kFloat32},  {"f8", ir::DataType::kFloat64}, {"f2", ir::DataType::kFloat16},
    {"V2", ir::DataType::kBFloat16}, {"i8", ir::DataType::kInt64},   {"i4", ir::DataType::kInt32},
    {"i2", ir::DataType::kInt16},    {"i1", ir::DataType::kInt8},    {"u8", ir::DataType::kUInt64},
    {"u4", ir::DataType::kUInt32},   {"u2", ir::DataType::kUInt16},  {"u1", ir::DataType::kUInt8},
    {"b1", ir::DataType::kBool},
};

// What follows `'key':` in the header's dictionary, or nothing.
std::optional<std::string_view> field(std::string_view header, std::string_view key) {
  const size_t at = header.find(fmt::format("'{}'", key));
  if (at == std::string_view::npos) return std::nullopt;
  size_t begin = header.find(':', at);
  if (begin == std::string_view::npos) return std::nullopt;
  begin = header.find_first_not_of(' ', begin + 1);
  return begin == std::string_view::npos ? std::nullopt : std::optional(header.substr(begin));
}

Error damaged_header(const std::string& what, std::string_view reason) {
  return Error("{}: not a NumPy array, or damaged: {}", what, reason)
      .note(
          "an array begins with \"\\x93NUMPY\", a version, and a dictionary of descr, "
          "fortran_order and shape")
      .help("write it again with numpy.save or numpy.savez");
}

ir::DataType parse_description(std::string_view text, const std::string& what) {
  const size_t end = text.size() < 2 ? std::string_view::npos : text.find(text[0], 1);
  if (end == std::string_view::npos || (text[0] != '\'' && text[0] != '"')) {
    throw Error("{}: an array of records", what)
        .note(fmt::format("its header says: 'descr': {}", text.substr(0, 60)))
        .help("save one plain array per name");
  }
  std::string_view name = text.substr(1, end - 1);
  const char order = name.empty() ? '?' : name[0];
  if (order == '<' || order == '|' || order == '=') name.remove_prefix(1);
  for (const DescriptionRow& row : kDescriptions) {
    if (row.text == name) return row.dtype;
  }
  throw Error("{}: element type \"{}\" is not supported", what, text.substr(1, end - 1))
      .note("a NumPy type string: byte order, kind, bytes per element")
      .help("save it as float32, float64, float16, bool, or a little-endian integer");
}

ir::Shape parse_shape(std::string_view text, const std::string& what) {
  ir::Shape shape;
  const size_t end = text.find(')');
  if (text.empty() || text[0] != '(' || end == std::string_view::npos) {
    throw damaged_header(what, "it has no shape");
  }
  text = text.substr(1, end - 1);
  while (true) {
    const size_t begin = text.find_first_of("0123456789");
    if (begin == std::string_view::npos) return shape;
    text.remove_prefix(begin);
    int64_t extent = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), extent);
    if (parsed.ec != std::errc()) throw damaged_header(what, "its shape is out of range");
    shape.push_back(extent);
    text.remove_prefix(static_cast<size_t>(parsed.ptr - text.data()));
  }
}

std::string header_text(const ir::Tensor& tensor) {
  std::string_view description;
  for (const DescriptionRow& row : kDescriptions) {
    if (row.dtype == tensor.dtype()) description = row.text;
  }
  if (description.empty()) {
    throw Error("{} cannot be written as npy", ir::name_of(tensor.dtype()))
        .note("NumPy has no such element type")
        .help("cast the output to a floating-point, integer or boolean type in the model");
  }
  const bool one_byte = ir::element_size(tensor.dtype()) == 1;
  std::string shape;
  for (int64_t extent : tensor.shape()) shape += fmt::format("{}, ", extent);
  return fmt::format("{{'descr': '{}{}', 'fortran_order': False, 'shape': ({}), }}",
                     one_byte ? "|" : "<", description, shape);
}

// Fills this memory with the next bytes of a file; there are as many.
using Read = std::function<void(std::byte* to, size_t bytes)>;

std::string read_text(const Read& read, size_t bytes) {
  std::string text(bytes, '\0');
  read(reinterpret_cast<std::byte*>(text.data()), bytes);
  return text;
}

// The dictionary of a file of `left` bytes, which are counted down as it is read.
std::string read_header(uint64_t& left, const Read& read, const std::string& what) {
  constexpr size_t kFixed = 8;  // magic number and version
  const auto take = [&](size_t bytes) {
    if (left < bytes) throw damaged_header(what, "it ends within its header");
    left -= bytes;
    return read_text(read, bytes);
  };
  const std::string fixed = left < kFixed ? "" : take(kFixed);
  if (!fixed.starts_with(kMagic)) throw damaged_header(what, "it does not begin as one");
  const std::string size = take(fixed[6] == 1 ? 2 : 4);
  uint32_t header_size = 0;
  std::memcpy(&header_size, size.data(), size.size());
  return take(header_size);
}

// The type that the dictionary says, and `bytes` of data fill.
ir::Type parse_type(std::string_view header, uint64_t bytes, const std::string& what) {
  const auto description = field(header, "descr");
  const auto order = field(header, "fortran_order");
  const auto shape = field(header, "shape");
  if (!description || !order || !shape) {
    throw damaged_header(what, "descr, fortran_order or shape is missing");
  }
  ir::Type type{parse_description(*description, what), parse_shape(*shape, what)};
  // Guard the product before anything is allocated.
  const double wanted = [&] {
    auto total = static_cast<double>(ir::element_size(type.dtype));
    for (int64_t extent : type.shape) total *= static_cast<double>(extent);
    return total;
  }();
  if (wanted != static_cast<double>(bytes)) {
    throw Error("{}: {} needs {:.0f} bytes, the file has {}", what, ir::to_string(type), wanted,
                bytes)
        .note("the array's header and its data disagree, so it is truncated or damaged")
        .help("write it again with numpy.save or numpy.savez");
  }
  return type;
}

// Of a tensor whose first index varies fastest, as numpy saves what was transposed.
ir::Tensor in_row_order(const ir::Tensor& columns) {
  const ir::Shape& shape = columns.shape();
  const size_t size = ir::element_size(columns.dtype());
  ir::Tensor result(columns.type());
  std::vector<int64_t> index(shape.size(), 0);
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = 1; d < shape.size(); ++d) strides[d] = strides[d - 1] * shape[d - 1];
  const std::byte* from = columns.bytes().data();
  std::byte* to = result.mutable_bytes();
  for (int64_t n = 0; n < ir::num_elements(shape); ++n, to += size) {
    const int64_t at = std::inner_product(index.begin(), index.end(), strides.begin(), int64_t{0});
    std::memcpy(to, from + static_cast<size_t>(at) * size, size);
    for (size_t d = shape.size(); d-- > 0 && ++index[d] == shape[d];) index[d] = 0;
  }
  return result;
}

// The array in a file of so many bytes, read straight into the tensor.
ir::Tensor read_npy(uint64_t bytes, const Read& read, const std::string& what) {
  const std::string header = read_header(bytes, read, what);
  ir::Tensor tensor(parse_type(header, bytes, what));
  read(tensor.mutable_bytes(), bytes);
  if (tensor.dtype() == ir::DataType::kBool) {  // kernels rely on 0 and 1
    for (size_t k = 0; k < bytes; ++k) {
      std::byte& value = tensor.mutable_bytes()[k];
      if (value != std::byte{0}) value = std::byte{1};
    }
  }
  const auto order = field(header, "fortran_order");
  const bool columns = order && order->starts_with("True");
  return columns && tensor.shape().size() > 1 ? in_row_order(tensor) : tensor;
}

}  // namespace

ir::Tensor parse_npy(std::span<const std::byte> bytes, const std::string& what) {
  const auto read = [left = bytes](std::byte* to, size_t count) mutable {
    std::ranges::copy(left.first(count), to);
    left = left.subspan(count);
  };
  return read_npy(bytes.size(), read, what);
}

std::string encode_npy(const ir::Tensor& tensor) {
  std::string header = header_text(tensor);
  // The data begins at a multiple of 64 bytes, and the header ends with a newline.
  const size_t total = (10 + header.size() + 1 + 63) / 64 * 64;
  header.append(total - 10 - header.size() - 1, ' ');
  header += '\n';
  std::string result(kMagic);
  result += std::string_view("\x01\x00", 2);
  const auto size = static_cast<uint16_t>(header.size());
  result.append(reinterpret_cast<const char*>(&size), 2);
  result += header;
  const auto bytes = tensor.bytes();
  result.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return result;
}

namespace {

struct ArchiveDiscard {
  void operator()(zip_t* archive) const { zip_discard(archive); }
};
using Archive = std::unique_ptr<zip_t, ArchiveDiscard>;

Archive open_archive(const std::filesystem::path& path, int flags) {
  int code = 0;
  Archive archive(zip_open(path.c_str(), flags, &code));
  if (!archive) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string reason = zip_error_strerror(&error);
    zip_error_fini(&error);
    throw Error("{}: {}", path.string(), reason)
        .note("it is read and written as a zip archive of arrays")
        .help("feeds and outputs are .npz files, as numpy.savez writes them");
  }
  return archive;
}

// Deflate shrinks by at most 1032, so an entry that claims more than this many times the file's
// size is damaged; memory is taken only for what can be true.
constexpr zip_uint64_t kMostExpansion = 1100;

ir::Tensor read_member(zip_t* archive, zip_uint64_t index, zip_uint64_t file_size,
                       const std::string& what) {
  const auto damaged = [&](const std::string& reason) {
    return Error("{}: truncated or damaged ({})", what, reason)
        .note("every array in an .npz file carries a checksum of its bytes")
        .help("copy or write the file again, as numpy.savez does");
  };
  zip_stat_t status;
  zip_stat_init(&status);
  if (zip_stat_index(archive, index, 0, &status) != 0 || (status.valid & ZIP_STAT_SIZE) == 0) {
    throw damaged(zip_strerror(archive));
  }
  if (status.size / kMostExpansion > file_size) {
    throw damaged(fmt::format("it claims {} bytes in a file of {}", status.size, file_size));
  }
  std::unique_ptr<zip_file_t, int (*)(zip_file_t*)> file(zip_fopen_index(archive, index, 0),
                                                         zip_fclose);
  if (!file) throw damaged(zip_strerror(archive));
  zip_uint64_t done = 0;
  const auto read = [&](std::byte* to, size_t bytes) {
    for (const zip_uint64_t end = done + bytes; done < end;) {
      const zip_int64_t count = zip_fread(file.get(), to, end - done);
      if (count < 0) throw damaged(zip_file_strerror(file.get()));
      if (count == 0) throw damaged(fmt::format("{} bytes of {}", done, status.size));
      done += static_cast<zip_uint64_t>(count);
      to += count;
    }
  };
  ir::Tensor tensor = read_npy(status.size, read, what);
  // libzip compares the checksum when it meets the entry's end, which takes one read more.
  std::byte beyond{};
  const zip_int64_t count = zip_fread(file.get(), &beyond, 1);
  if (count < 0) throw damaged(zip_file_strerror(file.get()));
  if (count > 0) throw damaged(fmt::format("it has more than its {} bytes", status.size));
  if (const int code = zip_fclose(file.release()); code != 0) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string reason = zip_error_strerror(&error);
    zip_error_fini(&error);
    throw damaged(reason);
  }
  return tensor;
}

}  // namespace

Arrays read_npz(const std::filesystem::path& path) {
  const Archive archive = open_archive(path, ZIP_RDONLY);
  std::error_code ignored;
  const auto file_size = static_cast<zip_uint64_t>(std::filesystem::file_size(path, ignored));
  Arrays arrays;
  const zip_int64_t count = zip_get_num_entries(archive.get(), 0);
  for (zip_uint64_t k = 0; k < static_cast<zip_uint64_t>(count); ++k) {
    const char* given = zip_get_name(archive.get(), k, 0);
    if (given == nullptr) {
      throw Error("{}: the name of entry {} cannot be read: {}", path.string(), k,
                  zip_strerror(archive.get()))
          .note("the archive's directory is damaged")
          .help("write the file again, as numpy.savez does");
    }
    std::string name = given;
    if (name.ends_with(".npy")) name.resize(name.size() - 4);
    const std::string what = fmt::format("{}: array \"{}\"", path.string(), name);
    arrays[name] = read_member(archive.get(), k, file_size, what);
  }
  return arrays;
}

void write_npz(const std::filesystem::path& path, const Arrays& arrays, bool deflate) {
  PartFile part(path);
  Archive archive = open_archive(part.path(), ZIP_CREATE | ZIP_TRUNCATE);
  std::vector<std::string> encoded;  // lives until the archive is closed
  encoded.reserve(arrays.size());
  for (const auto& [name, tensor] : arrays) {
    const std::string& bytes = encoded.emplace_back(encode_npy(tensor));
    zip_source_t* source = zip_source_buffer(archive.get(), bytes.data(), bytes.size(), 0);
    const zip_int64_t index =
        zip_file_add(archive.get(), (name + ".npy").c_str(), source, ZIP_FL_ENC_UTF_8);
    if (index < 0) {
      zip_source_free(source);
      part.refuse(zip_strerror(archive.get()));
    }
    const auto at = static_cast<zip_uint64_t>(index);
    zip_set_file_compression(archive.get(), at, deflate ? ZIP_CM_DEFLATE : ZIP_CM_STORE, 0);
    zip_file_set_dostime(archive.get(), at, 0, 0x21, 0);  // 1980-01-01
  }
  if (zip_close(archive.get()) != 0) part.refuse(zip_strerror(archive.get()));
  static_cast<void>(archive.release());  // closing has freed it
  // libzip writes no file for an archive without members: the smallest valid one is its end record.
  if (arrays.empty()) {
    std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(part.path().c_str(), "wb"), std::fclose);
    constexpr char kEnd[22] = {'P', 'K', 5, 6};
    if (!file || std::fwrite(kEnd, sizeof(kEnd), 1, file.get()) != 1) {
      part.refuse(std::strerror(errno));
    }
  }
  part.commit();
}

}  // namespace autosp::executor
