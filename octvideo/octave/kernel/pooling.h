// Maps with padding, filled by copying or by pooling to half the size, and max pools.

#pragma once

#include <cstring>

#include "layer.h"
#include "vectors.h"

namespace {

int64_t low_size(int64_t size) { return (size + 1) / 2; }

// A map as a convolution reads it, from the corner of its padding on; steps are in elements.
template <class Format>
struct Source {
  const typename Format::Element* data;
  int64_t channels, pixel, row, frame;
  const typename Format::Element* pad_frame = nullptr;  // read before the first and after the last frame; null: nothing is
};

// Frames of rows of width + 2 side pixels, `pad` at the sides, so that pixels under a row of the kernel lie side by side.
// Of each frame only rows [first, first + rows) have a place. Rows in the padding above and below the map are there, and
// read, only if `has_outside`.
template <class Format>
struct PaddedMap {
  using Element = typename Format::Element;
  Element* data;  // row `first` of the first frame
  int64_t height, width, channels, side;
  int64_t first, rows;
  Element pad = 0;
  bool has_outside = false;

  int64_t row() const { return (width + 2 * side) * channels; }
  int64_t frame() const { return rows * row(); }
  Element* line(int64_t image, int64_t y) const { return data + image * frame() + (y - first) * row(); }
  Element* pixels(int64_t image, int64_t y) const { return line(image, y) + side * channels; }
  Source<Format> source(int64_t top) const { return {line(0, -top), channels, channels, row(), frame()}; }

  // fill(y, pixels of row y) of one image, for rows [begin, end) as far as the map has them.
  template <class Function>
  void fill_rows(int64_t image, int64_t begin, int64_t end, const Function& fill) const {
    for (int64_t y = has_outside ? begin : std::max<int64_t>(begin, 0); y < (has_outside ? end : std::min(end, height)); ++y) {
      Element* const row = pixels(image, y);
      if (y < 0 || y >= height) {
        std::fill_n(line(image, y), this->row(), pad);
        continue;
      }
      std::fill_n(row - side * channels, side * channels, pad);
      std::fill_n(row + width * channels, side * channels, pad);
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
// odd edge count twice, so that a scale of a quarter gives the mean of those that there are. Pixels are `step` elements
// apart, and the result's `pixel`.
template <class Format, class Element = typename Format::Element>
void pool_row(const Element* upper, const Element* lower, int64_t width, int64_t channels, int64_t step, float scale,
              Element* out, int64_t pixel) {
  const auto get = [](const Element* from, int lanes) __attribute__((always_inline)) { return Format::load_raw(from, lanes); };
  for (int64_t x = 0; x < width; x += 2, out += pixel) {
    const bool pair = x + 1 < width;
    const Element *a = upper + x * step, *b = pair ? a + step : a;
    const Element *c = lower + x * step, *d = pair ? c + step : c;
    each_vector(channels, [&](int64_t n, int lanes) __attribute__((always_inline)) {
      const Vector sum = (get(a + n, lanes) + get(b + n, lanes)) + (get(c + n, lanes) + get(d + n, lanes));
      Format::store_raw(out + n, sum * scale, lanes);
    });
  }
}

// Rows [begin, end) of an image of half the size of `frame`, as far as it has them: the first channels of `to`. `low`, of
// that size, has its other ones, if any. Gaps are between pixels of both.
template <class Format>
void pool_rows(const typename Format::Element* frame, int64_t height, int64_t width, int64_t channels, int64_t begin,
               int64_t end, float scale, const PaddedMap<Format>& to, int64_t image, int64_t gap = 0,
               const typename Format::Element* low = nullptr, int64_t low_gap = 0) {
  const int64_t pixel = channels + gap, row = width * pixel, low_channels = to.channels - channels;
  const int64_t low_pixel = low_channels + low_gap;
  to.fill_rows(image, begin, end, [&](int64_t y, typename Format::Element* out) {
    const auto* upper = frame + 2 * y * row;
    pool_row<Format>(upper, 2 * y + 1 < height ? upper + row : upper, width, channels, pixel, scale, out, to.channels);
    if (low_channels)
      for (int64_t x = 0; x < to.width; ++x)
        std::memcpy(out + x * to.channels + channels, low + (y * to.width + x) * low_pixel, low_channels * sizeof *out);
  });
}

// Rows [begin, end) of an image of the size of `frame`, as far as it has them. `gap`: between pixels of `frame`.
template <class Format>
void copy_rows(const typename Format::Element* frame, int64_t begin, int64_t end, const PaddedMap<Format>& to, int64_t image,
               int64_t gap = 0) {
  const int64_t pixel = to.channels + gap, row = to.width * pixel;
  to.fill_rows(image, begin, end, [&](int64_t y, typename Format::Element* out) {
    const auto* from = frame + y * row;
    if (!gap) {
      std::memcpy(out, from, row * sizeof *out);
      return;
    }
    for (int64_t x = 0; x < to.width; ++x, from += pixel, out += to.channels)
      each_vector(to.channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
        Format::store_raw(out + c, Format::load_raw(from + c, lanes), lanes);
      });
  });
}

// The greater one, or NaN, as torch's pools have it.
[[gnu::always_inline]] inline Vector greater(Vector best, Vector value) {
  return (value > best) | (value != value) ? value : best;
}

// One row of a max pool, from the `count` rows under its windows.
template <class Format, class Element = typename Format::Element>
void max_pool_row(const Layer& layer, const Element* rows, int64_t count, int64_t width, int64_t channels, Element* out) {
  const int64_t pooled_width = layer.max_pooled(width, 1), row = width * channels;
  for (int64_t x = 0; x < pooled_width; ++x, out += channels) {
    const int64_t start = x * layer.pool_stride[1] - layer.pool_padding[1];
    const int64_t begin = std::max<int64_t>(start, 0), end = std::min(start + layer.pool_window[1], width);
    each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      Vector best = Format::load_raw(rows + begin * channels + c, lanes);
      for (int64_t y = 0; y < count; ++y)
        for (int64_t i = begin; i < end; ++i)
          best = greater(best, Format::load_raw(rows + y * row + i * channels + c, lanes));
      Format::store_raw(out + c, best, lanes);
    });
  }
}

}  // namespace
