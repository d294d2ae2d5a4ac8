// The gradient of the weight of a convolution at stride 1:
//
//   out[o][tap][i] = sum over pixels p of grad[p][o] * x[p + shift of the tap][i]
//
// For each tap it is a product of two matrices of pixels by channels. A tile of some output by some input channels stays in
// registers over a block of pixels. While a block is in the cache, it serves all tiles.
//
// Where the kernel is one pixel wide and high and the maps are float32, both matrices are read as they lie, and the next block
// is prefetched. Else blocks are packed into words of the format that is multiplied in (formats.h): two pixels of a channel
// make a word of bfloat16. What a tap reads outside of the map is packed as zeros.

#include "amx.h"
#include "memory.h"

extern "C" {

// One part of a weight's gradient. It has the fields of the ctypes.Structure of this name in training.py, in their order.
struct WeightGradient {
  int64_t format, word_format;             // FormatIndex: of maps, and of the words that are multiplied
  int64_t clips, outs, ins;
  int64_t out_size[kAxes], size[kAxes];    // of grad and of x; frames, height, width
  int64_t kernel[kAxes], padding[kAxes], dilation[kAxes];
  int64_t width;                           // input channels of the whole weight, which lie side by side

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t out_pixels() const { return out_size[0] * out_size[1] * out_size[2]; }
  int64_t pixels() const { return size[0] * size[1] * size[2]; }
  bool has_space() const { return kernel[1] * kernel[2] > 1 || padding[1] || padding[2]; }
};

}  // extern "C"

namespace {

// Input channels, in vectors, and output channels of a tile: its sums, a row of x and one element of grad fill the registers.
constexpr int kMostVectors = 3;
constexpr int most_outs(int vectors) {
  constexpr int many[] = {16, 12, 8}, few[] = {8, 6, 4};
  return (kRegisters == 32 ? many : few)[vectors - 1];
}
// Of packed blocks, where a vector of output channels lies together, and tiles divide it.
constexpr int most_packed_outs(int vectors) { return vectors == 1 ? kLanes : kRegisters == 32 ? kLanes / 2 : 4; }

constexpr int64_t kBlock = 128;               // pixels
constexpr int64_t kMostTileBlock = 512;       // of AMX: it takes long to begin and end sums in tiles
constexpr int64_t kTileBlockBytes = 1 << 19;  // of both packed matrices
constexpr int64_t kSliceBytes = 1 << 20;      // of sums, which stay in the cache from block to block

// What is read next: one cache line of it is prefetched for each pixel.
struct Ahead {
  const float *at, *end;
};

// Rows of words, and the sums that their products are added to.
struct Matrices {
  const float *grad, *x;
  float* out;
  int64_t grad_step, x_step, out_step;  // from row to row
  int64_t rows;
  int last_lanes;  // input channels in the last vector
};

template <class Words, int Outs, int Vectors, bool IsWhole>
void add_tile(const Matrices& m, Ahead& ahead) {
  const int last = IsWhole ? kLanes : m.last_lanes;
  Vector sums[Outs][Vectors];
  for (int o = 0; o < Outs; ++o)
    for (int v = 0; v < Vectors; ++v)
      sums[o][v] = load(m.out + o * m.out_step + v * kLanes, v == Vectors - 1 ? last : kLanes);
  const float *grad = m.grad, *x = m.x, *next = ahead.at;
  for (int64_t p = 0; p < m.rows; ++p, grad += m.grad_step, x += m.x_step) {
    if (next < ahead.end) {
      __builtin_prefetch(next, 0, 2);
      next += kLine / sizeof(float);
    }
    Vector row[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) row[v] = load(x + v * kLanes, v == Vectors - 1 ? last : kLanes);
#pragma GCC unroll 16
    for (int o = 0; o < Outs; ++o)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[o][v] = Words::add_products(sums[o][v], row[v], grad + o);
  }
  ahead.at = next;
  for (int o = 0; o < Outs; ++o)
    for (int v = 0; v < Vectors; ++v)
      store(m.out + o * m.out_step + v * kLanes, sums[o][v], v == Vectors - 1 ? last : kLanes);
}

template <class Words, int Outs, int Vectors>
void add_rows(Matrices& m, int64_t& left, Ahead& ahead) {
  for (; left >= Outs; left -= Outs, m.grad += Outs, m.out += Outs * m.out_step)
    if (m.last_lanes == kLanes)
      add_tile<Words, Outs, Vectors, true>(m, ahead);
    else
      add_tile<Words, Outs, Vectors, false>(m, ahead);
}

template <class Words, int Outs, int Vectors>
void add_all_rows(Matrices m, int64_t outs, Ahead& ahead) {
  add_rows<Words, Outs, Vectors>(m, outs, ahead);
  add_rows<Words, 4, Vectors>(m, outs, ahead);
  add_rows<Words, 1, Vectors>(m, outs, ahead);
}

// Vectors of input channels, cut into pieces of `most` or, all alike, a little less: fn(first vector, vectors, last lanes).
template <class Function>
void in_pieces(int64_t ins, int most, const Function& fn) {
  const int64_t vectors = (ins + kLanes - 1) / kLanes, pieces = (vectors + most - 1) / most;
  for (int64_t n = 0; n < pieces; ++n) {
    const int64_t start = vectors * n / pieces, count = vectors * (n + 1) / pieces - start;
    fn(start, static_cast<int>(count), static_cast<int>(std::min(ins - (start + count - 1) * kLanes, int64_t{kLanes})));
  }
}

// A part of the weight that is computed alone: by one thread, and with sums that stay in the cache.
struct Slice {
  int64_t first_tap, end_tap, first_out, outs, first_in, ins;
};

std::vector<Slice> slices_of(const WeightGradient& g, int64_t threads) {
  const int64_t taps = g.taps(), bytes = taps * g.outs * g.ins * static_cast<int64_t>(sizeof(float));
  const int64_t wanted = std::max(threads, (bytes + kSliceBytes - 1) / kSliceBytes);
  // The larger side of the weight is cut, in whole vectors.
  const bool by_outs = g.outs >= g.ins;
  const int64_t side = by_outs ? g.outs : g.ins, units = (side + kLanes - 1) / kLanes;
  const int64_t parts = std::min(wanted, units), tap_parts = std::min((wanted + parts - 1) / parts, taps);
  std::vector<Slice> slices;
  for (int64_t t = 0; t < tap_parts; ++t)
    for (int64_t n = 0; n < parts; ++n) {
      const int64_t first = units * n / parts * kLanes, own = std::min(units * (n + 1) / parts * kLanes, side) - first;
      slices.push_back({taps * t / tap_parts, taps * (t + 1) / tap_parts, by_outs ? first : 0, by_outs ? own : g.outs,
                        by_outs ? 0 : first, by_outs ? g.ins : own});
    }
  return slices;
}

// One block in place, for output channels [0, outs) and input channels [0, ins) from the pointers on.
void add_block(const Matrices& m, int64_t outs, int64_t ins, Ahead& first, Ahead& second) {
  in_pieces(ins, kMostVectors, [&](int64_t start, int vectors, int last_lanes) {
    Matrices tile = m;
    tile.x += start * kLanes;
    tile.out += start * kLanes;
    tile.last_lanes = last_lanes;
    Ahead& ahead = first.at < first.end ? first : second;
    if (vectors == 1)
      add_all_rows<Float32, most_outs(1), 1>(tile, outs, ahead);
    else if (vectors == 2)
      add_all_rows<Float32, most_outs(2), 2>(tile, outs, ahead);
    else
      add_all_rows<Float32, most_outs(3), 3>(tile, outs, ahead);
  });
}

// float32 maps, and a kernel one pixel wide and high: of rows that lie side by side.
void add_in_place(const WeightGradient& g, const Slice& slice, const float* grad, const float* x, float* out) {
  const int64_t out_pixels = g.out_pixels(), pixels = g.pixels(), frame = g.size[1] * g.size[2];
  for (int64_t clip = 0; clip < g.clips; ++clip, grad += out_pixels * g.outs, x += pixels * g.ins)
    for (int64_t start = 0; start < out_pixels; start += kBlock) {
      const int64_t end = std::min(start + kBlock, out_pixels), next_end = std::min(end + kBlock, out_pixels);
      for (int64_t k = slice.first_tap; k < slice.end_tap; ++k) {
        // Pixel p of the result reads pixel p + shift, if that is one.
        const int64_t shift = (k * g.dilation[0] - g.padding[0]) * frame;
        const int64_t from = std::max(start, -shift), to = std::min(end, pixels - shift);
        if (from >= to) continue;
        // Frames of x are new to the cache when the kernel's last one comes to them.
        Ahead next_grad{grad + end * g.outs, grad + next_end * g.outs};
        Ahead next_x{x + (to + shift) * g.ins, x + std::min(next_end + shift, pixels) * g.ins};
        if (k < slice.end_tap - 1) next_grad.at = next_grad.end, next_x.at = next_x.end;
        const Matrices m{grad + from * g.outs + slice.first_out,
                         x + (from + shift) * g.ins + slice.first_in,
                         out + (slice.first_out * g.taps() + k) * g.width + slice.first_in,
                         g.outs, g.ins, g.taps() * g.width, to - from, kLanes};
        add_block(m, slice.outs, slice.ins, next_grad, next_x);
      }
    }
}

#if defined(OCTVIDEO_HAS_AMX)

// Products of one or two tiles of 16 output channels with some vectors of input channels, added to rows of `out`.
template <bool HasLower, int Vectors>
void add_amx_tiles(const float* grad, const float* x, int64_t steps, const Matrices& m, int64_t outs) {
  constexpr int64_t kTile = kTileRows * kMostWords, kRow = Vectors * kLanes;
  alignas(64) float sums[2 * kTileRows * kRow];
  finish_memory_accesses();
  _tile_zero(0);
  if constexpr (Vectors > 1) _tile_zero(1);
  if constexpr (HasLower) _tile_zero(2);
  if constexpr (HasLower && Vectors > 1) _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, grad += kTile, x += kMostWords * kRow) {
    _tile_loadd(4, grad, kLine);
    _tile_loadd(6, x, kRow * kWord);
    add_tile_products<BFloat16, 0, 4, 6>();
    if constexpr (Vectors > 1) {
      _tile_loadd(7, x + kLanes, kRow * kWord);
      add_tile_products<BFloat16, 1, 4, 7>();
    }
    if constexpr (HasLower) {
      _tile_loadd(5, grad + steps * kTile, kLine);
      add_tile_products<BFloat16, 2, 5, 6>();
      if constexpr (Vectors > 1) add_tile_products<BFloat16, 3, 5, 7>();
    }
  }
  _tile_stored(0, sums, kRow * kWord);
  if constexpr (Vectors > 1) _tile_stored(1, sums + kLanes, kRow * kWord);
  if constexpr (HasLower) _tile_stored(2, sums + kTileRows * kRow, kRow * kWord);
  if constexpr (HasLower && Vectors > 1) _tile_stored(3, sums + kTileRows * kRow + kLanes, kRow * kWord);
  finish_memory_accesses();
  for (int64_t o = 0; o < std::min<int64_t>(outs, (HasLower ? 2 : 1) * kTileRows); ++o)
    for (int v = 0; v < Vectors; ++v) {
      float* const to = m.out + o * m.out_step + v * kLanes;
      const int lanes = v == Vectors - 1 ? m.last_lanes : kLanes;
      store(to, load(to, lanes) + load(sums + o * kRow + v * kLanes, kLanes), lanes);
    }
}

template <int Vectors>
void add_all_amx_tiles(Matrices m, int64_t steps, int64_t outs) {
  constexpr int64_t kPair = 2 * kTileRows;
  for (; outs > 0; outs -= kPair, m.grad += kPair * steps * kMostWords, m.out += kPair * m.out_step)
    if (outs > kTileRows)
      add_amx_tiles<true, Vectors>(m.grad, m.x, steps, m, outs);
    else
      add_amx_tiles<false, Vectors>(m.grad, m.x, steps, m, outs);
}

#endif

// Blocks of maps with elements of Format, packed into words of Words.
template <class Format, class Words>
class Packed {
  using Element = typename Format::Element;

 public:
  Packed(const WeightGradient& g, const Slice& slice) : g(g), slice(slice) {
    if (by_tiles) {
      const int64_t pixel = (slice.outs + slice.ins) * kElement<Format>;
      block = std::clamp(kTileBlockBytes / pixel, kStep, kMostTileBlock) / kStep * kStep;
    }
    static thread_local Memory of_grad, of_x, of_zeros;
    const int64_t words = block / Words::kPerWord;
    grad_words = static_cast<float*>(of_grad.reserve(words * whole(slice.outs) * kWord));
    x_words = static_cast<float*>(of_x.reserve(words * whole(slice.ins) * kWord));
    const size_t bytes = std::max(g.outs, g.ins) * sizeof(Element);
    zeros = static_cast<Element*>(of_zeros.reserve(bytes));
    std::memset(zeros, 0, bytes);
  }

  void add(const Element* grad, const Element* x, float* out) {
#if defined(OCTVIDEO_HAS_AMX)
    if (by_tiles) {
      const TileConfig config(kTileRows, kTileRows, kMostWords);
      finish_memory_accesses();
      _tile_loadconfig(&config);
    }
#endif
    const int64_t out_pixels = g.out_pixels();
    for (int64_t clip = 0; clip < g.clips; ++clip, grad += out_pixels * g.outs, x += g.pixels() * g.ins)
      for (int64_t start = 0; start < out_pixels; start += block) {
        const int64_t count = std::min(block, out_pixels - start);
        // Words and steps are filled up with zeros.
        const int64_t unit = by_tiles ? kStep : Words::kPerWord, rounded = (count + unit - 1) / unit * unit;
        rows = rounded / Words::kPerWord;
        std::fill(located + count, located + rounded, zeros);
        for (int64_t p = 0; p < count; ++p) located[p] = grad + (start + p) * g.outs;
        pack_grad();
        for (int64_t tap = slice.first_tap; tap < slice.end_tap; ++tap) {
          if (!locate(x, tap, start, start + count)) continue;
          add_tap(out + (slice.first_out * g.taps() + tap) * g.width + slice.first_in);
        }
      }
#if defined(OCTVIDEO_HAS_AMX)
    if (by_tiles) _tile_release();
#endif
  }

 private:
  static constexpr int64_t kStep = 32;  // pixels of a step of AMX
  const WeightGradient& g;
  const Slice& slice;
  const bool by_tiles = Words::kPerWord > 1 && uses_tiles;
  int64_t block = kBlock, rows = 0;
  float *grad_words, *x_words;
  Element* zeros;
  const Element* located[kMostTileBlock];  // the block's pixels

  static int64_t whole(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

  // Where the pixels lie that a tap reads for pixels [start, end) of a clip; whether any is in the map.
  bool locate(const Element* x, int64_t tap, int64_t start, int64_t end) {
    const int64_t shift_t = tap / (g.kernel[1] * g.kernel[2]) * g.dilation[0] - g.padding[0];
    const int64_t shift_y = tap / g.kernel[2] % g.kernel[1] * g.dilation[1] - g.padding[1];
    const int64_t shift_x = tap % g.kernel[2] * g.dilation[2] - g.padding[2];
    const auto is_in = [&](int64_t n, int axis) { return n >= 0 && n < g.size[axis]; };
    bool any = false;
    const Element** to = located;
    for (int64_t p = start; p < end;) {
      const int64_t column = p % g.out_size[2], count = std::min(g.out_size[2] - column, end - p);
      const int64_t y = p / g.out_size[2] % g.out_size[1] + shift_y;
      const int64_t t = p / (g.out_size[1] * g.out_size[2]) + shift_t;
      const bool has_row = is_in(t, 0) && is_in(y, 1);
      const int64_t first = (t * g.size[1] + y) * g.size[2];
      for (int64_t n = column + shift_x; n < column + shift_x + count; ++n) {
        const bool has = has_row && is_in(n, 2);
        *to++ = has ? x + (first + n) * g.ins : zeros;
        any |= has;
      }
      p += count;
    }
    return any;
  }

  // A row of words, from a channel on; lanes after the given ones are 0.
  [[gnu::always_inline]] Vector words_at(int64_t row, int64_t channel, int lanes) const {
    const Element* const* pixels = located + row * Words::kPerWord;
    const Vector first = Format::load_raw(pixels[0] + channel, lanes);
    if constexpr (Words::kPerWord == 1) {
      return first;
    } else {
      using Bits = uint32_t __attribute__((vector_size(sizeof(Vector))));
      return (Vector)((Bits)first >> 16 | (Bits)Format::load_raw(pixels[1] + channel, lanes));
    }
  }

  // Each vector of output channels lies together: row after row of words or, for AMX, of each 16 rows the columns.
  void pack_grad() {
    float* to = grad_words;
    for (int64_t o = 0; o < slice.outs; o += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, slice.outs - o));
      if (!by_tiles) {
        for (int64_t row = 0; row < rows; ++row, to += kLanes) store(to, words_at(row, slice.first_out + o, lanes), kLanes);
        continue;
      }
      for (int64_t row = 0; row < rows; row += kLanes) {
        Vector square[kLanes];
#pragma GCC unroll 16
        for (int n = 0; n < kLanes; ++n) square[n] = words_at(row + n, slice.first_out + o, lanes);
        transpose(square);
#pragma GCC unroll 16
        for (int n = 0; n < kLanes; ++n, to += kLanes) store(to, square[n], kLanes);
      }
    }
  }

  // The vectors of each tile lie together, row after row.
  template <int Vectors>
  void pack_x(int64_t channel, int last_lanes, float* to) const {
    for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v, to += kLanes)
        store(to, words_at(row, channel + v * kLanes, v == Vectors - 1 ? last_lanes : kLanes), kLanes);
  }

  void add_tap(float* out) {
    in_pieces(slice.ins, by_tiles ? 2 : kMostVectors, [&](int64_t start, int vectors, int last_lanes) {
      float* const to = x_words + start * kLanes * rows;
      const Matrices m{grad_words, to, out + start * kLanes, kLanes, vectors * kLanes, g.taps() * g.width, rows, last_lanes};
      if (vectors == 1)
        add_piece<1>(slice.first_in + start * kLanes, to, m);
      else if (vectors == 2)
        add_piece<2>(slice.first_in + start * kLanes, to, m);
      else
        add_piece<3>(slice.first_in + start * kLanes, to, m);
    });
  }

  template <int Vectors>
  void add_piece(int64_t channel, float* to, Matrices m) const {
    pack_x<Vectors>(channel, m.last_lanes, to);
#if defined(OCTVIDEO_HAS_AMX)
    if constexpr (Words::kPerWord > 1 && Vectors <= 2)
      if (by_tiles) return add_all_amx_tiles<Vectors>(m, rows / kMostWords, slice.outs);
#endif
    Ahead nothing{};
    for (int64_t o = 0; o < slice.outs; o += kLanes, m.grad += rows * kLanes, m.out += kLanes * m.out_step)
      add_all_rows<Words, most_packed_outs(Vectors), Vectors>(m, std::min<int64_t>(kLanes, slice.outs - o), nothing);
  }
};

template <class Format, class Words>
void add_packed(const WeightGradient& g, const Slice& slice, const void* grad, const void* x, float* out) {
  using Element = typename Format::Element;
  Packed<Format, Words>(g, slice).add(static_cast<const Element*>(grad), static_cast<const Element*>(x), out);
}

}  // namespace

extern "C" {

// grad (clips, frames, height, width, outs), x (likewise, ins), out (outs, taps, ins), which is overwritten; in a weight of
// more input channels it has its neighbours beside it.
void weight_gradient(const WeightGradient* given, const void* grad, const void* x, float* out, int64_t threads) {
  const WeightGradient& g = *given;
  for (int64_t row = 0; row < g.outs * g.taps(); ++row) std::fill_n(out + row * g.width, g.ins, 0.0f);
  const std::vector<Slice> slices = slices_of(g, threads);
  parallel_for(threads, static_cast<int64_t>(slices.size()), [&](int64_t n) {
#if defined(OCTVIDEO_HAS_BFLOAT16)
    if (g.format == kBFloat16 && g.word_format == kBFloat16) return add_packed<BFloat16, BFloat16>(g, slices[n], grad, x, out);
    if (g.format == kBFloat16) return add_packed<BFloat16, Float32>(g, slices[n], grad, x, out);
#endif
    if (g.has_space()) return add_packed<Float32, Float32>(g, slices[n], grad, x, out);
    add_in_place(g, slices[n], static_cast<const float*>(grad), static_cast<const float*>(x), out);
  });
}

}  // extern "C"
