// The choice of the tile kernels at run time: one binary for every machine.
#include "stm_fast/tile_kernels.h"

namespace stm_fast {

#define STM_FAST_DECLARE(isa)                      \
  namespace isa {                                  \
  extern const TileKernels<float> float_kernels;   \
  extern const TileKernels<double> double_kernels; \
  }
STM_FAST_DECLARE(portable)
STM_FAST_DECLARE(avx2)
STM_FAST_DECLARE(avx512)
#undef STM_FAST_DECLARE

#if defined(__x86_64__)

namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

template <>
const TileKernels<float>& tile_kernels<float>() {
  return has_avx512() ? avx512::float_kernels : has_avx2() ? avx2::float_kernels : portable::float_kernels;
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return has_avx512() ? avx512::double_kernels : has_avx2() ? avx2::double_kernels : portable::double_kernels;
}

#else

template <>
const TileKernels<float>& tile_kernels<float>() {
  return portable::float_kernels;
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return portable::double_kernels;
}

#endif

}  // namespace stm_fast
