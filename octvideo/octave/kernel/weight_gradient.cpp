// The gradient of the weight of a convolution whose kernel is one pixel wide and high, over time or not, at stride 1:
//
//   out[o][k][i] = sum over t, p of grad[t][p][o] * x[t + k * dilation - padding][p][i]
//
// It is a product of two matrices of pixels by channels, both read as they lie. A tile of some output by some input channels
// stays in registers over a block of pixels. While a block is in the cache, it serves all tiles and all of the kernel's
// frames, and the next block is prefetched.

#include "formats.h"

namespace {

// Input channels, in vectors, and output channels of a tile: its sums, a row of x and one element of grad fill the registers.
constexpr int kMostVectors = 3;
constexpr int most_outs(int vectors) {
  constexpr int many[] = {16, 12, 8}, few[] = {8, 6, 4};
  return (kRegisters == 32 ? many : few)[vectors - 1];
}

constexpr int64_t kBlock = 128;  // pixels

// What is read next: one cache line of it is prefetched for each pixel.
struct Ahead {
  const float *at, *end;
};

struct Matrices {
  const float *grad, *x;
  float* out;
  int64_t grad_step, x_step, out_step;  // from row to row
  int64_t pixels;
  int last_lanes;  // input channels in the last vector
};

template <int Outs, int Vectors, bool IsWhole>
void add_tile(const Matrices& m, Ahead& ahead) {
  const int last = IsWhole ? kLanes : m.last_lanes;
  Vector sums[Outs][Vectors];
  for (int o = 0; o < Outs; ++o)
    for (int v = 0; v < Vectors; ++v)
      sums[o][v] = load(m.out + o * m.out_step + v * kLanes, v == Vectors - 1 ? last : kLanes);
  const float *grad = m.grad, *x = m.x, *next = ahead.at;
  for (int64_t p = 0; p < m.pixels; ++p, grad += m.grad_step, x += m.x_step) {
    if (next < ahead.end) {
      __builtin_prefetch(next, 0, 2);
      next += kLine / sizeof(float);
    }
    Vector row[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) row[v] = load(x + v * kLanes, v == Vectors - 1 ? last : kLanes);
#pragma GCC unroll 16
    for (int o = 0; o < Outs; ++o) {
      const Vector one = Vector{} + grad[o];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[o][v] += one * row[v];
    }
  }
  ahead.at = next;
  for (int o = 0; o < Outs; ++o)
    for (int v = 0; v < Vectors; ++v)
      store(m.out + o * m.out_step + v * kLanes, sums[o][v], v == Vectors - 1 ? last : kLanes);
}

template <int Outs, int Vectors>
void add_rows(Matrices& m, int64_t& left, Ahead& ahead) {
  for (; left >= Outs; left -= Outs, m.grad += Outs, m.out += Outs * m.out_step)
    if (m.last_lanes == kLanes)
      add_tile<Outs, Vectors, true>(m, ahead);
    else
      add_tile<Outs, Vectors, false>(m, ahead);
}

template <int Vectors>
void add_all_rows(Matrices m, int64_t outs, Ahead& ahead) {
  add_rows<most_outs(Vectors), Vectors>(m, outs, ahead);
  add_rows<4, Vectors>(m, outs, ahead);
  add_rows<1, Vectors>(m, outs, ahead);
}

// One block of pixels for output channels [0, outs) and input channels [0, ins) from the pointers on.
void add_block(Matrices m, int64_t outs, int64_t ins, Ahead& first, Ahead& second) {
  const int64_t vectors = (ins + kLanes - 1) / kLanes, tiles = (vectors + kMostVectors - 1) / kMostVectors;
  for (int64_t n = 0; n < tiles; ++n) {
    const int64_t start = vectors * n / tiles, count = vectors * (n + 1) / tiles - start;
    Matrices tile = m;
    tile.x += start * kLanes;
    tile.out += start * kLanes;
    tile.last_lanes = static_cast<int>(std::min(ins - (start + count - 1) * kLanes, int64_t{kLanes}));
    Ahead& ahead = first.at < first.end ? first : second;
    if (count == 1)
      add_all_rows<1>(tile, outs, ahead);
    else if (count == 2)
      add_all_rows<2>(tile, outs, ahead);
    else
      add_all_rows<3>(tile, outs, ahead);
  }
}

}  // namespace

extern "C" {

// grad (clips, out_frames, pixels, outs), x (clips, frames, pixels, ins), out (outs, kernel, ins), which is overwritten; in
// a weight of `width` input channels it has its neighbours beside it.
void weight_gradient(const float* grad, const float* x, float* out, int64_t clips, int64_t out_frames, int64_t frames,
                     int64_t pixels, int64_t outs, int64_t ins, int64_t width, int64_t kernel, int64_t padding,
                     int64_t dilation, int64_t threads) {
  for (int64_t row = 0; row < outs * kernel; ++row) std::fill_n(out + row * width, ins, 0.0f);
  // Threads share the larger side of the weight, in whole vectors.
  const bool by_outs = outs >= ins;
  const int64_t units = ((by_outs ? outs : ins) + kLanes - 1) / kLanes, parts = std::min(threads, units);
  const int64_t out_pixels = out_frames * pixels;
  parallel_for(threads, parts, [&](int64_t part) {
    const int64_t first = units * part / parts * kLanes, last = units * (part + 1) / parts * kLanes;
    const int64_t first_out = by_outs ? first : 0, first_in = by_outs ? 0 : first;
    const int64_t own_outs = by_outs ? std::min(last, outs) - first : outs;
    const int64_t own_ins = by_outs ? ins : std::min(last, ins) - first;
    for (int64_t clip = 0; clip < clips; ++clip) {
      const float* const clip_grad = grad + clip * out_pixels * outs;
      const float* const clip_x = x + clip * frames * pixels * ins;
      for (int64_t start = 0; start < out_pixels; start += kBlock) {
        const int64_t end = std::min(start + kBlock, out_pixels), next_end = std::min(end + kBlock, out_pixels);
        for (int64_t k = 0; k < kernel; ++k) {
          // Pixel p of the result reads pixel p + shift, if that is one.
          const int64_t shift = (k * dilation - padding) * pixels;
          const int64_t from = std::max(start, -shift), to = std::min(end, frames * pixels - shift);
          if (from >= to) continue;
          // Frames of x are new to the cache when the kernel's last one comes to them.
          Ahead next_grad{clip_grad + end * outs, clip_grad + next_end * outs};
          Ahead next_x{clip_x + (to + shift) * ins, clip_x + std::min(next_end + shift, frames * pixels) * ins};
          if (k < kernel - 1) next_grad.at = next_grad.end, next_x.at = next_x.end;
          const Matrices m{clip_grad + from * outs + first_out,
                           clip_x + (from + shift) * ins + first_in,
                           out + (first_out * kernel + k) * width + first_in,
                           outs, ins, kernel * width, to - from, kLanes};
          add_block(m, own_outs, own_ins, next_grad, next_x);
        }
      }
    }
  });
}

}  // extern "C"
