// Chooses the tile kernels at run time: one binary for every machine.
#include "stm_fast/tile_kernels.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include "stm_fast/bottleneck_kernels.h"

namespace stm_fast {

#define STM_FAST_DECLARE(isa)                        \
  namespace isa {                                    \
  extern const TileKernels<float> float_kernels;     \
  extern const TileKernels<double> double_kernels;   \
  extern const BottleneckKernels bottleneck_kernels; \
  }
STM_FAST_DECLARE(portable)
STM_FAST_DECLARE(emulated)
STM_FAST_DECLARE(avx2)
STM_FAST_DECLARE(avx512)
#undef STM_FAST_DECLARE
namespace emulated {
extern const ForwardKernels<BFloat16Pair> pair_kernels;
extern const QuantizedKernels<BFloat16Pair> quantized_pair_kernels;
extern const QuantizedKernels<ByteQuad> byte_kernels;
extern const PixelKernels<BFloat16Pair> bottleneck_pair_kernels;
}  // namespace emulated
namespace avx512_bf16 {
extern const ForwardKernels<BFloat16Pair> pair_kernels;
extern const QuantizedKernels<BFloat16Pair> quantized_pair_kernels;
extern const PixelKernels<BFloat16Pair> bottleneck_pair_kernels;
}  // namespace avx512_bf16
namespace avx512_vnni {
extern const QuantizedKernels<ByteQuad> byte_kernels;
}  // namespace avx512_vnni
namespace avx_vnni {
extern const QuantizedKernels<ByteQuad> byte_kernels;
}  // namespace avx_vnni

namespace {

struct InstructionSet {
  const char* name;
  bool (*here)();
  const TileKernels<float>* floats;
  const TileKernels<double>* doubles;
  const ForwardKernels<BFloat16Pair>* pairs;
  const BottleneckKernels* bottlenecks;
  const PixelKernels<BFloat16Pair>* bottleneck_pairs;
  const QuantizedKernels<BFloat16Pair>* quantized_pairs;
  const QuantizedKernels<ByteQuad>* bytes;
  bool (*bytes_are_here)() = [] { return true; };
};

bool always() { return true; }

#if defined(__x86_64__)

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx_vnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }

#endif

// the best first; sets after "portable" are chosen by name only
const InstructionSet sets[] = {
#if defined(__x86_64__)
    {"avx512_bf16", has_avx512_bf16, &avx512::float_kernels, &avx512::double_kernels, &avx512_bf16::pair_kernels,
     &avx512::bottleneck_kernels, &avx512_bf16::bottleneck_pair_kernels, &avx512_bf16::quantized_pair_kernels,
     &avx512_vnni::byte_kernels, has_avx512_vnni},
    {"avx512_vnni", has_avx512_vnni, &avx512::float_kernels, &avx512::double_kernels, nullptr,
     &avx512::bottleneck_kernels, nullptr, nullptr, &avx512_vnni::byte_kernels},
    {"avx512", has_avx512, &avx512::float_kernels, &avx512::double_kernels, nullptr, &avx512::bottleneck_kernels,
     nullptr, nullptr, nullptr},
    {"avx_vnni", has_avx_vnni, &avx2::float_kernels, &avx2::double_kernels, nullptr, &avx2::bottleneck_kernels, nullptr,
     nullptr, &avx_vnni::byte_kernels},
    {"avx2", has_avx2, &avx2::float_kernels, &avx2::double_kernels, nullptr, &avx2::bottleneck_kernels, nullptr,
     nullptr, nullptr},
#endif
    {"portable", always, &portable::float_kernels, &portable::double_kernels, nullptr, &portable::bottleneck_kernels,
     nullptr, nullptr, nullptr},
    {"emulated", always, &emulated::float_kernels, &emulated::double_kernels, &emulated::pair_kernels,
     &emulated::bottleneck_kernels, &emulated::bottleneck_pair_kernels, &emulated::quantized_pair_kernels,
     &emulated::byte_kernels},
};

const InstructionSet& choose() {
  const char* const wanted = std::getenv("STM_FAST_CPU");
  const auto fits = [wanted](const InstructionSet& set) {
    return set.here() && (wanted == nullptr || std::string(wanted) == set.name);
  };
  const auto* const found = std::find_if(std::begin(sets), std::end(sets), fits);
  if (found != std::end(sets)) {
    return *found;
  }
  std::string names;
  for (const InstructionSet& set : sets) {
    names += set.here() ? std::string(names.empty() ? "" : ", ") + set.name : "";
  }
  throw std::runtime_error("STM_FAST_CPU: found '" + std::string(wanted) + "', expected one of " + names);
}

const InstructionSet& chosen() {
  static const InstructionSet& set = choose();
  return set;
}

}  // namespace

template <>
const TileKernels<float>& tile_kernels<float>() {
  return *chosen().floats;
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return *chosen().doubles;
}
const ForwardKernels<BFloat16Pair>* pair_kernels() { return chosen().pairs; }
template <>
const QuantizedKernels<BFloat16Pair>* quantized_kernels<BFloat16Pair>() {
  return chosen().quantized_pairs;
}
template <>
const QuantizedKernels<ByteQuad>* quantized_kernels<ByteQuad>() {
  return chosen().bytes_are_here() ? chosen().bytes : nullptr;
}
const BottleneckKernels& bottleneck_kernels() { return *chosen().bottlenecks; }
const PixelKernels<BFloat16Pair>* bottleneck_pair_kernels() { return chosen().bottleneck_pairs; }
const char* instructions() { return chosen().name; }

}  // namespace stm_fast
