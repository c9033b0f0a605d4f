// Chooses the tile kernels at run time: one binary for every machine.
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include "kernel_sets.h"

namespace stm_fast {

namespace portable {
extern const FloatKernels float_kernels;
}
namespace emulated {
extern const FloatKernels float_kernels;
extern const PairKernels pair_kernels;
extern const QuantizedKernels<ByteQuad> byte_kernels;
}  // namespace emulated
namespace emulated_amx {
extern const AmxKernels amx_kernels;
extern const QuantizedKernels<ByteQuad> byte_kernels;
}  // namespace emulated_amx
namespace avx2 {
extern const FloatKernels float_kernels;
}
namespace avx_vnni {
extern const QuantizedKernels<ByteQuad> byte_kernels;
}
namespace avx512 {
extern const FloatKernels float_kernels;
}
namespace avx512_vnni {
extern const QuantizedKernels<ByteQuad> byte_kernels;
}
namespace avx512_bf16 {
extern const PairKernels pair_kernels;
}
namespace amx {
extern const AmxKernels amx_kernels;
extern const QuantizedKernels<ByteQuad> byte_kernels;
bool permitted();
}  // namespace amx

namespace {

struct InstructionSet {
  const char* name;
  bool (*here)();
  const FloatKernels* floats;
  const PairKernels* pairs = nullptr;
  const QuantizedKernels<ByteQuad>* bytes = nullptr;
  const AmxKernels* tiles = nullptr;
};

bool always() { return true; }

#if defined(__x86_64__)

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx_vnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
// every CPU with AVX512_BF16 has VNNI
bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
bool has_amx() {
  return has_avx512_bf16() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && amx::permitted();
}

#endif

// the best first; sets after "portable" are chosen by name only
const InstructionSet sets[] = {
#if defined(__x86_64__)
    {"amx", has_amx, &avx512::float_kernels, &avx512_bf16::pair_kernels, &amx::byte_kernels, &amx::amx_kernels},
    {"avx512_bf16", has_avx512_bf16, &avx512::float_kernels, &avx512_bf16::pair_kernels, &avx512_vnni::byte_kernels},
    {"avx512_vnni", has_avx512_vnni, &avx512::float_kernels, nullptr, &avx512_vnni::byte_kernels},
    {"avx512", has_avx512, &avx512::float_kernels},
    {"avx_vnni", has_avx_vnni, &avx2::float_kernels, nullptr, &avx_vnni::byte_kernels},
    {"avx2", has_avx2, &avx2::float_kernels},
#endif
    {"portable", always, &portable::float_kernels},
#if !defined(STM_FAST_RELEASE)
    {"emulated", always, &emulated::float_kernels, &emulated::pair_kernels, &emulated::byte_kernels},
    {"emulated_amx", always, &emulated::float_kernels, &emulated::pair_kernels, &emulated_amx::byte_kernels,
     &emulated_amx::amx_kernels},
#endif
};

const InstructionSet& choose() {
  const char* const wanted = std::getenv("STM_FAST_CPU");
  const auto fits = [wanted](const InstructionSet& set) {
    // asking for AMX changes the process: only if it may be used
    return (wanted == nullptr || std::string(wanted) == set.name) && set.here();
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

// A table of the chosen pair kernels, or null.
template <class Kernels>
const Kernels* of_pairs(Kernels PairKernels::* table) {
  const PairKernels* const pairs = chosen().pairs;
  return pairs == nullptr ? nullptr : &(pairs->*table);
}

}  // namespace

template <>
const TileKernels<float>& tile_kernels<float>() {
  return chosen().floats->floats;
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return chosen().floats->doubles;
}
const ForwardKernels<BFloat16Pair>* pair_kernels() {
  return chosen().tiles != nullptr ? &chosen().tiles->forward : of_pairs(&PairKernels::forward);
}
template <>
const QuantizedKernels<BFloat16Pair>* quantized_kernels<BFloat16Pair>() {
  return chosen().tiles != nullptr ? &chosen().tiles->quantized : of_pairs(&PairKernels::quantized);
}
template <>
const QuantizedKernels<ByteQuad>* quantized_kernels<ByteQuad>() {
  return chosen().bytes;
}
const BottleneckKernels& bottleneck_kernels() { return chosen().floats->bottlenecks; }
const PixelKernels<BFloat16Pair>* bottleneck_pair_kernels() { return of_pairs(&PairKernels::bottlenecks); }
const ConvolutionKernels<float, float>& convolution_kernels() { return chosen().floats->convolutions; }
const ConvolutionKernels<BFloat16Pair, BFloat16>* convolution_pair_kernels() {
  return of_pairs(&PairKernels::convolutions);
}
const AllWinogradKernels& winograd_kernels() { return chosen().floats->winograd; }
const WinogradKernels<BFloat16, BFloat16>* winograd_pair_kernels() { return of_pairs(&PairKernels::winograd); }
bool convolves_bfloat16() { return chosen().pairs != nullptr && chosen().tiles == nullptr; }
const char* instructions() { return chosen().name; }

}  // namespace stm_fast
