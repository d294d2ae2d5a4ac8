// The micro-kernel: tiles of some pixels by some vectors of output channels, whose sums stay in registers until the residual
// is added and the ReLU is done.

#pragma once

#include <utility>
#include <vector>

#include "vectors.h"

namespace {

// Pixels of a tile: few enough for the registers, which also hold a row of weights and one element of x. Seven pixels of
// four vectors would be one register too many.
constexpr int most_pixels(int vectors) {
  return kRegisters == 32 ? (vectors <= 2 ? 14 : vectors == 3 ? 8 : 6) : std::max(2, 12 / vectors);
}

// Elements that lie side by side under an output pixel, and meet as many rows of weights.
struct Tap {
  const float* data;   // under pixel 0 of output row 0
  int64_t row, step;   // to the next output row, and to the next output pixel
  int64_t count;       // elements
  int64_t k;           // the first row of weights
  int64_t y;           // row of the map under output row 0; it may lie in the padding
};

// A row of tiles. Pointers are to the tiles' first channel of their first pixel.
struct Tiles {
  const float* bias;       // may be null
  const float* residual;   // may be null
  const float* added;      // where sums start instead of at the bias; may be null
  const int32_t* offsets;  // of each pixel in `added`
  float* out;
  int64_t out_step;        // from pixel to pixel, of the residual too
  int last_lanes;          // channels in the last vector
  bool relu;
  bool is_cached;          // `out` is in the cache
  const float* ahead;      // what is read next, to be prefetched; may be null
  int64_t ahead_step;      // so many elements of it for each pixel
  int64_t next_out;        // from `out` to where results go next; 0: unknown
};

// NaN stays NaN: the processor's maximum gives its second operand then.
[[gnu::always_inline]] inline Vector relu(Vector value) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps(_mm512_setzero_ps(), (__m512)value);
#elif defined(__AVX__)
  return (Vector)_mm256_max_ps(_mm256_setzero_ps(), (__m256)value);
#else
  return value < 0.0f ? Vector{} : value;
#endif
}

// fn(pixel, vector, lanes of that vector) for all of a tile, without a branch where all vectors are full.
template <int Pixels, int Vectors, class Function>
[[gnu::always_inline]] inline void each(int last_lanes, const Function& fn) {
  if (last_lanes == kLanes) {
#pragma GCC unroll 32
    for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) fn(p, v, kLanes);
    return;
  }
#pragma GCC unroll 32
  for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) fn(p, v, v == Vectors - 1 ? last_lanes : kLanes);
}

// The micro-kernel: `num_tiles` of them side by side, from pixel `x_first` of output row `y` on.
template <int Pixels, int Vectors>
void compute_tiles(const std::vector<Tap>& taps, int64_t y, int64_t x_first, const float* weight, const Tiles& tiles,
                   int64_t num_tiles) {
  const int64_t out_step = tiles.out_step, next_out = tiles.next_out;
  const int lanes = tiles.last_lanes;
  const int64_t lines_out = tiles.is_cached ? 0 : Pixels * Vectors;
  const int64_t lines_read = tiles.ahead ? Pixels * tiles.ahead_step / kCacheLine : 0;
  int64_t steps = 0;
  for (const Tap& tap : taps) steps += tap.count;
  const int64_t most_lines = std::max(lines_out, lines_read);
  // Prefetches are spread over the sums, since a core waits for some 16 lines at a time. Between two of them are so many
  // pairs of steps; where there are more lines than pairs, two lines come at once. A test in each step whether to
  // prefetch would take longer than the prefetches.
  const bool is_dense = 2 * most_lines > steps;
  const int64_t between = most_lines ? std::max<int64_t>(steps / 2 / most_lines, 1) : 1;
  float* out = tiles.out;
  const float *residual = tiles.residual, *ahead = tiles.ahead;
  const int32_t* offsets = tiles.offsets;
  for (int64_t tile = 0; tile < num_tiles; ++tile, x_first += Pixels) {
    Vector sums[Pixels][Vectors];
    if (const float* added = tiles.added)
      each<Pixels, Vectors>(lanes, [&](int p, int v, int used) { sums[p][v] = load(added + offsets[p] + v * kLanes, used); });
    else if (const float* bias = tiles.bias)
      each<Pixels, Vectors>(lanes, [&](int p, int v, int used) { sums[p][v] = load(bias + v * kLanes, used); });
    else
      each<Pixels, Vectors>(kLanes, [&](int p, int v, int) { sums[p][v] = Vector{}; });
    const float* line = out;
    int64_t lines = lines_out, lines_ahead = lines_read;
    int column = 0;
    const auto fetch = [&]() __attribute__((always_inline)) {
      if (lines > 0) {
        __builtin_prefetch(line, 1);
        if (next_out) __builtin_prefetch(line + next_out, 0, 2);
        if (++column == Vectors) column = 0, line += out_step - Vectors * kLanes;
        line += kLanes;
      }
      if (lines_ahead > 0) __builtin_prefetch(ahead, 0, 2), ahead += kCacheLine;
      --lines, --lines_ahead;
    };
    for (const Tap& tap : taps) {
      const int64_t step = tap.step, count = tap.count;
      // One pointer serves three pixels: x, x + step and x + 2 step are addresses of one instruction.
      constexpr int kPointers = (Pixels + 2) / 3;
      const float* x[kPointers];
#pragma GCC unroll 8
      for (int n = 0; n < kPointers; ++n) x[n] = tap.data + y * tap.row + (x_first + 3 * n) * step;
      const float* w = weight + tap.k * Vectors * kLanes;
      const auto multiply = [&](int c) __attribute__((always_inline)) {
        Vector row[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) row[v] = *reinterpret_cast<const Vector*>(w + (c * Vectors + v) * kLanes);
#pragma GCC unroll 32
        for (int p = 0; p < Pixels; ++p) {
          const float element = x[p / 3][p % 3 * step + c];
#pragma GCC unroll 8
          for (int v = 0; v < Vectors; ++v) sums[p][v] += row[v] * element;
        }
      };
      const auto advance = [&](int c) __attribute__((always_inline)) {
        w += c * Vectors * kLanes;
#pragma GCC unroll 8
        for (int n = 0; n < kPointers; ++n) x[n] += c;
      };
      // Two steps at a time: of four, GCC keeps some sums in memory.
      int64_t left = count;
      while (left >= 2) {
        int64_t pairs = left / 2;
        if (lines > 0 || lines_ahead > 0) {
          fetch();
          if (is_dense) fetch();
          pairs = std::min(pairs, between);
        }
        left -= 2 * pairs;
        do multiply(0), multiply(1), advance(2);
        while (--pairs);
      }
      if (left) multiply(0);
    }
    for (; lines_ahead > 0; --lines_ahead, ahead += kCacheLine) __builtin_prefetch(ahead, 0, 2);
    if (residual) {
      each<Pixels, Vectors>(lanes, [&](int p, int v, int used) { sums[p][v] += load(residual + p * out_step + v * kLanes, used); });
      residual += Pixels * out_step;
    }
    if (tiles.relu) each<Pixels, Vectors>(kLanes, [&](int p, int v, int) { sums[p][v] = relu(sums[p][v]); });
    each<Pixels, Vectors>(lanes, [&](int p, int v, int used) { store(out + p * out_step + v * kLanes, sums[p][v], used); });
    out += Pixels * out_step;
    if (tiles.added) offsets += Pixels;
  }
}

using TileFunction = void (*)(const std::vector<Tap>&, int64_t, int64_t, const float*, const Tiles&, int64_t);

template <int Vectors, int... Less>
TileFunction choose(int pixels, std::integer_sequence<int, Less...>) {
  static constexpr TileFunction functions[] = {compute_tiles<Less + 1, Vectors>...};
  return functions[pixels - 1];
}

TileFunction tile_function(int pixels, int vectors) {
  if (vectors == 1) return choose<1>(pixels, std::make_integer_sequence<int, most_pixels(1)>{});
  if (vectors == 2) return choose<2>(pixels, std::make_integer_sequence<int, most_pixels(2)>{});
  if (vectors == 3) return choose<3>(pixels, std::make_integer_sequence<int, most_pixels(3)>{});
  return choose<4>(pixels, std::make_integer_sequence<int, most_pixels(4)>{});
}

}  // namespace
