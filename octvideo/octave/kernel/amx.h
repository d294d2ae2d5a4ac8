// The micro-kernel on AMX tiles: two by two of them hold the sums of up to 32 pixels by 32 outputs. A product of tiles takes
// 16 rows of 64 bytes of a map and 16 rows of packed words.
//
// A product takes at most as many cycles as a full tile has rows, 16; columns that are not filled cost as much as filled
// ones. So the fewest tiles are best, and among as many tiles those of fewer rows.

#pragma once

#include "layer.h"
#include "tiles.h"

namespace {

// Rows of a map, of whose `pitch` pixels the first `width` are results. They are read as one long row, over the padding at
// the sides; the padding after the last row is not.
struct LongRow {
  int64_t rows, width, pitch;
  int64_t length() const { return (rows - 1) * pitch + width; }
};

// What two tiles of pixels hold: `upper` pixels from `begin` on, and `lower` ones from `begin_lower` on.
struct PixelPair {
  int64_t begin, begin_lower;
  int upper, lower;
};

#if defined(OCTVIDEO_HAS_AMX)

constexpr int kTileRows = 16;

// The operand of LDTILECFG. Tiles 0 to 3 hold sums, 4 and 5 pixels, 6 and 7 weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig(int upper, int lower, int64_t words) {
    const int of_tile[] = {upper, upper, lower, lower, upper, lower, static_cast<int>(words), static_cast<int>(words)};
    for (int tile = 0; tile < 8; ++tile) {
      if (!of_tile[tile]) continue;
      rows[tile] = static_cast<uint8_t>(of_tile[tile]);
      column_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? words * kWord : kLine);
    }
  }
};

// The intrinsics do not tell the compiler which memory they read and write.
inline void finish_memory_accesses() { asm volatile("" ::: "memory"); }

template <class Format, int Sums, int Pixels, int Weights>
[[gnu::always_inline]] inline void add_tile_products() {
#define OCTVIDEO_PRODUCT(sums, pixels, weights)                            \
  if constexpr (Sums == sums && Pixels == pixels && Weights == weights) {  \
    if constexpr (kIsInt8<Format>)                                         \
      _tile_dpbusd(sums, pixels, weights);                                 \
    else                                                                   \
      _tile_dpbf16ps(sums, pixels, weights);                               \
  }
  OCTVIDEO_PRODUCT(0, 4, 6)
  OCTVIDEO_PRODUCT(1, 4, 7)
  OCTVIDEO_PRODUCT(2, 5, 6)
  OCTVIDEO_PRODUCT(3, 5, 7)
#undef OCTVIDEO_PRODUCT
}

// Lines to prefetch, some in each step of the sums, since a core waits for some 16 lines at a time.
struct Fetches {
  const char *out, *ahead;
  int64_t out_step, lines, column, out_left, ahead_left, per_step;

  template <class Format>
  Fetches(const Tiles<Format>& tiles, const char* out, const char* ahead, int64_t pixels, int vectors, int64_t steps)
      : out(out), ahead(ahead), out_step(tiles.out_step), column(0) {
    lines = (vectors * (tiles.out_is_float ? 4 : kElement<Format>) + 3) / 4;
    out_left = tiles.is_cached ? 0 : pixels * lines;
    ahead_left = ahead ? pixels * tiles.ahead_step / kLine : 0;
    per_step = (out_left + ahead_left + steps - 1) / std::max<int64_t>(steps, 1);
  }

  [[gnu::always_inline]] void step() {
    for (int64_t n = 0; n < per_step; ++n) {
      if (out_left > 0) {
        __builtin_prefetch(out + column * kLine, 1);
        if (++column == lines) column = 0, out += out_step;
        --out_left;
      } else if (ahead_left > 0) {
        __builtin_prefetch(ahead, 0, 2);
        ahead += kLine, --ahead_left;
      }
    }
  }
};

// Sums of the pixels, which are counted from pixel x of row y, to `sums`: rows of Vectors vectors, the upper tile's first.
template <class Format, bool HasLower, int Vectors>
void sum_tiles(const std::vector<Tap>& taps, int64_t y, int64_t x, const PixelPair& pair, const float* weight,
               int64_t piece, Fetches& fetches, float* sums) {
  const int upper = pair.upper;
  _tile_zero(0);
  if constexpr (Vectors > 1) _tile_zero(1);
  if constexpr (HasLower) _tile_zero(2);
  if constexpr (HasLower && Vectors > 1) _tile_zero(3);
  constexpr int64_t kRow = Vectors * kLine;
  for (const Tap& tap : taps) {
    const char* const start = tap.data + y * tap.row + x * tap.step;
    const char *const from = start + pair.begin * tap.step, *const from_lower = start + pair.begin_lower * tap.step;
    const float* w = weight + tap.k * Vectors * kLanes;
    const int64_t last = tap.count * kWord + tap.rest - piece * kWord;  // the last piece starts there: see KOrder
    for (int64_t next = 0;; next += piece * kWord, w += piece * Vectors * kLanes) {
      const int64_t at = std::min(next, last);
      _tile_loadd(4, from + at, tap.step);
      _tile_loadd(6, w, kRow);
      add_tile_products<Format, 0, 4, 6>();
      if constexpr (Vectors > 1) {
        _tile_loadd(7, w + kLanes, kRow);
        add_tile_products<Format, 1, 4, 7>();
      }
      if constexpr (HasLower) {
        _tile_loadd(5, from_lower + at, tap.step);
        add_tile_products<Format, 2, 5, 6>();
        if constexpr (Vectors > 1) add_tile_products<Format, 3, 5, 7>();
      }
      fetches.step();
      if (next >= last) break;
    }
  }
  _tile_stored(0, sums, kRow);
  if constexpr (Vectors > 1) _tile_stored(1, sums + kLanes, kRow);
  if constexpr (HasLower) _tile_stored(2, sums + upper * Vectors * kLanes, kRow);
  if constexpr (HasLower && Vectors > 1) _tile_stored(3, sums + upper * Vectors * kLanes + kLanes, kRow);
}

// Results of `pixels` neighbours, from their sums.
template <class Format, int Vectors>
void end_pixels(const float* sums, const Tiles<Format>& tiles, int64_t result, int64_t pixels) {
  char* out = tiles.out + result * tiles.out_step;
  const char* residual = tiles.residual ? tiles.residual + result * tiles.out_step : nullptr;
  const int32_t* offsets = tiles.added ? tiles.offsets + result : nullptr;
  const auto end = [&](auto count) __attribute__((always_inline)) {
    constexpr int kPixels = decltype(count)::value;
    typename Format::Sum own[kPixels][Vectors];
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v)
        own[p][v] = *reinterpret_cast<const typename Format::Sum*>(sums + (p * Vectors + v) * kLanes);
    end_tile<Format, kPixels, Vectors>(own, tiles, offsets, residual, out);
    sums += kPixels * Vectors * kLanes, out += kPixels * tiles.out_step;
    if (residual) residual += kPixels * tiles.out_step;
    if (offsets) offsets += kPixels;
  };
  for (; pixels >= 4; pixels -= 4) end(std::integral_constant<int, 4>{});
  for (; pixels > 0; --pixels) end(std::integral_constant<int, 1>{});
}

// A row of tiles, from pixel `x_first` of output row `y` on.
template <class Format, int Vectors>
void compute_amx_tiles(const std::vector<Tap>& taps, int64_t y, int64_t x_first, const LongRow& row, const float* weight,
                       int64_t piece, const Tiles<Format>& tiles) {
  alignas(64) float sums[2][2 * kTileRows * Vectors * kLanes];  // in turns: the next sums need not wait for results
  int64_t steps = 0;
  for (const Tap& tap : taps) steps += (tap.count * kWord + tap.rest + piece * kWord - 1) / (piece * kWord);
  // Two rows of the map where each fits a tile and half fills it, else as many pixels as two tiles hold.
  const bool by_rows = row.rows > 1 && row.width <= kTileRows && row.width > kTileRows / 2;
  const int64_t length = row.length(), groups = by_rows ? (row.rows + 1) / 2 : (length + 2 * kTileRows - 1) / (2 * kTileRows);
  int upper = 0, lower = 0;  // as tiles are configured
  for (int64_t group = 0; group < groups; ++group) {
    PixelPair pair;
    if (by_rows) {
      const bool is_pair = 2 * group + 1 < row.rows;
      const int width = static_cast<int>(row.width);
      pair = {2 * group * row.pitch, (2 * group + 1) * row.pitch, width, is_pair ? width : 0};
    } else {
      const int64_t begin = length * group / groups, pixels = length * (group + 1) / groups - begin;
      const int first = static_cast<int>((pixels + 1) / 2);
      pair = {begin, begin + first, first, static_cast<int>(pixels - first)};
    }
    if (pair.upper != upper || pair.lower != lower) {
      upper = pair.upper, lower = pair.lower;
      const TileConfig config(upper, lower, piece);
      finish_memory_accesses();
      _tile_loadconfig(&config);
    }
    const int64_t first = pair.begin / row.pitch * row.width + std::min(pair.begin % row.pitch, row.width);  // result
    Fetches fetches(tiles, tiles.out + first * tiles.out_step, tiles.ahead ? tiles.ahead + first * tiles.ahead_step : nullptr,
                    upper + lower, Vectors, steps);
    float* own = sums[group % 2];
    finish_memory_accesses();
    if (lower)
      sum_tiles<Format, true, Vectors>(taps, y, x_first, pair, weight, piece, fetches, own);
    else
      sum_tiles<Format, false, Vectors>(taps, y, x_first, pair, weight, piece, fetches, own);
    finish_memory_accesses();
    const auto end_tile_of = [&](int64_t begin, int64_t pixels) {
      for (int64_t n = begin, end = begin + pixels; n < end;) {
        const int64_t x = n % row.pitch, count = std::min(end - n, (x < row.width ? row.width : row.pitch) - x);
        if (x < row.width) end_pixels<Format, Vectors>(own, tiles, n / row.pitch * row.width + x, count);
        n += count, own += count * Vectors * kLanes;
      }
    };
    end_tile_of(pair.begin, upper);
    end_tile_of(pair.begin_lower, lower);
  }
  _tile_release();
}

#endif

}  // namespace
