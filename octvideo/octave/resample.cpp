// Between the two resolutions, for maps that are channels last: (images, height, width, channels), both sizes even on the
// larger side. One pass over each map.

#include "vectors.h"

extern "C" {

// low (images, height, width, channels) = scale * the sum of each block of four pixels of high, twice as high and wide.
void sum_blocks(const float* high, float* low, int64_t images, int64_t height, int64_t width, int64_t channels, float scale,
                int64_t threads) {
  const int64_t row = 2 * width * channels;  // of high
  parallel_for(threads, images * height, [=](int64_t n) {
    const float* __restrict__ upper = high + 2 * n * row;
    const float* __restrict__ lower = upper + row;
    float* __restrict__ to = low + n * width * channels;
    for (int64_t x = 0; x < width; ++x, upper += 2 * channels, lower += 2 * channels, to += channels)
      for (int64_t c = 0; c < channels; ++c)
        to[c] = scale * (upper[c] + upper[channels + c] + (lower[c] + lower[channels + c]));
  });
}

// high = base + scale * each pixel of low (images, height, width, channels) four times; base may be null. Low's pixels are
// `step` numbers apart.
void add_blocks(const float* low, const float* base, float* high, int64_t images, int64_t height, int64_t width,
                int64_t channels, int64_t step, float scale, int64_t threads) {
  const int64_t row = 2 * width * channels;
  parallel_for(threads, images * height, [=](int64_t n) {
    for (int64_t y = 2 * n; y < 2 * n + 2; ++y) {
      const float* __restrict__ from = low + n * width * step;
      const float* __restrict__ under = base ? base + y * row : nullptr;
      float* __restrict__ to = high + y * row;
      for (int64_t x = 0; x < 2 * width; ++x, to += channels) {
        const float* __restrict__ pixel = from + x / 2 * step;
        if (under) {
          for (int64_t c = 0; c < channels; ++c) to[c] = under[c] + scale * pixel[c];
          under += channels;
        } else {
          for (int64_t c = 0; c < channels; ++c) to[c] = scale * pixel[c];
        }
      }
    }
  });
}

}  // extern "C"
