// Vectors of the width that the compiled variant has.

#pragma once

#include <algorithm>
#include <cstdint>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "threads.h"

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

// Elements of two vectors in turn, from an element on. Of Clang and GCC, each has one way that becomes one instruction.
[[gnu::always_inline]] inline Vector zip(Vector even, Vector odd, int first) {
#if defined(__clang__)
  Vector zipped;
#pragma unroll
  for (int n = 0; n < kLanes; ++n) zipped[n] = (n % 2 ? odd : even)[first + n / 2];
  return zipped;
#else
  int32_t __attribute__((vector_size(sizeof(Vector)))) lanes;
  for (int n = 0; n < kLanes; ++n) lanes[n] = first + n / 2 + n % 2 * kLanes;
  return __builtin_shuffle(even, odd, lanes);
#endif
}

// Vectors that hold a matrix's columns instead of its rows: in each round, halves of the vectors are zipped together.
[[gnu::always_inline]] inline void transpose(Vector (&rows)[kLanes]) {
  for (int round = 1; round < kLanes; round *= 2) {
    Vector zipped[kLanes];
#pragma GCC unroll 16
    for (int n = 0; n < kLanes / 2; ++n) {
      zipped[2 * n] = zip(rows[n], rows[n + kLanes / 2], 0);
      zipped[2 * n + 1] = zip(rows[n], rows[n + kLanes / 2], kLanes / 2);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kLanes; ++n) rows[n] = zipped[n];
  }
}

}  // namespace
