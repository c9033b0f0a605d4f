// The forward kernels for AVX512_BF16: the tiles of AVX-512 with vdpbf16ps, two products of bfloat16 numbers per lane.
#if defined(__x86_64__)

#include <immintrin.h>

#define STM_FAST_ISA avx512_bf16
#define STM_FAST_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")))
#define STM_FAST_VECTOR_BYTES 64
#define STM_FAST_GROUP_ROWS 8
#define STM_FAST_VECTORS 3
#define STM_FAST_MULTIPLY_ADD_PAIRS(sum, left, right) \
  (Vector<float>)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(left), (__m512bh)(right))
// GCC warns that the forms without a mask read uninitialized values
#define STM_FAST_LARGER(left, right) (Vector<float>)_mm512_maskz_max_ps(0xffff, (__m512)(left), (__m512)(right))
#define STM_FAST_SMALLER(left, right) (Vector<float>)_mm512_maskz_min_ps(0xffff, (__m512)(left), (__m512)(right))
#define STM_FAST_NARROW(x) (Halves) _mm512_maskz_cvtneps_pbh(0xffff, (__m512)(x))

#include "kernel_sets.h"
#include "tile_kernels_source.h"
// which need the macros of the first
#include "bottleneck_kernels_source.h"
#include "convolution_kernels_source.h"
#include "quantized_kernels_source.h"
#include "winograd_kernels_source.h"

namespace stm_fast::avx512_bf16 {

extern const PairKernels pair_kernels = {
    forward_table<BFloat16Pair>,
    quantized_table<BFloat16Pair>,
    pixel_table<BFloat16Pair>,
    convolution_table<BFloat16Pair, BFloat16>,
    winograd_table<small_tile, BFloat16, BFloat16>,
};

}  // namespace stm_fast::avx512_bf16

#endif
