// Chooses the tile kernels at run time: one binary for every machine.
#include "stm_fast/tile_kernels.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include "stm_fast/bottleneck_kernels.h"
#include "stm_fast/convolution_kernels.h"
#include "stm_fast/winograd_kernels.h"

namespace stm_fast {

#define STM_FAST_DECLARE(isa)                                        \
  namespace isa {                                                    \
  extern const TileKernels<float> float_kernels;                     \
  extern const TileKernels<double> double_kernels;                   \
  extern const BottleneckKernels bottleneck_kernels;                 \
  extern const AllWinogradKernels winograd_kernels;                  \
  extern const ConvolutionKernels<float, float> convolution_kernels; \
  }
STM_FAST_DECLARE(portable)
STM_FAST_DECLARE(emulated)
STM_FAST_DECLARE(avx2)
STM_FAST_DECLARE(avx512)
#undef STM_FAST_DECLARE
namespace emulated {
extern const ForwardKernels<BFloat16Pair> pair_kernels;
extern const PixelKernels<BFloat16Pair> bottleneck_pair_kernels;
extern const WinogradKernels<BFloat16, BFloat16> winograd_pair_kernels;
extern const ConvolutionKernels<BFloat16Pair, BFloat16> convolution_pair_kernels;
}  // namespace emulated
namespace avx512_bf16 {
extern const ForwardKernels<BFloat16Pair> pair_kernels;
extern const PixelKernels<BFloat16Pair> bottleneck_pair_kernels;
extern const WinogradKernels<BFloat16, BFloat16> winograd_pair_kernels;
extern const ConvolutionKernels<BFloat16Pair, BFloat16> convolution_pair_kernels;
}  // namespace avx512_bf16

namespace {

struct InstructionSet {
  const char* name;
  bool (*here)();
  const TileKernels<float>* floats;
  const TileKernels<double>* doubles;
  const ForwardKernels<BFloat16Pair>* pairs;
  const BottleneckKernels* bottlenecks;
  const PixelKernels<BFloat16Pair>* bottleneck_pairs;
  const AllWinogradKernels* winograd;
  const WinogradKernels<BFloat16, BFloat16>* winograd_pairs;
  const ConvolutionKernels<float, float>* convolutions;
  const ConvolutionKernels<BFloat16Pair, BFloat16>* convolution_pairs;
};

bool always() { return true; }

#if defined(__x86_64__)

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

#endif

// the best first; sets after "portable" are chosen by name only
const InstructionSet sets[] = {
#if defined(__x86_64__)
    {"avx512_bf16", has_avx512_bf16, &avx512::float_kernels, &avx512::double_kernels, &avx512_bf16::pair_kernels,
     &avx512::bottleneck_kernels, &avx512_bf16::bottleneck_pair_kernels, &avx512::winograd_kernels,
     &avx512_bf16::winograd_pair_kernels, &avx512::convolution_kernels, &avx512_bf16::convolution_pair_kernels},
    {"avx512", has_avx512, &avx512::float_kernels, &avx512::double_kernels, nullptr, &avx512::bottleneck_kernels,
     nullptr, &avx512::winograd_kernels, nullptr, &avx512::convolution_kernels, nullptr},
    {"avx2", has_avx2, &avx2::float_kernels, &avx2::double_kernels, nullptr, &avx2::bottleneck_kernels, nullptr,
     &avx2::winograd_kernels, nullptr, &avx2::convolution_kernels, nullptr},
#endif
    {"portable", always, &portable::float_kernels, &portable::double_kernels, nullptr, &portable::bottleneck_kernels,
     nullptr, &portable::winograd_kernels, nullptr, &portable::convolution_kernels, nullptr},
    {"emulated", always, &emulated::float_kernels, &emulated::double_kernels, &emulated::pair_kernels,
     &emulated::bottleneck_kernels, &emulated::bottleneck_pair_kernels, &emulated::winograd_kernels,
     &emulated::winograd_pair_kernels, &emulated::convolution_kernels, &emulated::convolution_pair_kernels},
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
const BottleneckKernels& bottleneck_kernels() { return *chosen().bottlenecks; }
const PixelKernels<BFloat16Pair>* bottleneck_pair_kernels() { return chosen().bottleneck_pairs; }
const AllWinogradKernels& winograd_kernels() { return *chosen().winograd; }
const WinogradKernels<BFloat16, BFloat16>* winograd_pair_kernels() { return chosen().winograd_pairs; }
const ConvolutionKernels<float, float>& convolution_kernels() { return *chosen().convolutions; }
const ConvolutionKernels<BFloat16Pair, BFloat16>* convolution_pair_kernels() { return chosen().convolution_pairs; }
const char* instructions() { return chosen().name; }

}  // namespace stm_fast
