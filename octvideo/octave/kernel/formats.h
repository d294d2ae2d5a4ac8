// Number formats of maps and weights, side by side: float32, bfloat16, and int8 (maps u8, weights s8).
//
// The micro-kernels read weights, and elements of a map, in words of four bytes: one float32, two bfloat16 or four int8
// elements, which lie side by side in a map's pixel. A row of packed weights has a word for each of kLanes outputs.
// Products of a word with a row are summed in float32, or in int32 for int8.

#pragma once

#include <cstring>

#include "vectors.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define OCTVIDEO_HAS_BFLOAT16 1
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define OCTVIDEO_HAS_INT8 1
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(OCTVIDEO_HAS_BFLOAT16)
#define OCTVIDEO_HAS_AMX 1
#endif

namespace {

enum FormatIndex : int64_t { kFloat32, kBFloat16, kInt8 };  // Layer::format

constexpr int64_t kWord = 4, kLine = 64;  // bytes

// How an int8 element stands for a real number: (element - zero) * scale.
struct Quantum {
  float scale = 1.0f, inverse = 1.0f;
  float zero = 0.0f;
};

inline Quantum quantum_of(float scale, int64_t zero) { return {scale, 1.0f / scale, static_cast<float>(zero)}; }

struct Float32 {
  using Element = float;
  using Sum = Vector;
  static constexpr FormatIndex kIndex = kFloat32;
  static constexpr int kPerWord = 1;
  static constexpr bool kStartsAtBias = true;  // sums start at the bias; else it is added to them at the end

  [[gnu::always_inline]] static Sum add_products(Sum sum, Vector row, const void* word) {
    return sum + row * *static_cast<const float*>(word);
  }
  [[gnu::always_inline]] static Vector load_raw(const Element* from, int lanes) { return load(from, lanes); }
  [[gnu::always_inline]] static void store_raw(Element* to, Vector value, int lanes) { store(to, value, lanes); }
  [[gnu::always_inline]] static Vector real(Sum sum, const float*, int) { return sum; }
};

#if defined(OCTVIDEO_HAS_BFLOAT16)
struct BFloat16 {
  using Element = uint16_t;
  using Sum = Vector;
  static constexpr FormatIndex kIndex = kBFloat16;
  static constexpr int kPerWord = 2;
  static constexpr bool kStartsAtBias = false;

  [[gnu::always_inline]] static Sum add_products(Sum sum, Vector row, const void* word) {
    int32_t pair;
    std::memcpy(&pair, word, sizeof pair);
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)row, (__m512bh)_mm512_set1_epi32(pair));
  }
  [[gnu::always_inline]] static Vector load_raw(const Element* from, int lanes) {
    const __m256i bits = lanes == kLanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                                         : _mm256_maskz_loadu_epi16((1u << lanes) - 1, from);
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
  }
  [[gnu::always_inline]] static void store_raw(Element* to, Vector value, int lanes) {
    const __m256i bits = (__m256i)_mm512_cvtneps_pbh((__m512)value);
    if (lanes == kLanes)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
    else
      _mm256_mask_storeu_epi16(to, (1u << lanes) - 1, bits);
  }
  [[gnu::always_inline]] static Vector real(Sum sum, const float*, int) { return sum; }
};
#endif

#if defined(OCTVIDEO_HAS_INT8)
struct Int8 {
  using Element = uint8_t;
  using Sum = int32_t __attribute__((vector_size(sizeof(Vector)), aligned(4), may_alias));
  static constexpr FormatIndex kIndex = kInt8;
  static constexpr int kPerWord = 4;
  static constexpr bool kStartsAtBias = false;

  [[gnu::always_inline]] static Sum add_products(Sum sum, Vector row, const void* word) {
    int32_t four;
    std::memcpy(&four, word, sizeof four);
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), (__m512i)row);
  }
  // Elements, and the nearest ones to values: ties to even, what is below or above all elements to the first or last one.
  [[gnu::always_inline]] static Vector load_raw(const Element* from, int lanes) {
    const __m128i bytes = lanes == kLanes ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))
                                          : _mm_maskz_loadu_epi8((1u << lanes) - 1, from);
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
  }
  [[gnu::always_inline]] static void store_raw(Element* to, Vector value, int lanes) {
    const __m512 most = _mm512_min_ps((__m512)value, _mm512_set1_ps(255.0f));  // int32 would not hold all values
    const __m512i whole = _mm512_max_epi32(_mm512_cvtps_epi32(most), _mm512_setzero_si512());
    const __m128i bytes = _mm512_cvtusepi32_epi8(whole);
    if (lanes == kLanes)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
    else
      _mm_mask_storeu_epi8(to, (1u << lanes) - 1, bytes);
  }
  [[gnu::always_inline]] static Vector real(Sum sum, const float* scale, int lanes) {
    return (Vector)_mm512_cvtepi32_ps((__m512i)sum) * load(scale, lanes);
  }
};
#endif

template <class Format>
constexpr bool kIsInt8 = Format::kIndex == kInt8;

template <class Format>
constexpr int64_t kElement = sizeof(typename Format::Element);

// Real values of elements, and the elements for real values.
template <class Format>
[[gnu::always_inline]] inline Vector load_real(const typename Format::Element* from, int lanes, const Quantum& quantum) {
  const Vector raw = Format::load_raw(from, lanes);
  return kIsInt8<Format> ? (raw - quantum.zero) * quantum.scale : raw;
}

template <class Format>
[[gnu::always_inline]] inline void store_real(typename Format::Element* to, Vector value, int lanes, const Quantum& quantum) {
  Format::store_raw(to, kIsInt8<Format> ? value * quantum.inverse + quantum.zero : value, lanes);
}

}  // namespace
