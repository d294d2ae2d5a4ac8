// Weights in the order in which fused_conv.cpp's tiles read them: once for a network that only computes scores, and, from a
// weight that changes in every step, each time in training.

#include "fused_conv.h"
#include "vectors.h"

namespace {

// Rows (kernel, inputs) by outputs of a weight; the steps lead to its next output, input and place in the kernel.
struct Part {
  const float* data;
  int64_t outs, ins, kernel;
  int64_t out_step, in_step, kernel_step;
  float scale;
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

// To a packed matrix of so many rows and columns, from a row and a column on.
void pack_part(const Part& part, float* packed, int64_t rows, int64_t columns, int64_t first_row, int64_t first_column,
               int64_t threads) {
  const auto blocks = blocks_of(columns, rows);
  const int64_t runs = (part.ins + kLanes - 1) / kLanes;
  parallel_for(threads, static_cast<int64_t>(blocks.size()) * part.kernel * runs, [&](int64_t n) {
    const Block& block = blocks[n / runs / part.kernel];
    const int64_t width = block.vectors * kLanes, used = width - kLanes + block.last_lanes;
    const int64_t begin = std::max(first_column - block.first, int64_t{0});
    const int64_t end = std::min(first_column + part.outs - block.first, used);
    if (begin >= end) return;
    const int64_t k = n / runs % part.kernel, first = n % runs * kLanes, count = std::min<int64_t>(kLanes, part.ins - first);
    const float* from = part.data + (block.first + begin - first_column) * part.out_step + k * part.kernel_step +
                        first * part.in_step;
    float* to = packed + rows * block.first + (first_row + k * part.ins + first) * width + begin;
    int64_t o = 0;
    if (part.in_step == 1) {
      for (; count == kLanes && o + kLanes <= end - begin; o += kLanes) {
        Vector square[kLanes];
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) square[lane] = load(from + (o + lane) * part.out_step, kLanes);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + i * width + o, square[i] * part.scale, kLanes);
      }
    } else if (part.out_step == 1) {
      for (; o + kLanes <= end - begin; o += kLanes)
        for (int64_t i = 0; i < count; ++i)
          store(to + i * width + o, load(from + i * part.in_step + o, kLanes) * part.scale, kLanes);
    }
    for (; o < end - begin; ++o)
      for (int64_t i = 0; i < count; ++i)
        to[i * width + o] = part.scale * from[o * part.out_step + i * part.in_step];
    if (end == used)
      for (int64_t i = 0; i < count; ++i) std::fill(to + i * width + used - begin, to + (i + 1) * width - begin, 0.0f);
  });
}

}  // namespace

extern "C" {

int64_t packed_size(int64_t rows, int64_t outs) { return rows * ((outs + kLanes - 1) / kLanes) * kLanes; }

// A matrix of (rows, outs).
void pack(const float* matrix, int64_t rows, int64_t outs, float* packed) {
  pack_part({matrix, outs, rows, 1, 1, outs, 0, 1.0f}, packed, rows, outs, 0, 0, 1);
}

// run_layer of a weight whose outputs and inputs are the high channels and then the low ones. The layer's own weights say
// which parts it has: any address but null. What comes from low to high is multiplied by `to_high`. For `out_pooled` see
// run().
void run_layer_of(const Layer* given, const float* weight, int64_t out_step, int64_t in_step, int64_t kernel_step,
                  float to_high, const float* high, const float* low, float* out_high, float* out_low, float* out_pooled,
                  int64_t threads) {
  static thread_local std::vector<float> memory;
  Layer layer = *given;
  const int64_t kernel = layer.taps();
  const int64_t high_rows = layer.rows_high(), from_low_rows = layer.rows_from_low(), low_rows = layer.rows_low();
  const int64_t from_low_outs = layer.outs_high + (layer.shares_low ? layer.outs_low : 0);
  const int64_t sizes[] = {packed_size(high_rows, layer.outs_high),
                           layer.weight_from_low ? packed_size(from_low_rows, from_low_outs) : 0,
                           layer.weight_low ? packed_size(low_rows, layer.outs_low) : 0};
  // Vectors of a line begin at a line.
  const int64_t size = sizes[0] + sizes[1] + sizes[2] + kLine;
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  const uintptr_t behind = reinterpret_cast<uintptr_t>(memory.data()) % (kLine * sizeof(float)) / sizeof(float);
  float* const start = memory.data() + (behind ? kLine - behind : 0);
  float *const to_main = start, *const to_from_low = to_main + sizes[0], *const to_below = to_from_low + sizes[1];

  const float* const low_inputs = weight + layer.in_high * in_step;
  const float* const low_outputs = weight + layer.outs_high * out_step;
  const auto part = [&](const float* data, int64_t outs, int64_t ins, float scale) {
    return Part{data, outs, ins, kernel, out_step, in_step, kernel_step, scale};
  };
  pack_part(part(weight, layer.outs_high, layer.in_high, 1.0f), to_main, high_rows, layer.outs_high, 0, 0, threads);
  layer.weight_high = to_main;
  if (layer.weight_from_low) {
    pack_part(part(low_inputs, layer.outs_high, layer.in_low, to_high), to_from_low, from_low_rows, from_low_outs, 0, 0,
              threads);
    if (layer.shares_low)
      pack_part(part(low_outputs + layer.in_high * in_step, layer.outs_low, layer.in_low, 1.0f), to_from_low, from_low_rows,
                from_low_outs, 0, layer.outs_high, threads);
    layer.weight_from_low = to_from_low;
  }
  if (layer.weight_low) {
    if (layer.low_reads_high)
      pack_part(part(low_outputs, layer.outs_low, layer.in_high, 1.0f), to_below, low_rows, layer.outs_low, 0, 0, threads);
    if (layer.low_reads_low && !layer.shares_low)
      pack_part(part(low_outputs + layer.in_high * in_step, layer.outs_low, layer.in_low, 1.0f), to_below, low_rows,
                layer.outs_low, layer.low_reads_high ? kernel * layer.in_high : 0, 0, threads);
    layer.weight_low = to_below;
  }
  run(layer, high, low, nullptr, nullptr, out_high, out_low, out_pooled, threads);
}

}  // extern "C"
