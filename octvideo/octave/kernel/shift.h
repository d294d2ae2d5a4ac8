// Temporal shift: some channels of each frame come from its neighbours in time, and are 0 at the ends of a clip.

#pragma once

#include "activation.h"
#include "layer.h"
#include "pooling.h"

namespace {

template <class Format>
void run_shift(const Layer& layer, const Maps& maps, int64_t threads) {
  using Element = typename Format::Element;
  parallel_for(threads, layer.clips * layer.frames, [&](int64_t image) {
    const int64_t frame = image % layer.frames;
    for (int which = 0; which < (layer.in_low ? 2 : 1); ++which) {
      const int64_t channels = which ? layer.in_low : layer.in_high;
      const int64_t pixels = which ? low_size(layer.height) * low_size(layer.width) : layer.height * layer.width;
      const auto* const x = static_cast<const Element*>(which ? maps.low : maps.high) + image * pixels * channels;
      auto* const out = static_cast<Element*>(which ? maps.out_low : maps.out_high) + image * pixels * channels;
      const Quantum of_x = quantum_of(layer.in_scale[which], layer.in_zero[which]);
      const Quantum of_out = quantum_of(layer.out_scale[which], layer.out_zero[which]);
      // Of a run of each pixel's channels, from the frame that lies so many elements away.
      const auto take = [&](int64_t first, int64_t count, int64_t away, bool is_there) {
        for (int64_t at = first; at < pixels * channels; at += channels)
          each_vector(count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            const Vector value = is_there ? load_real<Format>(x + away + at + c, lanes, of_x) : Vector{};
            store_real<Format>(out + at + c, value, lanes, of_out);
          });
      };
      const int64_t next = layer.from_next[which], shifted = next + layer.from_previous[which];
      take(shifted, channels - shifted, 0, true);
      take(0, next, pixels * channels, frame + 1 < layer.frames);
      take(next, shifted - next, -pixels * channels, frame > 0);
    }
  });
}

}  // namespace
