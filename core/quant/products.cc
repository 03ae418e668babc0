#include "quant/products.h"

// MKL's, in LibTorch, if that was built with MKL. Sets the number for this thread, and returns the
// one before; 0 stands for that of all threads.
extern "C" int MKL_Set_Num_Threads_Local(int count) __attribute__((weak));

namespace aqhost {
namespace {

/// c = beta c + alpha a b.
void multiply(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, double beta,
              double alpha) {
  for_product_tiles(c.size(0), c.size(1), c.size(2), [&](const ProductTile& t) {
    c[t.e]
        .narrow(0, t.row, t.rows)
        .narrow(1, t.column, t.columns)
        .addmm_(a[t.e].narrow(0, t.row, t.rows), b[t.e].narrow(1, t.column, t.columns), beta,
                alpha);
  });
}

}  // namespace

OneMklThread::OneMklThread()
    : before_(MKL_Set_Num_Threads_Local != nullptr ? MKL_Set_Num_Threads_Local(1) : 0) {}

OneMklThread::~OneMklThread() {
  if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(before_);
}

at::Tensor row_products(const at::Tensor& a, const at::Tensor& b) {
  if (!a.is_cpu()) return at::bmm(a, b);
  at::Tensor c = at::empty({a.size(0), a.size(1), b.size(2)}, a.options());
  multiply(c, a, b, 0, 1);
  return c;
}

void add_row_products(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, double alpha) {
  multiply(c, a, b, 1, alpha);
}

}  // namespace aqhost
