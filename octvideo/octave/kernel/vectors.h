// What the files of the compiled library share: vectors of the machine's width, and threads.

#pragma once

#include <algorithm>
#include <cstdint>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif
using Vector = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

constexpr int64_t kCacheLine = 64 / sizeof(float);  // elements

#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int32_t kMasks[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
[[gnu::always_inline]] inline __m256i first(int lanes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + kLanes - lanes));
}
#endif

[[gnu::always_inline]] inline Vector load(const float* from, int lanes) {
  if (lanes == kLanes) return *reinterpret_cast<const Vector*>(from);
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_loadu_ps((1u << lanes) - 1, from);
#elif defined(__AVX__)
  return (Vector)_mm256_maskload_ps(from, first(lanes));
#else
  Vector part{};
  for (int lane = 0; lane < lanes; ++lane) part[lane] = from[lane];
  return part;
#endif
}

[[gnu::always_inline]] inline void store(float* to, Vector value, int lanes) {
  if (lanes == kLanes) {
    *reinterpret_cast<Vector*>(to) = value;
    return;
  }
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (1u << lanes) - 1, (__m512)value);
#elif defined(__AVX__)
  _mm256_maskstore_ps(to, first(lanes), (__m256)value);
#else
  for (int lane = 0; lane < lanes; ++lane) to[lane] = value[lane];
#endif
}

// fn(n) for n < count, on several threads, each in order. A thread takes `chunk` neighbours at a time; 0 lets a thread keep
// most neighbours together, and one whose core is busy with something else delays the others little.
template <class Function>
void parallel_for(int64_t threads, int64_t count, const Function& fn, int64_t chunk = 0) {
#if defined(_OPENMP)
  if (count > 1 && threads > 1) {
    if (!chunk) chunk = std::max<int64_t>(1, count / (4 * threads));
#pragma omp parallel for schedule(dynamic, chunk) num_threads(static_cast<int>(threads))
    for (int64_t n = 0; n < count; ++n) fn(n);
    return;
  }
#endif
  for (int64_t n = 0; n < count; ++n) fn(n);
}

}  // namespace
