// One convolution of a layer: which tiles a strip of its result has and what they read, and its whole result.

#pragma once

#include <cstring>
#include <iterator>
#include <vector>

#include "memory.h"
#include "strips.h"
#include "amx.h"

namespace {

// Bytes that a core keeps close: more weights are read block by block over the whole map, and maps in strips of so much.
constexpr int64_t kCachedWeights = 512 * 1024, kCachedStrip = 256 * 1024;

// Where one block's weights are more than a cache holds beside the maps, parts of them serve all pixels in turn. Where a
// block is smaller, reading the maps once for each part costs more than that saves. Sums that wait in the result for the
// other parts must be float32.
constexpr int64_t kLargeBlock = 768 * 1024, kPart = 128 * 1024;

struct Geometry {
  int64_t clips, frames, height, width;  // of the map that is read
  int64_t out_frames, out_height, out_width;
};

// Rows [begin, end) of a weight: a part of the sums.
struct KRange {
  int64_t begin, end;
};

// What comes into the cache while a strip is computed.
struct Prefetch {
  const void* data = nullptr;  // read next; null: nothing
  int64_t per_pixel = 0;       // so many bytes for each pixel
  int64_t first_pixel = 0;     // of the strip, in its frame
  int64_t next_out = 0;        // bytes from this strip of the result to the next one; 0: unknown
};

// Where the maps of a strip are, if not in the layer's maps: in memory of the thread that computes it.
template <class Format>
struct Local {
  const typename Format::Element* source = nullptr;  // the first frame of the first source
  const float* addend = nullptr;                     // the frame of the addend
};

// A map that is added to sums, frame by frame; the bias is in it.
struct Addend {
  const float* data = nullptr;
  int64_t frame = 0;                 // step between frames
  const int32_t* offsets = nullptr;  // in a frame, of what each pixel of the result gets
};

template <class Format>
struct Convolution {
  using Element = typename Format::Element;
  const Layer* layer;
  Geometry size;
  Source<Format> sources[2];  // their channels are joined
  int num_sources;
  KOrder order;
  const float *weight, *bias, *scale;
  const Element* residual;
  void* out;
  bool out_is_float;  // whatever the format
  int64_t outs;
  int64_t activation;
  const std::vector<Block>* blocks;
  Addend addend;
  Quantum of_residual, of_out;
  bool has_outside = false;           // rows in the padding are there to be read
  bool out_is_cached = false;         // `out` is a thread's own
  int64_t gap = 0;                    // elements between the pixels of `out`
  const Convolution* next = nullptr;  // the layer's next one
  int index = 0;                      // in the layer

  bool has_space() const { return layer->kernel[1] * layer->kernel[2] > 1 || layer->stride[1] * layer->stride[2] > 1; }

  int64_t channels() const { return sources[0].channels + (num_sources > 1 ? sources[1].channels : 0); }

  int64_t words() const { return order.words(); }

  int64_t out_pixel() const { return (outs + gap) * (out_is_float ? sizeof(float) : sizeof(Element)); }  // bytes

  // From an output frame to the end of all frames that it reads, where frames are as many as output frames.
  int64_t frames_ahead() const { return layer->dilation[0] * (layer->kernel[0] - 1) - layer->padding[0] + 1; }

  // Rows of a strip: an even number, for pooling.
  int64_t strip_rows() const {
    const int64_t row = kElement<Format> * size.width * (channels() * std::min(layer->kernel[0], size.frames) + outs);
    const int64_t rows = kCachedStrip / std::max<int64_t>(row, 1) - layer->dilation[1] * (layer->kernel[1] - 1);
    return std::max<int64_t>(has_space() ? 8 : 2, rows / 2 * 2);
  }

  Strips strips() const {
    return {size.clips, size.out_frames, size.out_height, strip_rows(), layer->kernel[0] > 1};
  }

  void compute_strip(const Strip& strip, const Local<Format>& local, Prefetch prefetch) const {
    // When a core comes to weights for the first time, each block prefetches the next one.
    static thread_local const float* known[3];
    const bool is_new = known[index] != weight;
    known[index] = weight;
    const KRange all{0, words()};
    const std::vector<Tap>& taps = taps_of(strip, all, local);
    for (size_t n = 0; n < blocks->size(); ++n) {
      if (is_new) prefetch_weights(n, strip, &prefetch);
      compute_block(taps, strip, (*blocks)[n], all, local, prefetch);
      prefetch.data = nullptr;
    }
  }

  // What a part of a block's weights adds to the sums of a strip. The first part starts them, the last one ends them.
  void compute_block(const std::vector<Tap>& taps, const Strip& strip, const Block& block, const KRange& part,
                     const Local<Format>& local, const Prefetch& prefetch) const {
    if (!has_space()) {
      compute_pixels(taps, strip, 0, strip.begin * size.out_width, strip.end * size.out_width, block, part, local, prefetch);
      return;
    }
    if (order.by_tiles && layer->stride[1] * layer->stride[2] == 1) {
      compute_pixels(taps, strip, strip.begin, 0, strip.height() * size.out_width, block, part, local, prefetch);
      return;
    }
    static thread_local std::vector<Tap> within;  // taps that are not in the padding above and below the map
    for (int64_t y = strip.begin; y < strip.end; ++y) {
      const auto is_within = [&](const Tap& tap) {
        if (has_outside) return true;
        const int64_t row = y * layer->stride[1] + tap.y;
        return row >= 0 && row < size.height;
      };
      const bool all = std::all_of(taps.begin(), taps.end(), is_within);
      if (!all) {
        within.clear();
        std::copy_if(taps.begin(), taps.end(), std::back_inserter(within), is_within);
      }
      compute_pixels(all ? taps : within, strip, y, 0, size.out_width, block, part, local, prefetch);
    }
  }

  // Taps of a strip's frame that meet this part of the weights.
  const std::vector<Tap>& taps_of(const Strip& strip, const KRange& part, const Local<Format>& local) const {
    static thread_local std::vector<Tap> taps;  // of the last call
    const int64_t* kernel = layer->kernel;
    taps.clear();
    int64_t k = 0;
    for (int s = 0; s < num_sources; ++s) {
      const Source<Format>& x = sources[s];
      const KOrder::Runs& runs = order.sources[s];
      const int64_t columns = runs.count / (kernel[0] * kernel[1]);  // 1 where pixels under a row are one run
      const int64_t words = order.words_of_run(runs), whole = runs.run / Format::kPerWord;
      for (int64_t i = 0; i < kernel[0]; ++i) {
        const int64_t frame = strip.t * layer->stride[0] - layer->padding[0] + i * layer->dilation[0];
        const bool is_outside = frame < 0 || frame >= size.frames;
        if (is_outside && !x.pad_frame) {
          k += kernel[1] * columns * words;
          continue;
        }
        const Element* start = is_outside                ? x.pad_frame
                               : s == 0 && local.source ? local.source + frame * x.frame
                                                        : x.data + (strip.clip * size.frames + frame) * x.frame;
        for (int64_t j = 0; j < kernel[1]; ++j)
          for (int64_t c = 0; c < columns; ++c, k += words) {
            const int64_t begin = std::max<int64_t>(part.begin - k, 0), end = std::min(part.end - k, words);
            const int64_t y = j * layer->dilation[1];
            if (begin >= end) continue;
            const Element* from = start + y * x.row + c * layer->dilation[2] * x.pixel + begin * Format::kPerWord;
            const int64_t rest = end == words ? (runs.run - whole * Format::kPerWord) * kElement<Format> : 0;
            taps.push_back({reinterpret_cast<const char*>(from), x.row * layer->stride[1] * kElement<Format>,
                            x.pixel * layer->stride[2] * kElement<Format>, std::min(end, whole) - begin, rest, k + begin,
                            y - layer->padding[1]});
          }
      }
    }
    return taps;
  }

  // Pixels [begin, end) of the strip's frame, counted from its row y.
  void compute_pixels(const std::vector<Tap>& taps, const Strip& strip, int64_t y, int64_t begin, int64_t end,
                      const Block& block, const KRange& part, const Local<Format>& local, const Prefetch& prefetch) const {
    const bool starts = part.begin == 0, ends = part.end == words();  // the sums
    if (taps.empty() && !starts && !ends) return;
    const int64_t frame = strip.clip * size.out_frames + strip.t, pixel = y * size.out_width + begin;
    const int64_t at = (frame * size.out_height * size.out_width + pixel) * (outs + gap) + block.first;
    const int64_t at_bytes = at * (out_pixel() / (outs + gap));
    const float* added = !starts        ? nullptr
                         : local.addend ? local.addend
                         : addend.data  ? addend.data + frame * addend.frame
                                        : nullptr;
    char* const results = static_cast<char*>(out) + at_bytes;
    Tiles<Format> tiles;
    tiles.bias = bias && starts ? bias + block.first : nullptr;
    tiles.scale = scale ? scale + block.first : nullptr;
    tiles.residual = !starts ? results : residual ? reinterpret_cast<const char*>(residual + at) : nullptr;
    tiles.added = added ? added + block.first : nullptr;
    tiles.offsets = added ? addend.offsets + pixel : nullptr;
    tiles.out = results;
    tiles.out_step = out_pixel();
    tiles.last_lanes = block.last_lanes;
    tiles.activation = ends ? activation : kNone;
    tiles.out_is_float = out_is_float;
    tiles.is_cached = out_is_cached || !starts;
    tiles.ahead_step = prefetch.data ? prefetch.per_pixel : 0;
    tiles.ahead = tiles.ahead_step ? static_cast<const char*>(prefetch.data) + (pixel - prefetch.first_pixel) * tiles.ahead_step
                                   : nullptr;
    tiles.next_out = starts ? prefetch.next_out : 0;
    tiles.of_residual = of_residual, tiles.of_out = of_out;

    const float* packed = weight + words() * block.first;
#if defined(OCTVIDEO_HAS_AMX)
    if constexpr (!Format::kStartsAtBias)
      if (order.by_tiles) {
        if (begin == end) return;
        // A map with padding is one long row.
        const int64_t rows = has_space() ? (end - begin) / size.out_width : 1;
        const int64_t row_width = rows > 1 ? size.out_width : end - begin;
        const int64_t pitch = rows > 1 ? sources[0].row / sources[0].pixel : end - begin;
        const LongRow row{rows, row_width, pitch};
        if (block.vectors > 1)
          compute_amx_tiles<Format, 2>(taps, y, begin, row, packed, order.piece, tiles);
        else
          compute_amx_tiles<Format, 1>(taps, y, begin, row, packed, order.piece, tiles);
        return;
      }
#endif

    // Tiles of nearly equal size: some are one pixel longer.
    const int64_t length = end - begin, most = most_pixels(block.vectors);
    const int64_t count = (length + most - 1) / most;
    if (!count) return;
    const int64_t pixels = length / count, longer = length % count, done = longer * (pixels + 1);
    if (longer) tile_function<Format>(static_cast<int>(pixels + 1), block.vectors)(taps, y, begin, packed, tiles, longer);
    tiles.out += done * tiles.out_step;
    if (tiles.residual) tiles.residual += done * tiles.out_step;
    if (tiles.added) tiles.offsets += done;
    if (tiles.ahead) tiles.ahead += done * tiles.ahead_step;
    tile_function<Format>(static_cast<int>(pixels), block.vectors)(taps, y, begin + done, packed, tiles, count - longer);
  }

  // From strip n's results to the next one's, if it is one of the first `count`. A convolution of maps of half the size has
  // strips of half the rows.
  int64_t next_out(const Strips& strips, int64_t n, int64_t count, bool is_half = false) const {
    if (n + 1 >= count) return 0;
    const auto place = [&](const Strip& strip) {
      const int64_t row = (strip.clip * size.out_frames + strip.t) * size.out_height + (strip.begin >> is_half);
      return row * size.out_width * out_pixel();
    };
    return place(strips[n + 1]) - place(strips[n]);
  }

  // While strip n is computed, what `map` holds for the first strip that reads rows which nothing has read yet.
  void prefetch_map(const Source<Format>& map, const Strips& strips, int64_t n, int64_t count, Prefetch* prefetch,
                    bool is_half = false) const {
    if (n + frames_ahead() >= count) return;
    const Strip ahead = strips[n + frames_ahead()];
    prefetch->data = map.data + (ahead.clip * size.frames + ahead.t) * map.frame + (ahead.begin >> is_half) * map.row;
    prefetch->per_pixel = map.channels * kElement<Format>;
    prefetch->first_pixel = (strips[n].begin >> is_half) * size.out_width;
  }

  // While strip n is computed, the next strip of the first source, and where its results go.
  Prefetch prefetch_next(const Strips& strips, int64_t n, int64_t count) const {
    Prefetch prefetch;
    if (!has_space()) prefetch_map(sources[0], strips, n, count, &prefetch);
    prefetch.next_out = next_out(strips, n, strips.count());
    return prefetch;
  }

  // While block n of a strip is computed, the next block's weights.
  void prefetch_weights(size_t n, const Strip& strip, Prefetch* prefetch) const {
    const bool is_last = n + 1 == blocks->size();
    if (is_last && !next) return;
    const Convolution& conv = is_last ? *next : *this;
    const Block& block = (*conv.blocks)[is_last ? 0 : n + 1];
    const int64_t lines = conv.words() * block.vectors * kLanes * kWord / kLine, pixels = strip.height() * size.out_width;
    prefetch->data = conv.weight + conv.words() * block.first;
    prefetch->per_pixel = (lines + pixels - 1) / pixels * kLine;
    prefetch->first_pixel = strip.begin * size.out_width;
  }
};

// A whole result, strip by strip. after(strip) follows where a strip's rows have been read for the first time.
template <class Format, class Function>
void compute_strips(const Convolution<Format>& conv, int64_t threads, const Function& after) {
  const Strips strips = conv.strips();
  parallel_for(threads, strips.count(), [&](int64_t n) {
    const Strip strip = strips[n];
    conv.compute_strip(strip, {}, conv.prefetch_next(strips, n, strips.count()));
    after(strip);
  });
}

// Likewise, by weights that fill the cache: one block of them after the other, or, of a large one, one part.
template <class Format, class Function>
void compute_blocks(const Convolution<Format>& conv, int64_t threads, const Function& after) {
  const Strips strips = conv.strips();
  const int64_t count = strips.count(), k = conv.words(), width = conv.size.out_width, blocks = conv.blocks->size();
  // Groups of strips, as few as leave threads without work for less than a twentieth of the time.
  int64_t groups = 1;
  while (groups < count && 20 * ((blocks * groups + threads - 1) / threads * threads - blocks * groups) > blocks * groups)
    ++groups;
  parallel_for(threads, blocks * groups, [&](int64_t unit) {
    const Block& block = (*conv.blocks)[unit / groups];
    const int64_t begin = count * (unit % groups) / groups, end = count * (unit % groups + 1) / groups;
    const int64_t row = block.vectors * kLanes, bytes = k * row * kWord;
    const int64_t parts = Format::kStartsAtBias && bytes > kLargeBlock ? (bytes + kPart - 1) / kPart : 1;
    const bool is_first = unit < groups;
    int64_t pixels = 0;
    for (int64_t n = begin; n < end; ++n) pixels += strips[n].height() * width;
    for (int64_t p = 0; p < parts; ++p) {
      const KRange part{k * p / parts, k * (p + 1) / parts};
      // Meanwhile the weights after these are prefetched.
      const bool are_last = p + 1 == parts && unit / groups + 1 == blocks;
      const float* ahead = !are_last ? conv.weight + k * block.first + part.end * row
                           : conv.next ? conv.next->weight
                                       : nullptr;
      const int64_t per_pixel = ((part.end - part.begin) * row * kWord / kLine + pixels - 1) / pixels * kLine;
      for (int64_t n = begin; n < end; ++n) {
        const Strip strip = strips[n];
        Prefetch prefetch = conv.prefetch_next(strips, n, is_first && p == 0 ? end : 0);
        if (!prefetch.data && ahead) {
          prefetch.data = ahead, prefetch.per_pixel = per_pixel, prefetch.first_pixel = strip.begin * width;
          ahead += strip.height() * width * per_pixel / kWord;
        }
        conv.compute_block(conv.taps_of(strip, part, {}), strip, block, part, {}, prefetch);
        if (is_first && p + 1 == parts) after(strip);
      }
    }
  }, 1);
}

template <class Format, class Function>
void compute_all(const Convolution<Format>& conv, int64_t threads, const Function& after) {
  if (conv.words() * conv.outs * kWord > kCachedWeights)
    compute_blocks(conv, threads, after);
  else
    compute_strips(conv, threads, after);
}

template <class Format>
void compute_all(const Convolution<Format>& conv, int64_t threads) {
  compute_all(conv, threads, [](const Strip&) {});
}

// A whole result and the max pool after it: few rows of the convolution's own result are there at a time.
template <class Format>
void compute_max_pooled(const Convolution<Format>& conv, int64_t threads) {
  const Layer& layer = *conv.layer;
  const Geometry& size = conv.size;
  const int64_t stride = layer.pool_stride[0], padding = layer.pool_padding[0], window = layer.pool_window[0];
  const int64_t height = layer.max_pooled(size.out_height, 0), width = layer.max_pooled(size.out_width, 1);
  const int64_t images = size.clips * size.out_frames, row = size.out_width * conv.outs;
  const int64_t pieces = std::clamp<int64_t>((2 * threads + images - 1) / images, 1, threads > 1 ? height : 1);
  constexpr int64_t kRows = 4;  // of the pool at a time
  parallel_for(threads, images * pieces, [&](int64_t n) {
    const int64_t image = n / pieces, piece = n % pieces, end = height * (piece + 1) / pieces;
    auto* rows = scratch<typename Format::Element>(kMaxPoolRows, ((kRows - 1) * stride + window) * row);
    int64_t have_begin = 0, have_end = 0;  // rows of the convolution that are there
    for (int64_t first = height * piece / pieces; first < end; first += kRows) {
      const int64_t last = std::min(first + kRows, end);
      const int64_t want_begin = std::max<int64_t>(first * stride - padding, 0);
      const int64_t want_end = std::min((last - 1) * stride - padding + window, size.out_height);
      if (want_begin < have_end)
        std::memmove(rows, rows + (want_begin - have_begin) * row, (have_end - want_begin) * row * sizeof *rows);
      have_begin = want_begin, have_end = std::max(have_end, want_begin);
      Convolution<Format> part = conv;
      part.out_is_cached = true;
      part.out = rows - (image * size.out_height + have_begin) * row;
      if (have_end < want_end)
        part.compute_strip({image / size.out_frames, image % size.out_frames, have_end, want_end}, {}, {});
      have_end = std::max(have_end, want_end);
      for (int64_t y = first; y < last; ++y) {
        const int64_t top = std::max<int64_t>(y * stride - padding, 0);
        const int64_t bottom = std::min(y * stride - padding + window, size.out_height);
        auto* to = static_cast<typename Format::Element*>(conv.out) + (image * height + y) * width * conv.outs;
        max_pool_row<Format>(layer, rows + (top - have_begin) * row, bottom - top, size.out_width, conv.outs, to);
      }
    }
  });
}

}  // namespace
