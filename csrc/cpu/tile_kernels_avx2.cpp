// The tile kernels for AVX2: a 4 x 3 tile of C fills the 16 registers with one row of B and one element of A.
#if defined(__x86_64__)

#include <immintrin.h>

#define STM_FAST_ISA avx2
#define STM_FAST_TARGET __attribute__((target("avx2,fma")))
#define STM_FAST_VECTOR_BYTES 32
#define STM_FAST_GROUP_ROWS 4
#define STM_FAST_VECTORS 3
#define STM_FAST_LARGER(left, right) (Vector<float>)_mm256_max_ps((__m256)(left), (__m256)(right))
#define STM_FAST_SMALLER(left, right) (Vector<float>)_mm256_min_ps((__m256)(left), (__m256)(right))

#include "kernel_sets.h"
#include "tile_kernels_source.h"
// which need the macros of the first
#include "bottleneck_kernels_source.h"
#include "convolution_kernels_source.h"
#include "winograd_kernels_source.h"

namespace stm_fast::avx2 {

extern const FloatKernels float_kernels = {
    table<float>, table<double>, bottleneck_table, convolution_table<float, float>, all_winograd_tables,
};

}  // namespace stm_fast::avx2

#endif
