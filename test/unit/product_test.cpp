// Products with more rows than CBLAS can count, by a lower limit.
#include "executor/kernels/product.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"

namespace autosp::executor {
namespace {

TEST(Product, TakesManyRowsInPanels) {
  const std::vector<float> a = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};  // 7 x 2
  const std::vector<float> b = {1, 10, 100, 2, 20, 200};                         // 2 x 3
  std::vector<float> whole(21, 0.5F);
  Product product{.m = 7, .n = 3, .k = 2, .beta = 2};
  product(a.data(), b.data(), whole.data());
  EXPECT_EQ(whole[0], 6);
  EXPECT_EQ(whole[20], 4101);
  for (int64_t most : {3, 4, 6, 7}) {
    std::vector<float> c(21, 0.5F);
    product.most = most;
    product(a.data(), b.data(), c.data());
    EXPECT_EQ(c, whole) << most;
  }
}

TEST(Product, RefusesSizesThatCannotBeCounted) {
  const std::vector<double> a(64);
  std::vector<double> c(64);
  const Product limited{.m = 4, .n = 4, .k = 4, .most = 4};
  for (int which = 0; which < 3; ++which) {
    Product product = limited;
    if (which == 0) product.n = 5;
    if (which == 1) product.k = 5;
    if (which == 2) product.m = 5, product.transpose_a = true;
    EXPECT_THROW(product(a.data(), a.data(), c.data()), Error) << which;
  }
  EXPECT_NO_THROW(limited(a.data(), a.data(), c.data()));
}

}  // namespace
}  // namespace autosp::executor
