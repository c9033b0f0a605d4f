// The kernels of an int8 memory for AVX512_VNNI: the tiles of AVX-512 with vpdpbusd, four products of bytes per lane.
#if defined(__x86_64__)

#include <immintrin.h>

#define STM_FAST_ISA avx512_vnni
#define STM_FAST_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")))
#define STM_FAST_VECTOR_BYTES 64
#define STM_FAST_GROUP_ROWS 8
#define STM_FAST_VECTORS 3
#define STM_FAST_MULTIPLY_ADD_QUADS(sum, left, right) \
  (Vector<std::int32_t>)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(right), (__m512i)(left))

#include "tile_kernels_source.h"
// which needs the macros of the first
#include "quantized_kernels_source.h"

namespace stm_fast::avx512_vnni {

extern const QuantizedKernels<ByteQuad> byte_kernels = quantized_table<ByteQuad>;

}  // namespace stm_fast::avx512_vnni

#endif
