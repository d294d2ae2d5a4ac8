// Depthwise convolutions: each channel by itself, the high and the low map of a pair alike.
//
// A tile is some pixels of a row by one vector of channels. Its sums stay in registers over all taps; each element that is
// read serves the pixels under whose kernel it lies. All rows of a strip are computed for one vector of channels before the
// next one's: what a vector of channels needs of a strip stays in the nearest cache.

#pragma once

#include <utility>
#include <vector>

#include "activation.h"
#include "layer.h"
#include "memory.h"
#include "strips.h"

namespace {

constexpr int kMostDepthwisePixels = 8, kMostKernelWidth = 16;
constexpr int64_t kDepthwiseStrip = 512 * 1024;  // bytes of the frames that a strip reads

// A row of the map under a row of the kernel.
template <class Format>
struct DepthwiseRow {
  const typename Format::Element* data;  // its first pixel
  int64_t tap;                           // the first of the kernel's row
};

// Frames of rows of a map: all of them, or some frames in a ring, of some rows or of rows in a ring. Steps are in elements.
template <class Element>
struct FrameRows {
  Element* data;
  int64_t frame, row;
  int64_t ring = 0;  // frames; 0: all are there
  int64_t first_row = 0;
  int64_t row_ring = 0;  // rows; 0: those from the first one on are there

  Element* at(int64_t f, int64_t y) const {
    return data + (ring ? f % ring : f) * frame + (row_ring ? y % row_ring : y - first_row) * row;
  }
};

// The high or the low map of a layer, and of its result.
template <class Format>
struct DepthwiseMap {
  using Element = typename Format::Element;
  FrameRows<const Element> from;
  FrameRows<Element> to;
  const float *weight, *bias;  // weights of each vector of channels lie together, tap after tap
  int64_t channels, height, width, out_height, out_width;
  int64_t pixel, out_pixel;  // elements from pixel to pixel
  Element zero;
  Quantum of_out;
};

// A tile of the result.
template <class Format>
struct DepthwiseCall {
  const DepthwiseRow<Format>* rows;
  int64_t count;
  const int64_t* offsets;  // of what the tile reads, from a row's start; -1: in the padding
  int64_t pixel, out_pixel;
  int64_t channel, kernel_width;
  const float *weight, *bias;  // weight: of this vector of channels
  float zero;
  const typename Format::Element* zeros;  // a vector of what stands for zero
  int lanes;
  int64_t activation;
  typename Format::Element* out;
  const Quantum& of_out;
};

// Sums of a tile; at an edge, a part of what it reads may lie in the padding.
template <class Format, int Pixels, int Width, int Stride, bool IsEdge>
[[gnu::always_inline]] inline void sum_taps(const DepthwiseCall<Format>& call, int lanes, Vector (&sums)[Pixels]) {
  const int64_t pixel = call.pixel, kernel_width = call.kernel_width;
  for (int64_t r = 0; r < call.count; ++r) {
    const typename Format::Element* const row = call.rows[r].data + call.channel;
    const typename Format::Element* const first = row + call.offsets[0];
    const auto get = [&](int64_t n) __attribute__((always_inline)) {
      const typename Format::Element* from;
      if constexpr (IsEdge)
        from = call.offsets[n] < 0 ? call.zeros : row + call.offsets[n];
      else
        from = first + n * pixel;
      const Vector raw = Format::load_raw(from, lanes);
      return kIsInt8<Format> ? raw - call.zero : raw;
    };
    const float* const w = call.weight + call.rows[r].tap * kLanes;
    if constexpr (Width > 0) {
      Vector taps[Width];
#pragma GCC unroll 8
      for (int k = 0; k < Width; ++k) taps[k] = *reinterpret_cast<const Vector*>(w + k * kLanes);
#pragma GCC unroll 32
      for (int n = 0; n < (Pixels - 1) * Stride + Width; ++n) {
        const Vector x = get(n);
#pragma GCC unroll 8
        for (int k = 0; k < Width; ++k)
          if ((n - k) % Stride == 0 && n - k >= 0 && (n - k) / Stride < Pixels) sums[(n - k) / Stride] += taps[k] * x;
      }
    } else {
      for (int64_t k = 0; k < kernel_width; ++k) {
        const Vector tap = *reinterpret_cast<const Vector*>(w + k * kLanes);
#pragma GCC unroll 8
        for (int p = 0; p < Pixels; ++p) sums[p] += tap * get(p * Stride + k);
      }
    }
  }
}

template <class Format, int Pixels, int Width, int Stride, bool IsEdge>
void compute_depthwise(const DepthwiseCall<Format>& call) {
  const auto compute = [&](int lanes) __attribute__((always_inline)) {
    Vector sums[Pixels];
    const Vector bias = call.bias ? load(call.bias + call.channel, lanes) : Vector{};
#pragma GCC unroll 8
    for (int p = 0; p < Pixels; ++p) sums[p] = bias;
    sum_taps<Format, Pixels, Width, Stride, IsEdge>(call, lanes, sums);
    if (call.activation == kRelu)
#pragma GCC unroll 8
      for (int p = 0; p < Pixels; ++p) sums[p] = relu(sums[p]);
    else if (call.activation)
      activate(sums, Pixels, call.activation);
#pragma GCC unroll 8
    for (int p = 0; p < Pixels; ++p) store_real<Format>(call.out + p * call.out_pixel, sums[p], lanes, call.of_out);
  };
  if (call.lanes == kLanes)
    compute(kLanes);
  else
    compute(call.lanes);
}

template <class Format>
using DepthwiseFunction = void (*)(const DepthwiseCall<Format>&);

template <class Format, int Width, int Stride, int... Less>
DepthwiseFunction<Format> choose_depthwise(int pixels, bool is_edge, std::integer_sequence<int, Less...>) {
  static constexpr DepthwiseFunction<Format> functions[2][kMostDepthwisePixels] = {
      {compute_depthwise<Format, Less + 1, Width, Stride, false>...},
      {compute_depthwise<Format, Less + 1, Width, Stride, true>...}};
  return functions[is_edge][pixels - 1];
}

template <class Format>
DepthwiseFunction<Format> depthwise_function(int pixels, int64_t width, int64_t stride, bool is_edge) {
  constexpr auto counts = std::make_integer_sequence<int, kMostDepthwisePixels>{};
  if (stride == 1) {
    if (width == 1) return choose_depthwise<Format, 1, 1>(pixels, is_edge, counts);
    if (width == 3) return choose_depthwise<Format, 3, 1>(pixels, is_edge, counts);
    if (width == 5) return choose_depthwise<Format, 5, 1>(pixels, is_edge, counts);
    return choose_depthwise<Format, 0, 1>(pixels, is_edge, counts);
  }
  if (width == 3) return choose_depthwise<Format, 3, 2>(pixels, is_edge, counts);
  if (width == 5) return choose_depthwise<Format, 5, 2>(pixels, is_edge, counts);
  return choose_depthwise<Format, 0, 2>(pixels, is_edge, counts);
}

template <class Format>
class DepthwiseRun {
  using Element = typename Format::Element;

 public:
  DepthwiseRun(const Layer& layer, int64_t threads) : layer(layer), threads(threads) {}

  void operator()(const Maps& maps) const {
    run(whole_map(false, maps.high, maps.out_high));
    if (layer.in_low) run(whole_map(true, maps.low, maps.out_low));
  }

  // The high or the low map, without its places.
  DepthwiseMap<Format> map(bool is_low) const {
    int64_t h = is_low ? low_size(layer.height) : layer.height, w = is_low ? low_size(layer.width) : layer.width;
    if (layer.pool_first) h = low_size(h), w = low_size(w);
    const int64_t channels = is_low ? layer.in_low : layer.in_high;
    return {{}, {}, is_low ? layer.weight_low : layer.weight_high, is_low ? layer.bias_low : layer.bias_high,
            channels, h, w, layer.out_size(h, 1), layer.out_size(w, 2), channels, channels,
            static_cast<Element>(kIsInt8<Format> ? layer.in_zero[is_low] : 0),
            quantum_of(layer.out_scale[is_low], layer.out_zero[is_low])};
  }

  // Rows [begin, end) of frames [first, last) of the result of one clip; `map` has frames from `first_frame` and
  // `first_out_frame` on. What a row of one vector of channels has read is still in the nearest cache for the frames after it.
  void compute(int64_t first, int64_t last, int64_t begin, int64_t end, const DepthwiseMap<Format>& map, int64_t first_frame,
               int64_t first_out_frame) const {
    const int64_t taps = layer.taps(), most = layer.kernel[0] * layer.kernel[1], frames = last - first;
    static thread_local std::vector<DepthwiseTile> tiles;
    static thread_local std::vector<DepthwiseRow<Format>> rows;
    static thread_local std::vector<int64_t> counts;
    set_tiles(map, &tiles);
    rows.resize((end - begin) * frames * most), counts.assign((end - begin) * frames, 0);
    for (int64_t y = begin; y < end; ++y)
      for (int64_t t = first; t < last; ++t) {
        const int64_t n = (y - begin) * frames + t - first;
        for (int64_t i = 0; i < layer.kernel[0]; ++i) {
          const int64_t frame = t * layer.stride[0] - layer.padding[0] + i * layer.dilation[0];
          if (frame < 0 || frame >= layer.frames) continue;
          for (int64_t j = 0; j < layer.kernel[1]; ++j) {
            const int64_t from = y * layer.stride[1] - layer.padding[1] + j * layer.dilation[1];
            if (from < 0 || from >= map.height) continue;
            const int64_t tap = (i * layer.kernel[1] + j) * layer.kernel[2];
            rows[n * most + counts[n]++] = {map.from.at(first_frame + frame, from), tap};
          }
        }
      }
    Element zeros[kLanes];
    std::fill_n(zeros, kLanes, map.zero);
    for (int64_t c = 0; c < map.channels; c += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, map.channels - c));
      for (int64_t y = begin; y < end; ++y)
        for (int64_t t = first; t < last; ++t) {
          const int64_t n = (y - begin) * frames + t - first;
          Element* const out = map.to.at(first_out_frame + t, y) + c;
          for (const DepthwiseTile& tile : tiles)
            tile.function({&rows[n * most], counts[n], tile.columns, map.pixel, map.out_pixel, c, layer.kernel[2],
                           map.weight + c * taps, map.bias, static_cast<float>(map.zero), zeros, lanes, layer.activation,
                           out + tile.first * map.out_pixel, map.of_out});
        }
    }
  }

 private:
  const Layer& layer;
  const int64_t threads;

  // Pixels side by side in a row of the result.
  struct DepthwiseTile {
    int64_t first;  // pixel
    DepthwiseFunction<Format> function;
    int64_t columns[2 * kMostDepthwisePixels + kMostKernelWidth];  // of what it reads, elements from a row's start; -1: padding
  };

  DepthwiseMap<Format> whole_map(bool is_low, const void* data, void* out) const {
    DepthwiseMap<Format> whole = map(is_low);
    const auto* from = static_cast<const Element*>(data);
    if (layer.pool_first) from = pooled(is_low, from, whole);
    const int64_t row = whole.width * whole.channels, out_row = whole.out_width * whole.channels;
    whole.from = {from, whole.height * row, row};
    whole.to = {static_cast<Element*>(out), whole.out_height * out_row, out_row};
    return whole;
  }

  const Element* pooled(bool is_low, const Element* data, const DepthwiseMap<Format>& half) const {
    const int64_t images = layer.clips * layer.frames, channels = half.channels;
    const int64_t h = is_low ? low_size(layer.height) : layer.height, w = is_low ? low_size(layer.width) : layer.width;
    Element* const memory = scratch<Element>(is_low ? kPooledLow : kPooledInput, images * half.height * half.width * channels);
    const PaddedMap<Format> to{memory, half.height, half.width, channels, 0, 0, half.height};
    parallel_for(threads, images, [&](int64_t image) {
      pool_rows<Format>(data + image * h * w * channels, h, w, channels, 0, half.height, 0.25f, to, image);
    });
    return memory;
  }

  void run(const DepthwiseMap<Format>& map) const {
    const int64_t frames = layer.out_size(layer.frames, 0), pixel = map.channels * kElement<Format>;
    const int64_t read = std::min(layer.kernel[0], layer.frames) * map.width * pixel * layer.stride[1];
    const int64_t rows = std::max<int64_t>(kDepthwiseStrip / std::max<int64_t>(read, 1), 4);
    const int64_t strips = (map.out_height + rows - 1) / rows;
    // A clip's frames share what they read where the kernel has an extent in time: one thread takes them in turn.
    const bool by_time = layer.kernel[0] > 1;
    const int64_t turns = by_time ? 1 : frames;
    parallel_for(threads, layer.clips * strips * turns, [&](int64_t unit) {
      const int64_t clip = unit / turns / strips, strip = unit / turns % strips, turn = unit % turns;
      const int64_t last = by_time ? frames : turn + 1;
      for (int64_t t = by_time ? 0 : turn; t < last; ++t)
        compute(t, t + 1, strip * rows, std::min((strip + 1) * rows, map.out_height), map,
                clip * layer.frames, clip * frames);
    });
  }

  void set_tiles(const DepthwiseMap<Format>& map, std::vector<DepthwiseTile>* tiles) const {
    const int64_t count = (map.out_width + kMostDepthwisePixels - 1) / kMostDepthwisePixels;
    tiles->resize(count);
    for (int64_t n = 0; n < count; ++n) {
      DepthwiseTile& tile = (*tiles)[n];
      tile.first = map.out_width * n / count;
      bool is_edge = false;
      const int pixels = static_cast<int>(map.out_width * (n + 1) / count - tile.first);
      for (int64_t i = 0; i < (pixels - 1) * layer.stride[2] + layer.kernel[2]; ++i) {
        const int64_t x = tile.first * layer.stride[2] - layer.padding[2] + i;
        tile.columns[i] = x >= 0 && x < map.width ? x * map.pixel : -1;
        is_edge |= tile.columns[i] < 0;
      }
      tile.function = depthwise_function<Format>(pixels, layer.kernel[2], layer.stride[2], is_edge);
    }
  }
};

}  // namespace
