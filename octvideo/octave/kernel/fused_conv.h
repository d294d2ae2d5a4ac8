// A layer as fused_conv.py describes it, and the blocks in which its weights are packed.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

constexpr int kAxes = 3;

extern "C" {

// What fused_conv.py passes, in this order, eight bytes each. Absent weights and biases are null.
struct Layer {
  const float *weight_high, *weight_from_low, *weight_low, *bias_high, *bias_low;  // weights of pack()
  int64_t clips, frames, height, width;                                            // of x_high
  int64_t in_low;
  int64_t in_high, outs_high, outs_low;  // channels
  int64_t kernel[kAxes], stride[kAxes], padding[kAxes], dilation[kAxes];
  int64_t window[2], window_stride[2], window_padding[2];  // of a max pool behind an ordinary convolution; 1, 1, 0: none
  int64_t relu;
  int64_t pool_first;      // x_high is pooled, and x_low where y_low reads it
  int64_t high_reads_low;  // y_high's convolution reads [x_high, x_low], which then have one size
  int64_t low_reads_high, low_reads_low;
  int64_t shares_low;      // weight_from_low gives y_low's part of x_low too, behind y_high's
  int64_t pools_sums;      // y_low's convolution reads sums of x_high's pixels, not means

  // Of the weights: places of the kernel, and rows, as many as numbers that a result sums up.
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t rows_high() const { return taps() * (in_high + (high_reads_low ? in_low : 0)); }
  int64_t rows_from_low() const { return taps() * in_low; }
  int64_t rows_low() const {
    return taps() * ((low_reads_high ? in_high : 0) + (low_reads_low && !shares_low ? in_low : 0));
  }

  bool takes_maximum() const { return window[0] * window[1] > 1 || window_stride[0] * window_stride[1] > 1; }
  int64_t pooled_size(int64_t size, int axis) const {
    return (size + 2 * window_padding[axis] - window[axis]) / window_stride[axis] + 1;
  }
};

}  // extern "C"

// Maps that a layer lacks are null; `out_pooled`, which may be null too, gets what is pooled of x_high for y_low.
void run(const Layer& layer, const float* high, const float* low, const float* base_high, const float* base_low,
         float* out_high, float* out_low, float* out_pooled, int64_t threads);

namespace {

struct Block {
  int64_t first;  // output channel
  int vectors, last_lanes;
};

// Blocks of three vectors, and of two where threes leave some, keep most registers busy: a 3x3 layer of 256 channels, four
// frames of 14x14, took 5.3 ms with a block of four and 4.4 with two of two instead. Sums of few rows take less time than
// all that is between two tiles, so that the fewest blocks are the fastest: an octave layer of 32 + 32 to 128 + 128
// channels takes 422 us in fours and 449 in threes (two frames of 56x56).
inline std::vector<Block> blocks_of(int64_t channels, int64_t rows) {
  std::vector<Block> blocks;
  constexpr int64_t kFewRows = 128;
  int64_t left = (channels + kLanes - 1) / kLanes, first = 0;
  while (left > 0) {
    const bool is_wide = kRegisters == 32 && rows <= kFewRows && left >= 4 && (left % 4 == 0 || left % 3 == 1);
    const int vectors = is_wide ? 4 : left % 3 == 0 ? 3 : left == 1 ? 1 : 2;
    const int64_t width = std::min<int64_t>(vectors * kLanes, channels - first);
    blocks.push_back({first, vectors, static_cast<int>(width - (vectors - 1) * kLanes)});
    first += vectors * kLanes;
    left -= vectors;
  }
  return blocks;
}

}  // namespace
