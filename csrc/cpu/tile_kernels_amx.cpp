// The forward kernels for AMX: products of bfloat16 numbers and of bytes by tiles. On machines without it, tests run
// the same source with emulated tiles.
#if defined(__x86_64__)

#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define STM_FAST_ISA amx
#define STM_FAST_TARGET                                                                      \
  __attribute__((                                                                            \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16,amx-int8," \
             "prefer-vector-width=512")))
#define STM_FAST_VECTOR_BYTES 64
#define STM_FAST_GROUP_ROWS 16
#define STM_FAST_VECTORS 2
#define STM_FAST_MULTIPLY_ADD_PAIRS(sum, left, right) \
  (Vector<float>)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(left), (__m512bh)(right))
// GCC's forms of the instructions that read memory do not say so: what they read must have been written
#define STM_FAST_WRITTEN() __asm__ volatile("" ::: "memory")
#define STM_FAST_TILE_CONFIGURE(config) \
  do {                                  \
    STM_FAST_WRITTEN();                 \
    _tile_loadconfig(config);           \
  } while (false)
#define STM_FAST_TILE_RELEASE() _tile_release()
#define STM_FAST_TILE_ZERO(tile) _tile_zero(tile)
#define STM_FAST_TILE_LOAD(tile, from, stride) \
  do {                                         \
    STM_FAST_WRITTEN();                        \
    _tile_loadd(tile, from, stride);           \
  } while (false)
#define STM_FAST_TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define STM_FAST_TILE_DOT_PAIRS(sum, left, right) _tile_dpbf16ps(sum, left, right)
#define STM_FAST_TILE_DOT_QUADS(sum, left, right) _tile_dpbsud(sum, left, right)

#include "tile_kernels_source.h"
// which need the macros of the first
#include "quantized_kernels_source.h"
// which needs the second
#include "amx_kernels_source.h"

namespace stm_fast::amx {

// Whether the system lets this process use tiles: Linux saves their 8 KB for processes that have asked for it.
bool permitted() {
#if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace stm_fast::amx

#endif
