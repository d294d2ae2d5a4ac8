// Maps with padding, filled by copying or by pooling to half the size, and max pools.

#pragma once

#include <cstring>

#include "layer.h"
#include "vectors.h"

namespace {

int64_t low_size(int64_t size) { return (size + 1) / 2; }

// A map as a convolution reads it, from the corner of its padding on; steps are in elements.
struct Source {
  const float* data;
  int64_t channels, pixel, row, frame;
};

// Frames of rows of width + 2 side pixels, zero at the sides, so that pixels under a row of the kernel lie side by side.
// Rows in the padding above and below the map are never read. Of each frame only rows [first, first + rows) have a place.
struct PaddedMap {
  float* data;  // row `first` of the first frame
  int64_t height, width, channels, side;
  int64_t first, rows;

  int64_t row() const { return (width + 2 * side) * channels; }
  int64_t frame() const { return rows * row(); }
  float* line(int64_t image, int64_t y) const { return data + image * frame() + (y - first) * row(); }
  float* pixels(int64_t image, int64_t y) const { return line(image, y) + side * channels; }
  Source source(int64_t top) const { return {line(0, -top), channels, channels, row(), frame()}; }

  // fill(y, pixels of row y) of one image, for rows [begin, end) as far as the map has them.
  template <class Function>
  void fill_rows(int64_t image, int64_t begin, int64_t end, const Function& fill) const {
    for (int64_t y = std::max<int64_t>(begin, 0); y < std::min(end, height); ++y) {
      float* const row = pixels(image, y);
      std::fill_n(row - side * channels, side * channels, 0.0f);
      std::fill_n(row + width * channels, side * channels, 0.0f);
      fill(y, row);
    }
  }
};

// fn(channel, lanes) for all channels, in vectors.
template <class Function>
[[gnu::always_inline]] inline void each_vector(int64_t channels, const Function& fn) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) fn(c, kLanes);
  if (c < channels) fn(c, static_cast<int>(channels - c));
}

// One row of a map of half the size, from one or two rows: sums of blocks of two by two pixels, times `scale`. Pixels at an
// odd edge count twice, so that a scale of a quarter gives the mean of those that there are.
void pool_row(const float* upper, const float* lower, int64_t width, int64_t channels, float scale, float* out) {
  for (int64_t x = 0; x < width; x += 2, out += channels) {
    const bool pair = x + 1 < width;
    const float *a = upper + x * channels, *b = pair ? a + channels : a;
    const float *c = lower + x * channels, *d = pair ? c + channels : c;
    each_vector(channels, [&](int64_t n, int lanes) __attribute__((always_inline)) {
      const Vector sum = (load(a + n, lanes) + load(b + n, lanes)) + (load(c + n, lanes) + load(d + n, lanes));
      store(out + n, sum * scale, lanes);
    });
  }
}

// Rows [begin, end) of an image of half the size of `frame`, as far as it has them.
void pool_rows(const float* frame, int64_t height, int64_t width, int64_t begin, int64_t end, float scale,
               const PaddedMap& to, int64_t image) {
  const int64_t row = width * to.channels;
  to.fill_rows(image, begin, end, [&](int64_t y, float* out) {
    const float* upper = frame + 2 * y * row;
    pool_row(upper, 2 * y + 1 < height ? upper + row : upper, width, to.channels, scale, out);
  });
}

// Rows [begin, end) of an image of the size of `frame`, as far as it has them.
void copy_rows(const float* frame, int64_t begin, int64_t end, const PaddedMap& to, int64_t image) {
  const int64_t row = to.width * to.channels;
  to.fill_rows(image, begin, end, [&](int64_t y, float* out) { std::memcpy(out, frame + y * row, row * sizeof(float)); });
}

// The greater one, or NaN, as torch's pools have it.
[[gnu::always_inline]] inline Vector greater(Vector best, Vector value) {
  return (value > best) | (value != value) ? value : best;
}

// One row of a max pool, from the `count` rows under its windows.
void max_pool_row(const Layer& layer, const float* rows, int64_t count, int64_t width, int64_t channels, float* out) {
  const int64_t pooled_width = layer.max_pooled(width, 1), row = width * channels;
  for (int64_t x = 0; x < pooled_width; ++x, out += channels) {
    const int64_t start = x * layer.pool_stride[1] - layer.pool_padding[1];
    const int64_t begin = std::max<int64_t>(start, 0), end = std::min(start + layer.pool_window[1], width);
    each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      Vector best = load(rows + begin * channels + c, lanes);
      for (int64_t y = 0; y < count; ++y)
        for (int64_t i = begin; i < end; ++i) best = greater(best, load(rows + y * row + i * channels + c, lanes));
      store(out + c, best, lanes);
    });
  }
}

}  // namespace
