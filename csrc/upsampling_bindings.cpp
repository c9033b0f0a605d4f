// The operator of upsampling.h. The schema is in stm_fast/network/deploy/upsampling.py.
#include <torch/csrc/stable/library.h>

#include "stm_fast/upsampling.h"
#include "tensors.h"

namespace {

using stm_fast::Tensor;

void upsample_and_add(Tensor out, const Tensor& x, const Tensor& detail) {
  stm_fast::check_dense("x", x, 4, x.scalar_type());
  stm_fast::check_dense("detail", detail, 4, x.scalar_type());
  stm_fast::check_dense("out", out, 4, x.scalar_type());
  const stm_fast::Upsampling size{x.size(0), x.size(1), x.size(2), x.size(3), detail.size(0) == 1};
  const auto fits = [&](const Tensor& images, int64_t batch) {
    return images.size(0) == batch && images.size(1) == 2 * size.height && images.size(2) == 2 * size.width &&
           images.size(3) == size.channels;
  };
  STD_TORCH_CHECK(fits(out, size.batch), "out: expected twice the size of x");
  STD_TORCH_CHECK(fits(detail, size.shared ? 1 : size.batch), "detail: expected twice the size of x");
  stm_fast::for_dtype<float, stm_fast::BFloat16>("x", x, [&]<class Stored>(Stored) {
    if (out.numel() > 0) {
      stm_fast::upsample_and_add(size, static_cast<const Stored*>(x.const_data_ptr()),
                                 static_cast<const Stored*>(detail.const_data_ptr()), stm_fast::data_of<Stored>(out),
                                 stm_fast::parallel_for_products(static_cast<double>(out.numel())));
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) { m.impl("upsample_and_add", TORCH_BOX(&upsample_and_add)); }
