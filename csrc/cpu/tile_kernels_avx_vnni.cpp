// The kernels of an int8 memory for AVX_VNNI: the tiles of AVX2 with vpdpbusd, four products of bytes per lane.
#if defined(__x86_64__)

#include <immintrin.h>

#define STM_FAST_ISA avx_vnni
#define STM_FAST_TARGET __attribute__((target("avx2,fma,avxvnni")))
#define STM_FAST_VECTOR_BYTES 32
#define STM_FAST_GROUP_ROWS 4
#define STM_FAST_VECTORS 3
#define STM_FAST_MULTIPLY_ADD_QUADS(sum, left, right) \
  (Vector<std::int32_t>)_mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(right), (__m256i)(left))

#include "tile_kernels_source.h"
// which needs the macros of the first
#include "quantized_kernels_source.h"

namespace stm_fast::avx_vnni {

extern const QuantizedKernels<ByteQuad> byte_kernels = quantized_table<ByteQuad>;

}  // namespace stm_fast::avx_vnni

#endif
