// A layer, its maps, and how its weights are packed.

#pragma once

#include <vector>

#include "formats.h"

constexpr int kAxes = 3;

enum LayerKind : int64_t { kConvolution, kDepthwise, kMean, kScale, kShift };  // Layer::kind

extern "C" {

// These have the fields of the ctypes.Structures of the same names in fused_conv.py, training.py and sequence.py, in their order.
struct Layer {
  const float *weight_high, *weight_from_low, *weight_low;  // packed words of the format; null where there is none
  const float *bias_high, *bias_low;                        // may be null
  const float *scale_high, *scale_from_low, *scale_low;     // int8: of the sums of each output
  float in_scale[2], residual_scale[2], out_scale[2];       // int8: of the high and the low map
  float gate_scale;                                         // int8
  int64_t in_zero[2], residual_zero[2], out_zero[2];        // int8: the elements that stand for 0
  int64_t gate_zero;
  int64_t kind;                                             // LayerKind
  int64_t format;                                           // FormatIndex
  int64_t activation;                                       // Activation, after the residual is added
  int64_t clips, frames, height, width;                     // of x_high
  int64_t in_high, in_low, outs_high, outs_low;             // channels
  int64_t in_gap[2], out_gap[2];                            // elements between pixels, where a layer is a part of another
  int64_t from_next[2], from_previous[2];                   // kShift: first channels of a map, and those after them
  int64_t groups;                                           // of channels, each a layer by itself, weights too; 0 is 1
  int64_t kernel[kAxes], stride[kAxes], padding[kAxes], dilation[kAxes];
  int64_t pool_window[2], pool_stride[2], pool_padding[2];  // max pool after an ordinary convolution; 1, 1, 0: none
  bool pool_first;      // x_high is pooled, and x_low where y_low reads it
  bool high_reads_low;  // y_high's convolution reads [x_high, x_low], which then have one size
  bool adds_from_low;   // a convolution of x_low, upsampled, is added to y_high
  bool low_reads_high, low_reads_low;
  bool shares_low;      // weight_from_low also gives what y_low gets from x_low: its channels follow y_high's
  bool pools_sums;      // y_low's convolution reads sums of x_high's pixels, not means

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t outs_from_low() const { return adds_from_low ? outs_high + (shares_low ? outs_low : 0) : 0; }

  bool has_max_pool() const { return pool_window[0] * pool_window[1] > 1 || pool_stride[0] * pool_stride[1] > 1; }
  int64_t max_pooled(int64_t size, int axis) const {
    return (size + 2 * pool_padding[axis] - pool_window[axis]) / pool_stride[axis] + 1;
  }
  int64_t out_size(int64_t size, int axis) const {
    return (size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis] + 1;
  }
};

// Channels last, in the layer's format; null where the layer has no such map. A residual is added to the result, and may
// lie in its place.
struct Maps {
  const void *high, *low, *residual_high, *residual_low;
  const void* gate;  // (clips, channels): what a kScale layer multiplies by
  void *out_high, *out_low;
  void* out_pooled;  // x_high as it is pooled for y_low, if the caller wants it
};

// A weight as torch has it, of the high outputs and inputs and then the low ones. Steps lead to the next output, input and
// tap of the kernel. What goes from low to high is multiplied by `scale_from_low`.
struct Weight {
  const float* data;
  int64_t out_step, in_step, tap_step;
  float scale_from_low;
};

// A map in a sequence: so many bytes after the start of a slot; slot -1: no map. kLocal: the result of the `offset`th step
// of a group, which is nowhere as a whole. `slice`: bytes from a slice's clips to the next one's; 0 where slices share memory.
constexpr int64_t kLocal = -2;
struct Place {
  int64_t slot, offset, slice;
};

struct Step {
  const Layer* layer;
  int64_t group;  // so many steps from this one on are computed together (group.h)
  Place high, low, residual_high, residual_low, gate, out_high, out_low;
};

}  // extern "C"

void run_layer(const Layer& layer, const Maps& maps, int64_t threads);

// Whether formats but float32 are computed on AMX tiles; allow_tiles sets it.
inline bool uses_tiles = false;

namespace {

constexpr int64_t kMostWords = 16;  // that a tile has in a row

// Output channels that a tile computes: some vectors, of which the last one may be partly used.
struct Block {
  int64_t first;
  int vectors, last_lanes;
};

// Blocks of three vectors, and of two where threes leave some, keep most registers busy. Where K is small, starting and
// ending a tile takes longer than its sums, so that the fewest blocks are the fastest. `words`: rows of packed weights.
// AMX tiles take two vectors.
inline std::vector<Block> blocks_of(int64_t n, int64_t words, bool by_tiles) {
  std::vector<Block> blocks;
  constexpr int64_t kSmallK = 128;
  int64_t left = (n + kLanes - 1) / kLanes, first = 0;
  while (left > 0) {
    const bool is_wide = !by_tiles && kRegisters == 32 && words <= kSmallK && left >= 4 && (left % 4 == 0 || left % 3 == 1);
    const int vectors = is_wide ? 4 : left % 3 == 0 && !by_tiles ? 3 : left == 1 ? 1 : 2;
    const int64_t width = std::min<int64_t>(vectors * kLanes, n - first);
    blocks.push_back({first, vectors, static_cast<int>(width - (vectors - 1) * kLanes)});
    first += vectors * kLanes;
    left -= vectors;
  }
  return blocks;
}

// The order of a convolution's K: from each source, `count` runs of `run` elements that lie side by side in a pixel, or
// in the pixels under a row of the kernel. A run is read in pieces of `piece` words. Where it is no multiple of them, its
// last piece starts earlier, and meets weights of zero where the piece before it has been. So three taps of 48 bfloat16
// channels, 144 elements, take 5 tiles of 32 and not 6. A run that is shorter than a word is read in part.
struct KOrder {
  struct Runs {
    int64_t run, count;
  };
  Runs sources[2];
  int num_sources = 0;
  int per_word = 1;
  int64_t piece = 1;      // words
  bool by_tiles = false;  // of AMX
  bool joins = false;     // both maps are one source: their channels lie side by side in a pixel

  int64_t pieces(const Runs& runs) const { return (runs.run + per_word * piece - 1) / (per_word * piece); }
  int64_t words_of_run(const Runs& runs) const { return pieces(runs) * piece; }
  int64_t elements() const { return sum([](const Runs& runs) { return runs.run * runs.count; }); }
  int64_t words() const { return sum([this](const Runs& runs) { return words_of_run(runs) * runs.count; }); }

 private:
  template <class Function>
  int64_t sum(const Function& fn) const {
    return (num_sources > 0 ? fn(sources[0]) : 0) + (num_sources > 1 ? fn(sources[1]) : 0);
  }
};

// Words of a convolution's packed weight.
inline int64_t words_of_weight(const KOrder& order, int64_t outs) {
  return order.words() * ((outs + kLanes - 1) / kLanes * kLanes);
}

// The orders of a layer's three convolutions; `first_in` and `second_in` are the channels of their sources, or 0.
inline KOrder k_order(const Layer& layer, int64_t first_in, int64_t second_in) {
  const int64_t side_by_side = layer.dilation[2] == 1 ? layer.kernel[2] : 1;
  KOrder order;
  order.per_word = layer.format == kInt8 ? 4 : layer.format == kBFloat16 ? 2 : 1;
  int64_t shortest = kMostWords * order.per_word;
  for (const int64_t channels : {first_in, second_in}) {
    if (!channels) continue;
    const KOrder::Runs runs{channels * side_by_side, layer.taps() / side_by_side};
    shortest = std::min(shortest, runs.run);
    order.sources[order.num_sources++] = runs;
  }
  order.by_tiles = uses_tiles && layer.format != kFloat32 && shortest >= order.per_word;
  if (order.by_tiles) order.piece = shortest / order.per_word;
  return order;
}
inline KOrder k_high(const Layer& layer) { return k_order(layer, layer.in_high, layer.high_reads_low ? layer.in_low : 0); }
inline KOrder k_from_low(const Layer& layer) { return k_order(layer, layer.in_low, 0); }
inline KOrder k_low(const Layer& layer) {
  const int64_t in_low = layer.low_reads_low && !layer.shares_low ? layer.in_low : 0;
  const bool joins = uses_tiles && layer.format != kFloat32 && layer.low_reads_high && in_low && !layer.pool_first &&
                     layer.in_zero[0] == layer.in_zero[1];
  KOrder order = joins ? k_order(layer, layer.in_high + in_low, 0)
                       : k_order(layer, layer.low_reads_high ? layer.in_high : 0, in_low);
  order.joins = joins;
  return order;
}

}  // namespace
