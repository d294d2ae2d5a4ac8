// Ordinary and octave convolutions, each with its bias, residual, activation, pooling and upsampling in the same pass over the
// maps:
//
//   y_high = activation(conv(x_high) + upsample(conv(x_low)) + residual_high)
//   y_low  = activation(conv(pool(x_high)) + conv(x_low) + residual_low)
//
// A layer runs strip by strip, or one map after the other. A strip (convolution.h) is cut into tiles (tiles.h). Tiles of
// y_high get the upsampled low part, with the bias in it, and stay in registers until residual and activation are done.
// x_high is pooled when it is read for y_high, so that it comes out of a cache the second time. Where the kernel has a width,
// maps are first copied into ones with padding (pooling.h).

#pragma once

#include <utility>
#include <vector>

#include "convolution.h"

namespace {

// From the start of a frame of the addend to what each pixel of a result gets: of a map of half the size (rounded up), which
// is upsampled, or of one of the result's own size.
const int32_t* addend_offsets(int64_t height, int64_t width, int64_t pixel, bool is_half) {
  static thread_local std::vector<int32_t> kept[2];
  std::vector<int32_t>& offsets = kept[is_half];
  offsets.resize(height * width);
  const int step = static_cast<int>(pixel), row = static_cast<int>(is_half ? low_size(width) : width) * step;
  int32_t* offset = offsets.data();
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) *offset++ = (y >> is_half) * row + (x >> is_half) * step;
  return offsets.data();
}

// One layer and its maps: the plan that two runners share.
template <class Format>
class LayerRun {
  using Element = typename Format::Element;

 public:
  LayerRun(const Layer& layer, const Maps& maps, int64_t threads)
      : layer(layer), maps(maps), threads(threads), high(static_cast<const Element*>(maps.high)), height(layer.height), width(layer.width) {
    if (layer.pool_first) pool_input();
    half_height = low_size(height), half_width = low_size(width);
    size = geometry(height, width), half_size = geometry(half_height, half_width);
    kept = {static_cast<Element*>(maps.out_pooled), half_height, half_width, layer.in_high, 0, 0, half_height};
    low_conv.order = k_low(layer);
    pools_in_place = pools_high && kept.data && top == 0 && side == 0 && !joins();
    plan_convolutions();
    if (layer.adds_from_low) plan_addends();
  }

  void operator()() {
    if (fits_strips())
      run_strips();
    else
      run_maps();
  }

 private:
  const Layer& layer;
  const Maps& maps;
  const int64_t threads;
  const int64_t images = layer.clips * layer.frames;
  const bool has_space = layer.kernel[1] * layer.kernel[2] > 1;  // maps are copied into ones with padding
  const bool has_time = layer.kernel[0] > 1;
  const int64_t top = has_space ? layer.padding[1] : 0, side = has_space ? layer.padding[2] : 0;
  const bool gives_low = layer.outs_low > 0, pools_high = gives_low && layer.low_reads_high;
  const Element* high;              // x_high; in a layer that pools first, pooled
  int64_t high_gap = layer.in_gap[0];
  int64_t height, width;            // of `high`
  int64_t half_height, half_width;
  Geometry size, half_size;         // of convolutions at the size of `high`, and at half of it
  PaddedMap<Format> kept;                   // where the caller wants what is pooled of `high`
  bool pools_in_place;              // it is pooled to there at once; else it is copied from a map with padding
  std::vector<Block> high_blocks, low_blocks, from_low_blocks;
  Convolution<Format> high_conv{}, low_conv{};  // to y_high and y_low
  Convolution<Format> from_low_conv{};          // from x_low; its result is added to the sums of the others

  Geometry geometry(int64_t h, int64_t w) const {
    return {layer.clips, layer.frames, h, w, layer.out_size(layer.frames, 0), layer.out_size(h, 1), layer.out_size(w, 2)};
  }

  static Source<Format> plain(const void* data, int64_t h, int64_t w, int64_t channels, int64_t gap = 0) {
    const int64_t pixel = channels + gap;
    return {static_cast<const Element*>(data), channels, pixel, w * pixel, h * w * pixel};
  }
  int64_t high_pixel() const { return layer.in_high + high_gap; }
  int64_t low_pixel() const { return layer.in_low + layer.in_gap[1]; }

  // Whether y_low's convolution reads what is pooled and x_low as one map, and the channels of that.
  bool joins() const { return low_conv.order.joins; }
  int64_t pooled_channels() const { return layer.in_high + (joins() ? layer.in_low : 0); }

  // The element that stands for zero, in the high or the low map.
  Element zero(bool of_low) const { return static_cast<Element>(kIsInt8<Format> ? layer.in_zero[of_low] : 0); }

  // Whether rows in the padding above and below maps must be there: where zeros there count, or tiles span rows.
  bool has_outside() const {
    return has_space && (zero(false) || zero(true) || (uses_tiles && layer.format != kFloat32));
  }

  PaddedMap<Format> padded(Scratch which, int64_t frames, int64_t h, int64_t w, int64_t channels, int64_t first,
                           int64_t rows, bool of_low = false) const {
    Element* data = scratch<Element>(which, frames * rows * (w + 2 * side) * channels);
    return {data, h, w, channels, side, first, rows, zero(of_low), has_outside()};
  }

  PaddedMap<Format> padded(Scratch which, int64_t h, int64_t w, int64_t channels, bool of_low = false) const {
    return has_outside() ? padded(which, images, h, w, channels, -top, h + 2 * top, of_low)
                         : padded(which, images, h, w, channels, 0, h, of_low);
  }

  // What frames before the first and after the last one hold, for layers whose zeros count: more than a frame's elements.
  void set_pad_frame(Convolution<Format>& conv, int source, bool of_low) const {
    if (!kIsInt8<Format> || !zero(of_low) || !layer.padding[0]) return;
    Source<Format>& x = conv.sources[source];
    const int64_t count = x.row * (conv.size.height + 2 * top + 1);
    Element* const frame = scratch<Element>(of_low ? kPadFrameLow : kPadFrameHigh, count);
    std::fill_n(frame, count, zero(of_low));
    x.pad_frame = frame;
  }

  const Element* high_frame(int64_t image) const { return high + image * height * width * high_pixel(); }

  void pool_input() {
    const int64_t h = low_size(height), w = low_size(width);
    const PaddedMap<Format> to{scratch<Element>(kPooledInput, images * h * w * layer.in_high), h, w, layer.in_high, 0, 0, h};
    parallel_for(threads, images, [&](int64_t image) {
      pool_rows<Format>(high_frame(image), height, width, layer.in_high, 0, h, 0.25f, to, image, high_gap);
    });
    high = to.data, high_gap = 0, height = h, width = w;
  }

  // x_low as y_high's convolution reads it, and as y_low's does: in a layer that pools first, pooled.
  std::pair<Source<Format>, Source<Format>> low_sources() const {
    const int64_t h = layer.pool_first ? height : half_height, w = layer.pool_first ? width : half_width;
    const int64_t frame = h * w * low_pixel();
    const bool pools = layer.low_reads_low && layer.pool_first;
    const Element* const low = static_cast<const Element*>(maps.low);
    Source<Format> for_high = plain(low, h, w, layer.in_low, layer.in_gap[1]);
    if (has_space && (layer.adds_from_low || layer.high_reads_low || (layer.low_reads_low && !pools && !joins()))) {
      const PaddedMap<Format> to = padded(kPaddedLow, h, w, layer.in_low, true);
      parallel_for(threads, images, [&](int64_t image) {
        copy_rows<Format>(low + image * frame, -top, h + top, to, image, layer.in_gap[1]);
      });
      for_high = to.source(top);
    }
    if (!pools) return {for_high, for_high};
    const PaddedMap<Format> to = padded(kPooledLow, half_height, half_width, layer.in_low, true);
    parallel_for(threads, images, [&](int64_t image) {
      pool_rows<Format>(low + image * frame, h, w, layer.in_low, -top, half_height + top, 0.25f, to, image, layer.in_gap[1]);
    });
    return {for_high, to.source(top)};
  }

  // The runners set the sources that are copied or pooled of `high`.
  void plan_convolutions() {
    const auto [low_for_high, low_for_low] = low_sources();
    high_conv.order = k_high(layer), from_low_conv.order = k_from_low(layer);
    high_blocks = blocks_of(layer.outs_high, high_conv.words(), high_conv.order.by_tiles);
    low_blocks = blocks_of(layer.outs_low, low_conv.words(), low_conv.order.by_tiles);
    from_low_blocks = blocks_of(layer.outs_from_low(), from_low_conv.words(), from_low_conv.order.by_tiles);

    high_conv.layer = low_conv.layer = from_low_conv.layer = &layer;
    high_conv.activation = low_conv.activation = layer.activation;
    high_conv.size = size, low_conv.size = from_low_conv.size = half_size;
    high_conv.blocks = &high_blocks, low_conv.blocks = &low_blocks, from_low_conv.blocks = &from_low_blocks;
    high_conv.index = 1, low_conv.index = 2;
    high_conv.has_outside = low_conv.has_outside = from_low_conv.has_outside = has_outside();

    high_conv.sources[high_conv.num_sources++] = plain(high, height, width, layer.in_high, high_gap);
    if (layer.high_reads_low) high_conv.sources[high_conv.num_sources++] = low_for_high;
    high_conv.weight = layer.weight_high, high_conv.bias = layer.bias_high, high_conv.scale = layer.scale_high;
    high_conv.residual = static_cast<const Element*>(maps.residual_high);
    high_conv.out = maps.out_high, high_conv.outs = layer.outs_high, high_conv.gap = layer.out_gap[0];
    set_quanta(high_conv, 0);

    if (pools_high) ++low_conv.num_sources;
    if (gives_low && layer.low_reads_low && !layer.shares_low && !joins()) low_conv.sources[low_conv.num_sources++] = low_for_low;
    low_conv.weight = layer.weight_low, low_conv.bias = layer.bias_low, low_conv.scale = layer.scale_low;
    low_conv.residual = static_cast<const Element*>(maps.residual_low);
    low_conv.out = maps.out_low, low_conv.outs = layer.outs_low, low_conv.gap = layer.out_gap[1];
    set_quanta(low_conv, 1);

    from_low_conv.sources[from_low_conv.num_sources++] = low_for_high;
    from_low_conv.weight = layer.weight_from_low, from_low_conv.outs = layer.outs_from_low();
    from_low_conv.scale = layer.scale_from_low, from_low_conv.out_is_float = true;
    from_low_conv.gap = kLine / sizeof(float);  // else pixels of many channels would share few of a cache's sets
    from_low_conv.next = &high_conv;
    if (gives_low) high_conv.next = &low_conv;
  }

  void set_quanta(Convolution<Format>& conv, int map) const {
    if (!kIsInt8<Format>) return;
    conv.of_residual = quantum_of(layer.residual_scale[map], layer.residual_zero[map]);
    conv.of_out = quantum_of(layer.out_scale[map], layer.out_zero[map]);
  }

  // After the runners have set the sources.
  void set_pad_frames() {
    set_pad_frame(high_conv, 0, false);
    if (layer.high_reads_low) set_pad_frame(high_conv, 1, true);
    if (layer.adds_from_low) set_pad_frame(from_low_conv, 0, true);
    if (pools_high) set_pad_frame(low_conv, 0, false);
    if (low_conv.num_sources > pools_high) set_pad_frame(low_conv, pools_high, true);
  }

  int64_t from_low_row() const { return half_size.out_width * (from_low_conv.outs + from_low_conv.gap); }
  int64_t from_low_frame() const { return half_size.out_height * from_low_row(); }

  void plan_addends() {
    float* bias = scratch<float>(kBias, from_low_conv.outs);
    std::fill_n(bias, from_low_conv.outs, 0.0f);
    if (layer.bias_high) std::copy_n(layer.bias_high, layer.outs_high, bias);
    if (layer.shares_low && layer.bias_low) std::copy_n(layer.bias_low, layer.outs_low, bias + layer.outs_high);
    from_low_conv.bias = bias;
    const int64_t pixel = from_low_conv.outs + from_low_conv.gap;
    high_conv.addend = {nullptr, from_low_frame(), addend_offsets(size.out_height, size.out_width, pixel, true)};
    if (layer.shares_low)
      low_conv.addend = {nullptr, from_low_frame(),
                         addend_offsets(half_size.out_height, half_size.out_width, pixel, false)};
  }

  // Rows [begin, end) of what y_low's convolution reads of an image of `high`, with those in the padding around them.
  void pool_high_rows(int64_t image, int64_t begin, int64_t end, const PaddedMap<Format>& to, int64_t to_image) const {
    const Element* const low = joins() ? static_cast<const Element*>(maps.low) + image * half_height * half_width * low_pixel()
                                       : nullptr;
    pool_rows<Format>(high_frame(image), height, width, layer.in_high, begin - top, end + top,
                      layer.pools_sums ? 1.0f : 0.25f, to, to_image, high_gap, low, layer.in_gap[1]);
    if (!kept.data || pools_in_place) return;
    for (int64_t y = begin; y < std::min(end, half_height); ++y) {
      const Element* from = to.pixels(to_image, y);
      Element* copy = kept.pixels(image, y);
      for (int64_t x = 0; x < half_width; ++x, from += to.channels, copy += layer.in_high)
        std::copy_n(from, layer.in_high, copy);
    }
  }

  bool keeps_size() const {
    // A strided layer may, by much padding, but then does not at half the size.
    return layer.stride[0] * layer.stride[1] * layer.stride[2] == 1 && size.out_frames == layer.frames &&
           size.out_height == height && size.out_width == width;
  }

  // A thread computes whole frames of a strip in turn where the kernel has an extent in time.
  int64_t strips_per_turn() const { return has_time ? size.out_frames : 1; }

  // Whether all weights stay in the cache, and an output frame reads the input frame of its index: what is pooled, upsampled
  // and copied then never leaves the cache. A kernel with an extent in time needs pooled strips of several frames, so that
  // one thread computes a strip's frames in turn.
  bool fits_strips() const {
    const int64_t weights =
        layer.taps() * (layer.in_high + layer.in_low) * (layer.outs_high + layer.outs_low) * kElement<Format>;
    if (!keeps_size() || layer.has_max_pool() || weights > kCachedWeights || (has_space && has_time)) return false;
    return !has_time || high_conv.strips().count() / strips_per_turn() >= 2 * threads;
  }

  void run_strips() {
    const Strips strips = high_conv.strips();
    if (has_space) high_conv.sources[0] = padded_strip(strips, 0).source(top);
    if (pools_high) low_conv.sources[0] = pooled_strip(strips, 0).source(top);
    if (has_space) high_conv.sources[0].frame = 0;
    if (pools_high && !pools_in_place && !has_time) low_conv.sources[0].frame = 0;
    set_pad_frames();
    const int64_t per_turn = strips_per_turn();
    parallel_for(threads, strips.count() / per_turn, [&](int64_t turn) {
      int64_t pooled_frames = 0;
      for (int64_t n = turn * per_turn; n < (turn + 1) * per_turn; ++n) run_strip(strips, n, &pooled_frames);
    });
  }

  // Strips take turns in one place of a thread's memory, which stays in the cache.
  PaddedMap<Format> padded_strip(const Strips& strips, int64_t begin) const {
    return padded(kPaddedHigh, 1, height, width, layer.in_high, begin - top, strips.rows + 2 * top);
  }

  PaddedMap<Format> pooled_strip(const Strips& strips, int64_t begin) const {
    if (pools_in_place) return kept;
    return padded(kPooledHigh, has_time ? layer.frames : 1, half_height, half_width, pooled_channels(), begin / 2 - top,
                  low_size(strips.rows) + 2 * top);
  }

  // Strip n of both results. `pooled_frames`: of how many frames these rows have been pooled in this turn.
  void run_strip(const Strips& strips, int64_t n, int64_t* pooled_frames) const {
    const Strip strip = strips[n], half = strip.at_half_size();
    const int64_t count = strips.count(), image = strip.clip * size.frames + strip.t;
    Local<Format> at_high, at_low;
    Prefetch high_prefetch, low_prefetch;
    // The rows in the padding above a strip have been read for the strip before it.
    const Source<Format> map = plain(high + top * width * high_pixel(), height, width, layer.in_high, high_gap);
    high_conv.prefetch_map(map, strips, n, count, &high_prefetch);
    high_prefetch.next_out = high_conv.next_out(strips, n, count);
    if (pools_high) {
      const PaddedMap<Format> to = pooled_strip(strips, strip.begin);
      const int64_t end = has_time ? std::min(strip.t + high_conv.frames_ahead(), size.frames) : strip.t + 1;
      for (int64_t t = has_time ? *pooled_frames : strip.t; t < end; ++t) {
        const int64_t from = strip.clip * size.frames + t;
        pool_high_rows(from, half.begin, half.end, to, pools_in_place ? from : has_time ? t : 0);
      }
      *pooled_frames = end;
      if (!pools_in_place) at_low.source = to.source(top).data;
    }
    if (has_space) {
      const PaddedMap<Format> to = padded_strip(strips, strip.begin);
      copy_rows<Format>(high_frame(image), strip.begin - top, strip.end + top, to, 0, high_gap);
      at_high.source = to.source(top).data;
    }
    if (layer.adds_from_low) {
      float* frame = scratch<float>(kFromLow, low_size(strips.rows) * from_low_row()) - half.begin * from_low_row();
      Convolution<Format> conv = from_low_conv;
      conv.out_is_cached = true;
      conv.out = frame - image * from_low_frame();
      Prefetch prefetch;
      if (!conv.has_space()) conv.prefetch_map(conv.sources[0], strips, n, count, &prefetch, true);
      conv.compute_strip(half, {}, prefetch);
      at_high.addend = frame;
      if (layer.shares_low) at_low.addend = frame + layer.outs_high;
    }
    high_conv.compute_strip(strip, at_high, high_prefetch);
    if (!gives_low) return;
    low_prefetch.next_out = low_conv.next_out(strips, n, count, true);
    low_conv.compute_strip(half, at_low, low_prefetch);
  }

  // One whole map after the other.
  void run_maps() {
    if (layer.adds_from_low) {
      float* const added = scratch<float>(kFromLow, half_size.clips * half_size.out_frames * from_low_frame());
      from_low_conv.out = added;
      set_pad_frame(from_low_conv, 0, true);
      compute_all(from_low_conv, threads);
      high_conv.addend.data = added;
      if (layer.shares_low) low_conv.addend.data = added + layer.outs_high;
    }
    PaddedMap<Format> pooled = kept, copy{};
    if (pools_high && !pools_in_place) pooled = padded(kPooledHigh, half_height, half_width, pooled_channels());
    if (pools_high) low_conv.sources[0] = pooled.source(top);
    if (has_space) copy = padded(kPaddedHigh, height, width, layer.in_high), high_conv.sources[0] = copy.source(top);
    set_pad_frames();
    const bool pools_while_read = pools_high && keeps_size() && !has_space;
    const bool pools_before = pools_high && !pools_while_read;
    parallel_for(threads, has_space || pools_before ? images : 0, [&](int64_t image) {
      if (has_space) copy_rows<Format>(high_frame(image), -top, height + top, copy, image, high_gap);
      if (pools_before) pool_high_rows(image, 0, half_height, pooled, image);
    });
    if (layer.has_max_pool())
      compute_max_pooled(high_conv, threads);
    else
      compute_all(high_conv, threads, [&](const Strip& strip) {
        const int64_t image = strip.clip * layer.frames + strip.t;
        if (pools_while_read) pool_high_rows(image, strip.begin / 2, low_size(strip.end), pooled, image);
      });
    if (gives_low) compute_all(low_conv, threads);
  }
};

// A layer of groups of channels, one after the other: each is a layer whose pixels lie apart.
template <class Format>
void run_in_groups(const Layer& layer, const Maps& maps, int64_t threads) {
  if (layer.groups <= 1) return LayerRun<Format>(layer, maps, threads)();
  using Element = typename Format::Element;
  Layer group = layer;
  group.groups = 1;
  for (int64_t* channels : {&group.in_high, &group.in_low, &group.outs_high, &group.outs_low}) *channels /= layer.groups;
  group.in_gap[0] = layer.in_high - group.in_high, group.in_gap[1] = layer.in_low - group.in_low;
  group.out_gap[0] = layer.outs_high - group.outs_high, group.out_gap[1] = layer.outs_low - group.outs_low;
  const int64_t words[] = {words_of_weight(k_high(group), group.outs_high),
                           words_of_weight(k_from_low(group), group.outs_from_low()),
                           words_of_weight(k_low(group), group.outs_low)};
  const auto part = [](const float* data, int64_t first) { return data ? data + first : nullptr; };
  const auto channels = [](const void* map, int64_t first) {
    return map ? const_cast<Element*>(static_cast<const Element*>(map) + first) : nullptr;
  };
  for (int64_t n = 0; n < layer.groups; ++n) {
    const int64_t out_high = n * group.outs_high, out_low = n * group.outs_low, from_low = n * group.outs_from_low();
    group.weight_high = part(layer.weight_high, n * words[0]), group.bias_high = part(layer.bias_high, out_high);
    group.weight_from_low = part(layer.weight_from_low, n * words[1]), group.bias_low = part(layer.bias_low, out_low);
    group.weight_low = part(layer.weight_low, n * words[2]), group.scale_high = part(layer.scale_high, out_high);
    group.scale_from_low = part(layer.scale_from_low, from_low), group.scale_low = part(layer.scale_low, out_low);
    const Maps own{channels(maps.high, n * group.in_high), channels(maps.low, n * group.in_low),
                   channels(maps.residual_high, out_high), channels(maps.residual_low, out_low), nullptr,
                   channels(maps.out_high, out_high), channels(maps.out_low, out_low), nullptr};
    LayerRun<Format>(group, own, threads)();
  }
}

}  // namespace
