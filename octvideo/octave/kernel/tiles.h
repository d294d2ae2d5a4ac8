// The micro-kernel: tiles of some pixels by some vectors of output channels, whose sums stay in registers until the residual
// is added and the activation is done.

#pragma once

#include <utility>
#include <vector>

#include "activation.h"
#include "formats.h"

namespace {

// Pixels of a tile: few enough for the registers, which also hold a row of weights and one element of x. Seven pixels of
// four vectors would be one register too many.
constexpr int most_pixels(int vectors) {
  return kRegisters == 32 ? (vectors <= 2 ? 14 : vectors == 3 ? 8 : 6) : std::max(2, 12 / vectors);
}

// A run of elements that lie side by side under an output pixel, and meet as many words of weights.
struct Tap {
  const char* data;   // under pixel 0 of output row 0
  int64_t row, step;  // bytes to the next output row, and to the next output pixel
  int64_t count;      // whole words
  int64_t rest;       // bytes after them
  int64_t k;          // the first row of weights
  int64_t y;          // row of the map under output row 0; it may lie in the padding
};

// A row of tiles. Pointers are to the tiles' first channel of their first pixel.
template <class Format>
struct Tiles {
  const float* bias;       // may be null
  const float* scale;      // of int8 sums
  const char* residual;    // may be null
  const float* added;      // what is added to sums in place of the bias; may be null
  const int32_t* offsets;  // of each pixel in `added`
  char* out;
  int64_t out_step;        // bytes from pixel to pixel, of the residual too
  int last_lanes;          // channels in the last vector
  int64_t activation;
  bool out_is_float;       // `out` has float32 elements, whatever the format
  bool is_cached;          // `out` is in the cache
  const char* ahead;       // what is read next, to be prefetched; may be null
  int64_t ahead_step;      // so many bytes of it for each pixel
  int64_t next_out;        // bytes from `out` to where results go next; 0: unknown
  Quantum of_residual, of_out;
};

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

// Ends a tile: sums become the elements of results. Where sums start at the bias, they have it.
template <class Format, int Pixels, int Vectors>
[[gnu::always_inline]] inline void end_tile(typename Format::Sum (&sums)[Pixels][Vectors], const Tiles<Format>& tiles,
                                            const int32_t* offsets, const char* residual, char* out) {
  using Element = typename Format::Element;
  const int64_t out_step = tiles.out_step;
  const int lanes = tiles.last_lanes;
  Vector values[Pixels][Vectors];
  each<Pixels, Vectors>(lanes, [&](int p, int v, int used) {
    values[p][v] = Format::real(sums[p][v], tiles.scale + v * kLanes, used);
  });
  if (!Format::kStartsAtBias) {
    if (const float* added = tiles.added)
      each<Pixels, Vectors>(lanes, [&](int p, int v, int used) { values[p][v] += load(added + offsets[p] + v * kLanes, used); });
    else if (const float* bias = tiles.bias)
      each<Pixels, Vectors>(lanes, [&](int p, int v, int used) { values[p][v] += load(bias + v * kLanes, used); });
  }
  if (residual)
    each<Pixels, Vectors>(lanes, [&](int p, int v, int used) {
      const Element* from = reinterpret_cast<const Element*>(residual + p * out_step) + v * kLanes;
      values[p][v] += load_real<Format>(from, used, tiles.of_residual);
    });
  if (tiles.activation == kRelu)
    each<Pixels, Vectors>(kLanes, [&](int p, int v, int) { values[p][v] = relu(values[p][v]); });
  else if (tiles.activation)
    activate(&values[0][0], Pixels * Vectors, tiles.activation);
  if (kElement<Format> < 4 && tiles.out_is_float)
    each<Pixels, Vectors>(lanes, [&](int p, int v, int used) {
      store(reinterpret_cast<float*>(out + p * out_step) + v * kLanes, values[p][v], used);
    });
  else
    each<Pixels, Vectors>(lanes, [&](int p, int v, int used) {
      store_real<Format>(reinterpret_cast<Element*>(out + p * out_step) + v * kLanes, values[p][v], used, tiles.of_out);
    });
}

// The micro-kernel: `num_tiles` of them side by side, from pixel `x_first` of output row `y` on.
template <class Format, int Pixels, int Vectors>
void compute_tiles(const std::vector<Tap>& taps, int64_t y, int64_t x_first, const float* weight,
                   const Tiles<Format>& tiles, int64_t num_tiles) {
  const int64_t out_step = tiles.out_step, next_out = tiles.next_out;
  const int lanes = tiles.last_lanes;
  constexpr int kLines = (Vectors * kElement<Format> + 3) / 4;  // of a pixel's results
  const int64_t lines_out = tiles.is_cached ? 0 : Pixels * kLines;
  const int64_t lines_read = tiles.ahead ? Pixels * tiles.ahead_step / kLine : 0;
  int64_t steps = 0;
  for (const Tap& tap : taps) steps += tap.count;
  const int64_t most_lines = std::max(lines_out, lines_read);
  // Prefetches are spread over the sums, since a core waits for some 16 lines at a time. Between two of them are so many
  // pairs of steps; where there are more lines than pairs, two lines come at once. A test in each step whether to
  // prefetch would take longer than the prefetches.
  const bool is_dense = 2 * most_lines > steps;
  const int64_t between = most_lines ? std::max<int64_t>(steps / 2 / most_lines, 1) : 1;
  char* out = tiles.out;
  const char *residual = tiles.residual, *ahead = tiles.ahead;
  const int32_t* offsets = tiles.offsets;
  for (int64_t tile = 0; tile < num_tiles; ++tile, x_first += Pixels) {
    typename Format::Sum sums[Pixels][Vectors];
    const float *added = Format::kStartsAtBias ? tiles.added : nullptr, *bias = Format::kStartsAtBias ? tiles.bias : nullptr;
    if (added)
      each<Pixels, Vectors>(lanes, [&](int p, int v, int used) {
        sums[p][v] = (typename Format::Sum)load(added + offsets[p] + v * kLanes, used);
      });
    else if (bias)
      each<Pixels, Vectors>(lanes, [&](int p, int v, int used) { sums[p][v] = (typename Format::Sum)load(bias + v * kLanes, used); });
    else
      each<Pixels, Vectors>(kLanes, [&](int p, int v, int) { sums[p][v] = typename Format::Sum{}; });
    const char* line = out;
    int64_t lines = lines_out, lines_ahead = lines_read;
    int column = 0;
    const auto fetch = [&]() __attribute__((always_inline)) {
      if (lines > 0) {
        __builtin_prefetch(line, 1);
        if (next_out) __builtin_prefetch(line + next_out, 0, 2);
        if (++column == kLines) column = 0, line += out_step - kLines * kLine;
        line += kLine;
      }
      if (lines_ahead > 0) __builtin_prefetch(ahead, 0, 2), ahead += kLine;
      --lines, --lines_ahead;
    };
    for (const Tap& tap : taps) {
      const int64_t step = tap.step;
      // One pointer serves three pixels: x, x + step and x + 2 step are addresses of one instruction.
      constexpr int kPointers = (Pixels + 2) / 3;
      const char* x[kPointers];
#pragma GCC unroll 8
      for (int n = 0; n < kPointers; ++n) x[n] = tap.data + y * tap.row + (x_first + 3 * n) * step;
      const float* w = weight + tap.k * Vectors * kLanes;
      const auto row_of = [&](int c, Vector (&row)[Vectors]) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) row[v] = *reinterpret_cast<const Vector*>(w + (c * Vectors + v) * kLanes);
      };
      const auto multiply = [&](int c) __attribute__((always_inline)) {
        Vector row[Vectors];
        row_of(c, row);
#pragma GCC unroll 32
        for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 8
          for (int v = 0; v < Vectors; ++v)
            sums[p][v] = Format::add_products(sums[p][v], row[v], x[p / 3] + p % 3 * step + c * kWord);
      };
      const auto advance = [&](int c) __attribute__((always_inline)) {
        w += c * Vectors * kLanes;
#pragma GCC unroll 8
        for (int n = 0; n < kPointers; ++n) x[n] += c * kWord;
      };
      // Two steps at a time: of four, GCC keeps some sums in memory.
      int64_t left = tap.count;
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
      if (Format::kPerWord > 1 && tap.rest) {  // see KOrder
        if (left) advance(1);
        if (tap.count) {
#pragma GCC unroll 8
          for (int n = 0; n < kPointers; ++n) x[n] -= kWord - tap.rest;
          multiply(0);
        } else {
          Vector row[Vectors];
          row_of(0, row);
#pragma GCC unroll 32
          for (int p = 0; p < Pixels; ++p) {
            int32_t word = 0;
            std::memcpy(&word, x[p / 3] + p % 3 * step, tap.rest);
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[p][v] = Format::add_products(sums[p][v], row[v], &word);
          }
        }
      }
    }
    for (; lines_ahead > 0; --lines_ahead, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
    end_tile<Format, Pixels, Vectors>(sums, tiles, offsets, residual, out);
    out += Pixels * out_step;
    if (residual) residual += Pixels * out_step;
    if (tiles.added) offsets += Pixels;
  }
}

template <class Format>
using TileFunction = void (*)(const std::vector<Tap>&, int64_t, int64_t, const float*, const Tiles<Format>&, int64_t);

template <class Format, int Vectors, int... Less>
TileFunction<Format> choose(int pixels, std::integer_sequence<int, Less...>) {
  static constexpr TileFunction<Format> functions[] = {compute_tiles<Format, Less + 1, Vectors>...};
  return functions[pixels - 1];
}

template <class Format>
TileFunction<Format> tile_function(int pixels, int vectors) {
  if (vectors == 1) return choose<Format, 1>(pixels, std::make_integer_sequence<int, most_pixels(1)>{});
  if (vectors == 2) return choose<Format, 2>(pixels, std::make_integer_sequence<int, most_pixels(2)>{});
  if (vectors == 3) return choose<Format, 3>(pixels, std::make_integer_sequence<int, most_pixels(3)>{});
  return choose<Format, 4>(pixels, std::make_integer_sequence<int, most_pixels(4)>{});
}

}  // namespace
