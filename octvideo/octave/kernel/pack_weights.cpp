// Weights in the order and the format in which tiles read them: once for a network that only computes scores, and, from a
// weight that changes in every step, each time in training. They are packed in float32 first. Rows of elements that share
// words are then joined.

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

int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// A matrix (k, n) in float32, packed: block after block of output channels (layer.h), and in a block row after row.
// `words` decides on the blocks.
struct Packed {
  float* data;
  int64_t k, n, words;
  bool by_tiles;
  int64_t size() const { return k * whole_vectors(n); }
};

// To a packed matrix, from a row and a column on. Of each tap it has `rows_of_tap` rows, the part's inputs or more.
void pack_part(const Part& part, const Packed& packed, int64_t first_k, int64_t first_n, int64_t rows_of_tap, int64_t threads) {
  const auto blocks = blocks_of(packed.n, packed.words, packed.by_tiles);
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
    float* to = packed.data + packed.k * block.first + (first_k + tap * rows_of_tap + first_in) * width + begin;
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

// Four bytes of a format: elements of `count` rows, in one column, the first of them after `skipped` that are 0.
int32_t word_of(const float* column, int64_t step, int skipped, int count, int64_t format) {
  int32_t word = 0;
  for (int n = 0; n < count; ++n) {
    const float value = column[n * step];
    if (format == kInt8) {
      word |= static_cast<int32_t>(static_cast<uint8_t>(static_cast<int8_t>(value))) << 8 * (skipped + n);
    } else {
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
      const uint32_t rounded = is_nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // ties to even
      word |= static_cast<int32_t>(rounded) << 16 * (skipped + n);
    }
  }
  return word;
}

// The same of two rows of bfloat16, for a vector of columns.
[[gnu::always_inline]] inline Vector pairs_of(Vector first, Vector second) {
  using Bits = uint32_t __attribute__((vector_size(sizeof(Vector))));
  const auto rounded = [](Vector value) __attribute__((always_inline)) {
    const Bits bits = (Bits)value;
    return value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
  };
  return (Vector)(rounded(first) >> 16 | (rounded(second) & 0xffff0000));
}

// From rows of elements to rows of words.
void join_rows(const Packed& from, const KOrder& order, int64_t format, float* to, int64_t threads) {
  const auto blocks = blocks_of(from.n, from.words, from.by_tiles);
  parallel_for(threads, static_cast<int64_t>(blocks.size()), [&](int64_t n) {
    const Block& block = blocks[n];
    const int64_t width = block.vectors * kLanes, per_piece = order.piece * order.per_word;
    const float* rows = from.data + from.k * block.first;
    float* out = to + from.words * block.first;
    for (int s = 0; s < order.num_sources; ++s)
      for (int64_t r = 0; r < order.sources[s].count; ++r, rows += order.sources[s].run * width) {
        const int64_t run = order.sources[s].run;
        for (int64_t begin = 0; begin < run; begin += per_piece) {
          // The last piece starts earlier: its first elements have been in the one before it.
          const int64_t start = std::max<int64_t>(std::min(begin, run - per_piece), 0);
          for (int64_t w = 0; w < order.piece; ++w, out += width) {
            const int64_t first = start + w * order.per_word, from_row = std::max(first, begin);
            const int64_t end = std::min(first + order.per_word, run);
            if (format == kBFloat16 && end - from_row == 2) {
              const float* const row = rows + first * width;
              for (int64_t lane = 0; lane < width; lane += kLanes)
                store(out + lane, pairs_of(load(row + lane, kLanes), load(row + width + lane, kLanes)), kLanes);
              continue;
            }
            for (int64_t lane = 0; lane < width; ++lane) {
              const int32_t word = from_row >= end ? 0
                                                   : word_of(rows + from_row * width + lane, width,
                                                             static_cast<int>(from_row - first),
                                                             static_cast<int>(end - from_row), format);
              std::memcpy(out + lane, &word, sizeof word);
            }
          }
        }
      }
  });
}

// The weights of a layer's three convolutions.
struct Weights {
  KOrder high, from_low, low;
  int64_t outs_high, outs_from_low, outs_low;

  explicit Weights(const Layer& layer)
      : high(k_high(layer)), from_low(k_from_low(layer)), low(k_low(layer)), outs_high(layer.outs_high),
        outs_from_low(layer.outs_from_low()), outs_low(layer.outs_low) {}

  int64_t outs(int64_t which) const { return which == 0 ? outs_high : which == 1 ? outs_from_low : outs_low; }
  const KOrder& order(int64_t which) const { return which == 0 ? high : which == 1 ? from_low : low; }
  int64_t words(int64_t which) const { return words_of_weight(order(which), outs(which)); }
  Packed matrix(int64_t which, float* data) const {
    return {data, order(which).elements(), outs(which), order(which).words(), order(which).by_tiles};
  }
};

}  // namespace

extern "C" {

// Words of a layer's packed weight: 0: high, 1: from_low, 2: low.
int64_t packed_words(const Layer* layer, int64_t which) { return Weights(*layer).words(which); }

// Whether y_low's convolution reads both maps as one: its K has the channels of both in each tap, instead of all taps of
// the one and then of the other.
bool joins_maps(const Layer* layer) { return k_low(*layer).joins; }

// One of a layer's weights, of a matrix (k, n).
void pack(const Layer* layer, int64_t which, const float* matrix, float* packed) {
  static thread_local Memory memory;
  const Weights weights(*layer);
  Packed rows = weights.matrix(which, packed);
  if (layer->format != kFloat32) rows.data = static_cast<float*>(memory.reserve(rows.size() * sizeof(float)));
  pack_part({matrix, rows.n, rows.k, 1, 1, rows.n, 0, 1.0f}, rows, 0, 0, rows.k, 1);
  if (layer->format != kFloat32) join_rows(rows, weights.order(which), layer->format, packed, 1);
}

// run_layer, by a weight that is packed now. The weights of `given` are not read.
void pack_and_run_layer(const Layer* given, const Weight* weight, const Maps* maps, int64_t threads) {
  static thread_local Memory memory, joined;
  Layer layer = *given;
  const Weights weights(layer);
  Packed matrices[3];
  int64_t size = 0, words = 0;
  for (int n = 0; n < 3; ++n) matrices[n] = weights.matrix(n, nullptr), size += matrices[n].size(), words += weights.words(n);
  float* data = static_cast<float*>(memory.reserve(size * sizeof(float)));
  for (Packed& matrix : matrices) matrix.data = data, data += matrix.size();
  const auto& [high, from_low, low] = matrices;

  const auto part = [&](bool to_low, bool of_low, float scale) {
    const float* data = weight->data + (to_low ? layer.outs_high * weight->out_step : 0) +
                        (of_low ? layer.in_high * weight->in_step : 0);
    return Part{data,
                to_low ? layer.outs_low : layer.outs_high,
                of_low ? layer.in_low : layer.in_high,
                layer.taps(), weight->out_step, weight->in_step, weight->tap_step, scale};
  };
  const bool joins = weights.low.joins;
  const int64_t joined_ins = layer.in_high + layer.in_low;
  pack_part(part(false, false, 1.0f), high, 0, 0, layer.in_high, threads);
  if (layer.adds_from_low) pack_part(part(false, true, weight->scale_from_low), from_low, 0, 0, layer.in_low, threads);
  if (layer.shares_low) pack_part(part(true, true, 1.0f), from_low, 0, layer.outs_high, layer.in_low, threads);
  if (layer.low_reads_high) pack_part(part(true, false, 1.0f), low, 0, 0, joins ? joined_ins : layer.in_high, threads);
  if (layer.low_reads_low && !layer.shares_low) {
    const int64_t first = joins ? layer.in_high : layer.low_reads_high ? layer.taps() * layer.in_high : 0;
    pack_part(part(true, true, 1.0f), low, first, 0, joins ? joined_ins : layer.in_low, threads);
  }

  const float* packed[3] = {high.data, from_low.data, low.data};
  if (layer.format != kFloat32) {
    float* to = static_cast<float*>(joined.reserve(words * kWord));
    for (int n = 0; n < 3; to += weights.words(n++)) {
      join_rows(matrices[n], weights.order(n), layer.format, to, threads);
      packed[n] = to;
    }
  }
  layer.weight_high = packed[0], layer.weight_from_low = packed[1], layer.weight_low = packed[2];
  run_layer(layer, *maps, threads);
}

}  // extern "C"
