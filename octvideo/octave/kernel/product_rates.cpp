// How many multiply-adds a second a core makes in each format, with all operands in registers and the nearest cache: the
// machine's peak, which tells whether a format is worth it here. (vdpbf16ps takes four times as long as a float32
// multiply-add on some processors.)

#include <chrono>

#include "amx.h"

namespace {

// Multiply-adds of one call of `run`, by the best of some rounds of 50 microseconds each.
template <class Function>
double best_rate(double multiply_adds, const Function& run) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int round = 0; round < 20; ++round) {
    const auto start = Clock::now();
    std::chrono::duration<double> passed{};
    int64_t calls = 0;
    do run(), ++calls, passed = Clock::now() - start;
    while (passed.count() < 50e-6);
    best = std::max(best, multiply_adds * static_cast<double>(calls) / passed.count());
  }
  return best;
}

template <class Format>
double vector_rate() {
  constexpr int kSums = kRegisters == 32 ? 24 : 10, kSteps = 256;  // enough to hide how long one takes
  alignas(64) const float word = 0;
  const auto run = [&] {
    typename Format::Sum sums[kSums] = {};
    Vector row{};
    asm volatile("" : "+m"(row));
    for (int n = 0; n < kSteps; ++n) {
#pragma GCC unroll 32
      for (int s = 0; s < kSums; ++s) sums[s] = Format::add_products(sums[s], row, &word);
    }
    typename Format::Sum total{};
    for (const auto& sum : sums) total += sum;
    asm volatile("" ::"m"(total));
  };
  return best_rate(double{kSums} * kSteps * kLanes * Format::kPerWord, run);
}

#if defined(OCTVIDEO_HAS_AMX)
template <class Format>
double tile_rate() {
  constexpr int kRows = 16, kSteps = 64;
  const TileConfig config(kRows, kRows, kMostWords);
  alignas(64) static const char zeros[kRows * kLine] = {};
  finish_memory_accesses();
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, kLine);
  _tile_loadd(5, zeros, kLine);
  _tile_loadd(6, zeros, kLine);
  _tile_loadd(7, zeros, kLine);
  const double rate = best_rate(4.0 * kSteps * kRows * kRows * kMostWords * Format::kPerWord, [] {
    for (int n = 0; n < kSteps; ++n) {
      add_tile_products<Format, 0, 4, 6>();
      add_tile_products<Format, 1, 4, 7>();
      add_tile_products<Format, 2, 5, 6>();
      add_tile_products<Format, 3, 5, 7>();
    }
  });
  _tile_release();
  return rate;
}
#endif

template <class Format>
double rate() {
#if defined(OCTVIDEO_HAS_AMX)
  if constexpr (!Format::kStartsAtBias)
    if (uses_tiles) return tile_rate<Format>();
#endif
  return vector_rate<Format>();
}

}  // namespace

// Multiply-adds a second; 0: the kernel does not have the format.
extern "C" double product_rate(int64_t format) {
#if defined(OCTVIDEO_HAS_BFLOAT16)
  if (format == kBFloat16) return rate<BFloat16>();
#endif
#if defined(OCTVIDEO_HAS_INT8)
  if (format == kInt8) return rate<Int8>();
#endif
  return format == kFloat32 ? rate<Float32>() : 0;
}
