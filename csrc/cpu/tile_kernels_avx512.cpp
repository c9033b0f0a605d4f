// The tile kernels for AVX-512: an 8 x 3 tile of C fits the 32 registers with one row of B and one element of A.
#if defined(__x86_64__)

#include <immintrin.h>

#define STM_FAST_ISA avx512
#define STM_FAST_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#define STM_FAST_VECTOR_BYTES 64
#define STM_FAST_GROUP_ROWS 8
#define STM_FAST_VECTORS 3
// GCC warns that the forms without a mask read uninitialized values
#define STM_FAST_LARGER(left, right) (Vector<float>)_mm512_maskz_max_ps(0xffff, (__m512)(left), (__m512)(right))
#define STM_FAST_SMALLER(left, right) (Vector<float>)_mm512_maskz_min_ps(0xffff, (__m512)(left), (__m512)(right))

#include "kernel_sets.h"
#include "tile_kernels_source.h"
// which need the macros of the first
#include "bottleneck_kernels_source.h"
#include "convolution_kernels_source.h"
#include "winograd_kernels_source.h"

namespace stm_fast::avx512 {

extern const FloatKernels float_kernels = {
    table<float>, table<double>, bottleneck_table, convolution_table<float, float>, all_winograd_tables,
};

}  // namespace stm_fast::avx512

#endif
