// What follows a convolution, element by element.

#pragma once

#include "vectors.h"

namespace {

enum Activation : int64_t { kNone, kRelu, kRelu6, kSilu, kHardSwish, kSigmoid, kHardSigmoid };  // Layer::activation

// NaN stays NaN: the processor's maximum, and minimum, give their second operand then.
[[gnu::always_inline]] inline Vector relu(Vector value) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps(_mm512_setzero_ps(), (__m512)value);
#elif defined(__AVX__)
  return (Vector)_mm256_max_ps(_mm256_setzero_ps(), (__m256)value);
#else
  return value < 0.0f ? Vector{} : value;
#endif
}

[[gnu::always_inline]] inline Vector at_most(float most, Vector value) {
#if defined(__AVX512F__)
  return (Vector)_mm512_min_ps(_mm512_set1_ps(most), (__m512)value);
#elif defined(__AVX__)
  return (Vector)_mm256_min_ps(_mm256_set1_ps(most), (__m256)value);
#else
  return value > most ? Vector{} + most : value;
#endif
}

[[gnu::always_inline]] inline Vector at_least(float least, Vector value) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps(_mm512_set1_ps(least), (__m512)value);
#elif defined(__AVX__)
  return (Vector)_mm256_max_ps(_mm256_set1_ps(least), (__m256)value);
#else
  return value < least ? Vector{} + least : value;
#endif
}

constexpr float kMostExponent = 87.0f;  // e to it, and to its negative, are normal numbers

// e^-x to some 2e-7 of it, for |x| <= kMostExponent: 2^n times a polynomial of the rest (Cephes' expf).
[[gnu::always_inline]] inline Vector exp_of_negative(Vector x) {
#if defined(__AVX512F__)
  const __m512 y = (__m512)(x * -1.44269504f), n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector r = (Vector)_mm512_fmsub_ps((__m512)x, _mm512_set1_ps(-1.44269504f), n);
  Vector p = r * 1.53533609e-4f + 1.33988744e-3f;  // 2^r for |r| <= 1/2, to 2e-8 (minimax)
  p = p * r + 9.61843003e-3f;
  p = p * r + 5.55033005e-2f;
  p = p * r + 2.40226487e-1f;
  p = p * r + 6.93147183e-1f;
  p = p * r + 1.0f;
  return (Vector)_mm512_scalef_ps((__m512)p, n);
#else
  using Bits = int32_t __attribute__((vector_size(sizeof(Vector))));
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers in the lowest bits
  x = -x;
  const Vector shifted = x * kLog2E + kRound, n = shifted - kRound;
  const Vector r = x - n * kLn2High - n * kLn2Low;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return (Vector)((Bits)p + ((Bits)shifted << 23));
#endif
}

// 1 / x, for x >= 1.
[[gnu::always_inline]] inline Vector inverse(Vector x) {
#if defined(__AVX512F__)
  const Vector first = (Vector)_mm512_rcp14_ps((__m512)x);  // twice as fast as a division
  return first * (2.0f - x * first);
#else
  return 1.0f / x;
#endif
}

// For x >= -kMostExponent.
[[gnu::always_inline]] inline Vector upper_sigmoid(Vector x) {
  return inverse(1.0f + exp_of_negative(at_most(kMostExponent, x)));
}
[[gnu::always_inline]] inline Vector sigmoid(Vector x) { return upper_sigmoid(at_least(-kMostExponent, x)); }
// What is below stays near 0: sigmoid there is not quite 0, and x may be large.
[[gnu::always_inline]] inline Vector silu(Vector x) {
  x = at_least(-kMostExponent, x);
  return x * upper_sigmoid(x);
}
[[gnu::always_inline]] inline Vector hard_sigmoid(Vector x) { return at_most(1.0f, relu(x * (1.0f / 6.0f) + 0.5f)); }

template <class Function>
[[gnu::always_inline]] inline void change(Vector* values, int64_t count, const Function& fn) {
  for (int64_t n = 0; n < count; ++n) values[n] = fn(values[n]);
}

// Not inlined: each kind of tile would have all of it.
[[gnu::noinline, maybe_unused]] void activate(Vector* values, int64_t count, int64_t activation) {
  switch (activation) {
    case kRelu: return change(values, count, [](Vector x) { return relu(x); });
    case kRelu6: return change(values, count, [](Vector x) { return at_most(6.0f, relu(x)); });
    case kSilu: return change(values, count, [](Vector x) { return silu(x); });
    case kHardSwish: return change(values, count, [](Vector x) { return x * hard_sigmoid(x); });
    case kSigmoid: return change(values, count, [](Vector x) { return sigmoid(x); });
    case kHardSigmoid: return change(values, count, [](Vector x) { return hard_sigmoid(x); });
    default: return;
  }
}

}  // namespace
