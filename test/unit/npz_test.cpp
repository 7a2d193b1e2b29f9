#include "executor/npz.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <fstream>

#include "executor/trace.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Tensor;

class NpzTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("npz_" + std::to_string(::getpid()) +
               testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
};

Arrays one_of_each_type() {
  Arrays arrays;
  for (DataType dtype :
       {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16, DataType::kBFloat16,
        DataType::kInt64, DataType::kInt32, DataType::kInt16, DataType::kInt8, DataType::kUInt64,
        DataType::kUInt32, DataType::kUInt16, DataType::kUInt8, DataType::kBool}) {
    arrays[std::string(ir::name_of(dtype))] = Tensor::filled({dtype, {2, 3}}, 1);
  }
  arrays["scalar"] = Tensor::scalar(DataType::kFloat32, 2.5);
  arrays["empty"] = Tensor({DataType::kFloat32, {0, 4}});
  arrays["layer.0/weight.grad"] = Tensor::int64s({1, 2, 3});
  return arrays;
}

TEST_F(NpzTest, WhatIsWrittenIsReadBack) {
  for (bool deflate : {false, true}) {
    const Arrays arrays = one_of_each_type();
    write_npz(folder_ / "a.npz", arrays, deflate);
    const Arrays back = read_npz(folder_ / "a.npz");
    ASSERT_EQ(back.size(), arrays.size());
    for (const auto& [name, tensor] : arrays) {
      ASSERT_TRUE(back.contains(name)) << name;
      EXPECT_TRUE(back.at(name).identical(tensor)) << name;
    }
  }
}

TEST_F(NpzTest, TheSameArraysGiveTheSameBytes) {
  const auto bytes = [&](const char* name) {
    write_npz(folder_ / name, one_of_each_type());
    std::ifstream file(folder_ / name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  EXPECT_EQ(bytes("a.npz"), bytes("b.npz"));
}

TEST_F(NpzTest, NoArraysAreAValidFile) {
  write_npz(folder_ / "none.npz", {});
  EXPECT_TRUE(read_npz(folder_ / "none.npz").empty());
}

TEST_F(NpzTest, AFileThatIsNoArchiveIsAnError) {
  std::ofstream(folder_ / "a.npz") << "hello";
  EXPECT_THROW(read_npz(folder_ / "a.npz"), Error);
  EXPECT_THROW(read_npz(folder_ / "missing.npz"), Error);
}

// A version 1 array with this header dictionary, then `data`.
std::vector<std::byte> npy(const std::string& header, const std::string& data) {
  std::string text = "\x93NUMPY";
  text += std::string("\x01\x00", 2);
  text += static_cast<char>(header.size());
  text += '\0';
  text += header + data;
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

std::string error_of(const std::string& header, const std::string& data) {
  try {
    parse_npy(npy(header, data), "x.npz: array \"a\"");
    return "no error";
  } catch (const Error& error) {
    return error.what();
  }
}

std::string read_error(const std::filesystem::path& path) {
  try {
    read_npz(path);
    return "no error";
  } catch (const Error& error) {
    return error.what();
  }
}

// A checksum is known only at a member's end. (A deflated stream may end in bits of no meaning.)
TEST_F(NpzTest, AFlippedByteInAMemberIsAnError) {
  std::vector<float> values(64);
  for (size_t k = 0; k < values.size(); ++k) values[k] = 1.0F / static_cast<float>(k + 1);
  const Tensor tensor = Tensor::from_values<float>({64}, values);
  for (bool deflate : {false, true}) {
    const std::filesystem::path path = folder_ / (deflate ? "deflated.npz" : "stored.npz");
    write_npz(path, {{"weights", tensor}}, deflate);
    std::string bytes;
    {
      std::ifstream file(path, std::ios::binary);
      bytes.assign(std::istreambuf_iterator<char>(file), {});
    }
    const size_t directory = bytes.find("PK\x01\x02");
    ASSERT_NE(directory, std::string::npos);
    ASSERT_EQ(read_error(path), "no error");
    for (const size_t from_end : {size_t{4}, size_t{40}, size_t{150}}) {
      std::string damaged = bytes;
      damaged[directory - from_end] ^= 0x10;
      std::ofstream(path, std::ios::binary) << damaged;
      const std::string error = read_error(path);
      EXPECT_THAT(error, testing::HasSubstr("array \"weights\": truncated or damaged"))
          << (deflate ? "deflated, " : "stored, ") << from_end << " before the end";
      EXPECT_THAT(error, testing::HasSubstr("\nhelp: "));
    }
  }
}

TEST_F(NpzTest, AMemberThatClaimsMoreThanItCanHoldIsAnError) {
  const std::filesystem::path path = folder_ / "a.npz";
  write_npz(path, {{"a", Tensor::int64s({1, 2, 3})}}, true);
  std::string bytes;
  {
    std::ifstream file(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  const size_t directory = bytes.find("PK\x01\x02");
  ASSERT_NE(directory, std::string::npos);
  bytes.replace(directory + 24, 4, "\xf0\xff\xff\xff", 4);  // its uncompressed size
  std::ofstream(path, std::ios::binary) << bytes;
  EXPECT_THAT(read_error(path), testing::HasSubstr("it claims 4294967280 bytes"));
}

// Kernels select by bits that are 0 or 1.
TEST_F(NpzTest, EveryTrueByteIsReadAsOne) {
  const std::string header = "{'descr': '|b1', 'fortran_order': False, 'shape': (4,), }\n";
  const Tensor tensor = parse_npy(npy(header, std::string("\x00\x01\x02\xff", 4)), "a");
  EXPECT_EQ(std::vector<std::byte>(tensor.bytes().begin(), tensor.bytes().end()),
            (std::vector<std::byte>{std::byte{0}, std::byte{1}, std::byte{1}, std::byte{1}}));
}

// Names of nodes are bytes of the model.
TEST_F(NpzTest, TracesAreUtf8WhateverTheNames) {
  const std::string name =
      "a\xff"
      "b\xc3\xa9\xe2\x82\xac\xed\xa0\x80\xc3";
  write_trace(folder_ / "t.json", {{name, "Add", 0, 0, 1, 0}});
  std::ifstream file(folder_ / "t.json", std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_THAT(text,
              testing::HasSubstr("\"a\\ufffdb\xc3\xa9\xe2\x82\xac\\ufffd\\ufffd\\ufffd\\ufffd\""));
}

// A folder cannot be replaced by a file: both fail at their last step.
TEST_F(NpzTest, FailedWritesLeaveNothingBehind) {
  const std::filesystem::path taken = folder_ / "taken";
  std::filesystem::create_directories(taken / "inside");
  EXPECT_THROW(write_npz(taken, {}), Error);
  EXPECT_THROW(write_npz(taken, one_of_each_type()), Error);
  EXPECT_THROW(write_trace(taken, {}), Error);
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    EXPECT_EQ(entry.path(), taken);
  }
}

TEST(Npy, HeadersOfOtherWriters) {
  const Tensor tensor = parse_npy(
      npy("{'descr': '<i4', 'fortran_order': False, 'shape': (2,)}  \n", "12345678"), "a");
  EXPECT_EQ(tensor.dtype(), DataType::kInt32);
}

TEST(Npy, WhatCannotBeReadIsNamed) {
  using testing::HasSubstr;
  EXPECT_THAT(error_of("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", "1234"),
              HasSubstr(">f4"));
  EXPECT_THAT(error_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "1234"),
              HasSubstr("needs 8 bytes, the file has 4"));
  EXPECT_THAT(error_of("{'descr': '<f4', 'fortran_order': False, 'shape': "
                       "(9000000000000000000, 9000000000000000000)}",
                       "1234"),
              HasSubstr("needs"));
  EXPECT_THAT(error_of("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "1234"),
              HasSubstr("records"));
  EXPECT_THAT(error_of("nonsense", ""), HasSubstr("or damaged: descr"));
}

// As numpy saves what was transposed.
TEST(Npy, ArraysInFortranOrderAreRead) {
  const std::string header = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 2)}";
  std::string data(12, '\0');
  for (int64_t a = 0; a < 2; ++a) {
    for (int64_t b = 0; b < 3; ++b) {
      for (int64_t c = 0; c < 2; ++c) {
        data[static_cast<size_t>(a + 2 * b + 6 * c)] = static_cast<char>(100 * a + 10 * b + c);
      }
    }
  }
  const ir::Tensor tensor = parse_npy(npy(header, data), "a");
  EXPECT_EQ(tensor.shape(), (ir::Shape{2, 3, 2}));
  EXPECT_THAT(tensor.values<uint8_t>(),
              testing::ElementsAre(0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121));
  const std::string empty = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 0)}";
  EXPECT_EQ(parse_npy(npy(empty, ""), "a").shape(), (ir::Shape{2, 0}));
}

}  // namespace
}  // namespace autosp::executor
