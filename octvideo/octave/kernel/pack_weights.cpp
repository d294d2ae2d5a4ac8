// Weights in the order in which fused_conv.cpp's tiles read them: once for a network that only computes scores, and, from a
// weight that changes in every step, each time in training.

#include "layer.h"
#include "memory.h"
#include "vectors.h"

namespace {

// A part of a weight: some outputs of some inputs. Steps lead to the next output, input and tap of the kernel.
struct Part {
  const float* data;
  int64_t outs, ins, taps;
  int64_t out_step, in_step, tap_step;
  float scale;
};

// A matrix (k, n), packed: block after block of output channels (layer.h), and in a block row after row.
struct Packed {
  float* data;
  int64_t k, n;
  int64_t size() const { return k * ((n + kLanes - 1) / kLanes) * kLanes; }
};

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

// To a packed matrix, from a row and a column on.
void pack_part(const Part& part, const Packed& packed, int64_t first_k, int64_t first_n, int64_t threads) {
  const auto blocks = blocks_of(packed.n, packed.k);
  const int64_t runs = (part.ins + kLanes - 1) / kLanes;
  parallel_for(threads, static_cast<int64_t>(blocks.size()) * part.taps * runs, [&](int64_t unit) {
    const Block& block = blocks[unit / runs / part.taps];
    const int64_t width = block.vectors * kLanes, used = width - kLanes + block.last_lanes;
    const int64_t begin = std::max(first_n - block.first, int64_t{0});
    const int64_t end = std::min(first_n + part.outs - block.first, used);
    if (begin >= end) return;
    const int64_t tap = unit / runs % part.taps, first_in = unit % runs * kLanes;
    const int64_t ins = std::min<int64_t>(kLanes, part.ins - first_in);
    const float* from = part.data + (block.first + begin - first_n) * part.out_step + tap * part.tap_step +
                        first_in * part.in_step;
    float* to = packed.data + packed.k * block.first + (first_k + tap * part.ins + first_in) * width + begin;
    int64_t o = 0;
    if (part.in_step == 1) {
      for (; ins == kLanes && o + kLanes <= end - begin; o += kLanes) {
        Vector square[kLanes];
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) square[lane] = load(from + (o + lane) * part.out_step, kLanes);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + i * width + o, square[i] * part.scale, kLanes);
      }
    } else if (part.out_step == 1) {
      for (; o + kLanes <= end - begin; o += kLanes)
        for (int64_t i = 0; i < ins; ++i)
          store(to + i * width + o, load(from + i * part.in_step + o, kLanes) * part.scale, kLanes);
    }
    for (; o < end - begin; ++o)
      for (int64_t i = 0; i < ins; ++i) to[i * width + o] = part.scale * from[o * part.out_step + i * part.in_step];
    if (end == used)
      for (int64_t i = 0; i < ins; ++i) std::fill(to + i * width + used - begin, to + (i + 1) * width - begin, 0.0f);
  });
}

}  // namespace

extern "C" {

int64_t packed_size(int64_t k, int64_t n) { return Packed{nullptr, k, n}.size(); }

// A matrix (k, n).
void pack(const float* matrix, int64_t k, int64_t n, float* packed) {
  pack_part({matrix, n, k, 1, 1, n, 0, 1.0f}, {packed, k, n}, 0, 0, 1);
}

// run_layer, by a weight that is packed now. The weights of `given` are not read.
void pack_and_run_layer(const Layer* given, const Weight* weight, const Maps* maps, int64_t threads) {
  static thread_local Memory memory;
  Layer layer = *given;
  Packed high{nullptr, layer.k_high(), layer.outs_high}, low{nullptr, layer.k_low(), layer.outs_low};
  Packed from_low{nullptr, layer.k_from_low(), layer.outs_from_low()};
  layer.weight_high = high.data = memory.reserve(high.size() + from_low.size() + low.size());
  layer.weight_from_low = from_low.data = high.data + high.size();
  layer.weight_low = low.data = from_low.data + from_low.size();

  const auto part = [&](bool to_low, bool of_low, float scale) {
    const float* data = weight->data + (to_low ? layer.outs_high * weight->out_step : 0) +
                        (of_low ? layer.in_high * weight->in_step : 0);
    return Part{data,
                to_low ? layer.outs_low : layer.outs_high,
                of_low ? layer.in_low : layer.in_high,
                layer.taps(), weight->out_step, weight->in_step, weight->tap_step, scale};
  };
  pack_part(part(false, false, 1.0f), high, 0, 0, threads);
  if (layer.adds_from_low) pack_part(part(false, true, weight->scale_from_low), from_low, 0, 0, threads);
  if (layer.shares_low) pack_part(part(true, true, 1.0f), from_low, 0, layer.outs_high, threads);
  if (layer.low_reads_high) pack_part(part(true, false, 1.0f), low, 0, 0, threads);
  if (layer.low_reads_low && !layer.shares_low)
    pack_part(part(true, true, 1.0f), low, layer.low_reads_high ? layer.taps() * layer.in_high : 0, 0, threads);
  run_layer(layer, *maps, threads);
}

}  // extern "C"
