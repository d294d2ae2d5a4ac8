// Ordinary and octave convolutions in float32, each with its bias, residual addition, ReLU, pooling and repeating in the
// same pass over the maps. fused_conv.py calls one of them, fused_sequence.py several that follow each other, both for
// scores only; fused_training.py, by way of pack_weights.cpp, what a training step takes of it, forward and back.
//
//   y_high = relu(conv(x_high) + repeat(conv(x_low)) + base_high)
//   y_low  = relu(conv(pool(x_high)) + conv(x_low) + base_low)
//
// A tile of some pixels by some vectors of output channels starts as the repeated low part, with the bias in it, and
// stays in registers until residual and ReLU are done. x_high is pooled when it is read for y_high, so that it comes out
// of a cache the second time. Maps are channels last; where the kernel has a width, they are first copied into ones with
// a border of zeros, in which the pixels under a row of the kernel are one run of numbers.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "fused_conv.h"
#include "vectors.h"

namespace {

// Pixels of a tile of so many vectors: few enough for the registers, with a row of weights and one number of x. Seven of
// four vectors would be one register too many.
constexpr int most_pixels(int vectors) {
  return kRegisters == 32 ? (vectors <= 2 ? 14 : vectors == 3 ? 8 : 6) : std::max(2, 12 / vectors);
}

// What a core keeps close: weights beyond it are read block by block over the whole map, and maps in strips of it.
constexpr int64_t kCachedWeights = 512 * 1024 / sizeof(float), kStrip = 256 * 1024 / sizeof(float);

// Where one block's weights are more than a cache holds beside the maps, parts of them serve all pixels in turn: a 3x1x1
// layer of 2048 to 512 channels, four frames of 7x7, takes 6.0 instead of 6.9 ms. Where a block is smaller, maps that are
// read once for each part cost more than that saves.
constexpr int64_t kLargeBlock = 768 * 1024 / sizeof(float), kPart = 128 * 1024 / sizeof(float);

// Pixels of many channels would share few of a cache's sets.
constexpr int64_t kGap = 64 / sizeof(float);

// A map as a convolution reads it; steps are in numbers. Maps with a border start at its corner.
struct Source {
  const float* data;
  int64_t channels, pixel, row, frame;
};

// Rows of weights.
struct Rows {
  int64_t begin, end;
};

// A run of `count` numbers under an output pixel, which meet as many rows of weights; steps to the next output row and
// pixel. It lies in row `y` of the map that is read, seen from where the output's row begins.
struct Tap {
  const float* data;
  int64_t row, step, count, weight, y;
};

struct Geometry {
  int64_t clips, frames, height, width;              // of the map that is read
  int64_t out_frames, out_height, out_width;
};

// Tiles side by side.
struct Tiles {
  const float* bias;       // of the tiles' first channel, as are all pointers here; may be null
  const float* base;       // of the first pixel; may be null
  const float* added;      // with the bias in it; may be null
  const int32_t* places;   // of each pixel, from `added`
  float* out;
  int64_t out_step;
  int last_lanes;          // channels in the last vector
  bool relu;
  bool is_local;           // results go to a place that is in the cache
  const float* ahead;      // what is read next, to be fetched meanwhile: so many numbers for each pixel; may be null
  int64_t ahead_step;
  int64_t ahead_out;       // from here to where results go next; 0: unknown
};

// Keeps what is no number, as the processor's maximum does where it comes second.
[[gnu::always_inline]] inline Vector rectified(Vector value) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps(_mm512_setzero_ps(), (__m512)value);
#elif defined(__AVX__)
  return (Vector)_mm256_max_ps(_mm256_setzero_ps(), (__m256)value);
#else
  return value < 0.0f ? Vector{} : value;
#endif
}

// fn(pixel, vector, lanes of that vector) for all of a tile, without a branch where all vectors are full.
template <int Pixels, int Vectors, class Function>
[[gnu::always_inline]] inline void each(int last_lanes, const Function& fn) {
  if (last_lanes == kLanes) {
#pragma GCC unroll 32
    for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) fn(p, v, kLanes);
    return;
  }
#pragma GCC unroll 32
  for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) fn(p, v, v == Vectors - 1 ? last_lanes : kLanes);
}

// So many tiles, from pixel x_first of output row y on.
template <int Pixels, int Vectors>
void compute_tiles(const std::vector<Tap>& taps, int64_t y, int64_t x_first, const float* weight, const Tiles& tiles,
                   int64_t count_of_tiles) {
  const int64_t out_step = tiles.out_step, ahead_out = tiles.ahead_out;
  const int lanes = tiles.last_lanes;
  const int64_t lines_out = tiles.is_local ? 0 : Pixels * Vectors;
  const int64_t lines_read = tiles.ahead ? Pixels * tiles.ahead_step / kLine : 0;
  int64_t steps = 0;
  for (const Tap& tap : taps) steps += tap.count;
  const int64_t most_lines = std::max(lines_out, lines_read);
  // Steps without a fetch, in pairs; where there are more lines than pairs, two lines at once. To ask at each step whether
  // to fetch cost more than fetches do: 64 to 64 channels, 1x3x3 on 8x56x56, took 7.8 ms so, 7.2 without any, and 7.2 thus.
  const bool is_dense = 2 * most_lines > steps;
  const int64_t between = most_lines ? std::max<int64_t>(steps / 2 / most_lines, 1) : 1;
  float* out = tiles.out;
  const float *base = tiles.base, *ahead = tiles.ahead;
  const int32_t* places = tiles.places;
  for (int64_t n = 0; n < count_of_tiles; ++n, x_first += Pixels) {
    Vector sums[Pixels][Vectors];
    if (const float* added = tiles.added)
      each<Pixels, Vectors>(lanes, [&](int p, int v, int k) { sums[p][v] = load(added + places[p] + v * kLanes, k); });
    else if (const float* bias = tiles.bias)
      each<Pixels, Vectors>(lanes, [&](int p, int v, int k) { sums[p][v] = load(bias + v * kLanes, k); });
    else
      each<Pixels, Vectors>(kLanes, [&](int p, int v, int) { sums[p][v] = Vector{}; });
    // What is read and written later is fetched line by line, spread over the steps of the sums: a core waits for some
    // 16 lines at a time.
    const float* line = out;
    int64_t lines = lines_out, lines_ahead = lines_read;
    int column = 0;
    const auto fetch = [&]() __attribute__((always_inline)) {
      if (lines > 0) {
        __builtin_prefetch(line, 1);
        if (ahead_out) __builtin_prefetch(line + ahead_out, 0, 2);
        if (++column == Vectors) column = 0, line += out_step - Vectors * kLanes;
        line += kLanes;
      }
      if (lines_ahead > 0) __builtin_prefetch(ahead, 0, 2), ahead += kLine;
      --lines, --lines_ahead;
    };
    for (const Tap& tap : taps) {
      const int64_t step = tap.step, count = tap.count;
      // Pixels are read by few pointers: base, base + step, base + 2 step are addresses of one instruction.
      constexpr int kBases = (Pixels + 2) / 3;
      const float* x[kBases];
#pragma GCC unroll 8
      for (int n = 0; n < kBases; ++n) x[n] = tap.data + y * tap.row + (x_first + 3 * n) * step;
      const float* w = weight + tap.weight * Vectors * kLanes;
      const auto multiply = [&](int c) __attribute__((always_inline)) {
        Vector row[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) row[v] = *reinterpret_cast<const Vector*>(w + (c * Vectors + v) * kLanes);
#pragma GCC unroll 32
        for (int p = 0; p < Pixels; ++p) {
          const float number = x[p / 3][p % 3 * step + c];
#pragma GCC unroll 8
          for (int v = 0; v < Vectors; ++v) sums[p][v] += row[v] * number;
        }
      };
      const auto go_on = [&](int c) __attribute__((always_inline)) {
        w += c * Vectors * kLanes;
#pragma GCC unroll 8
        for (int n = 0; n < kBases; ++n) x[n] += c;
      };
      // Two steps at a time: of four, GCC keeps some sums in memory.
      int64_t left = count;
      while (left >= 2) {
        int64_t pairs = left / 2;
        if (lines > 0 || lines_ahead > 0) {
          fetch();
          if (is_dense) fetch();
          pairs = std::min(pairs, between);
        }
        left -= 2 * pairs;
        do multiply(0), multiply(1), go_on(2);
        while (--pairs);
      }
      if (left) multiply(0);
    }
    for (; lines_ahead > 0; --lines_ahead, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
    if (base) {
      each<Pixels, Vectors>(lanes, [&](int p, int v, int k) { sums[p][v] += load(base + p * out_step + v * kLanes, k); });
      base += Pixels * out_step;
    }
    if (tiles.relu) each<Pixels, Vectors>(kLanes, [&](int p, int v, int) { sums[p][v] = rectified(sums[p][v]); });
    each<Pixels, Vectors>(lanes, [&](int p, int v, int k) { store(out + p * out_step + v * kLanes, sums[p][v], k); });
    out += Pixels * out_step;
    if (tiles.added) places += Pixels;
  }
}

using TileFunction = void (*)(const std::vector<Tap>&, int64_t, int64_t, const float*, const Tiles&, int64_t);

template <int Vectors, int... Less>
TileFunction choose(int pixels, std::integer_sequence<int, Less...>) {
  static constexpr TileFunction functions[] = {compute_tiles<Less + 1, Vectors>...};
  return functions[pixels - 1];
}

TileFunction tile_function(int pixels, int vectors) {
  if (vectors == 1) return choose<1>(pixels, std::make_integer_sequence<int, most_pixels(1)>{});
  if (vectors == 2) return choose<2>(pixels, std::make_integer_sequence<int, most_pixels(2)>{});
  if (vectors == 3) return choose<3>(pixels, std::make_integer_sequence<int, most_pixels(3)>{});
  return choose<4>(pixels, std::make_integer_sequence<int, most_pixels(4)>{});
}

int64_t low_size(int64_t size) { return (size + 1) / 2; }

// Numbers that are not set; much of them in pages of 2 MB, of which large_pages.py says more.
class Memory {
 public:
  ~Memory() { std::free(data_); }
  float* reserve(int64_t numbers) {
    if (numbers <= size_) return data_;
    constexpr size_t kPage = 2 << 20, kMuch = 128 << 10, kLine = 64;
    const size_t least = numbers * sizeof(float), unit = least < kMuch ? kLine : kPage;
    const size_t bytes = (least + unit - 1) / unit * unit;
    std::free(data_);
    data_ = static_cast<float*>(std::aligned_alloc(unit, bytes));
    size_ = data_ ? bytes / sizeof(float) : 0;
    if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (unit == kPage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

// Memory that a thread keeps from call to call.
float* scratch(int which, int64_t numbers) {
  static thread_local Memory kept[8];
  return kept[which].reserve(numbers);
}

// Where pooled or copied maps go: (frames, rows, width + 2 side, channels), with zeros at the sides. Rows above and below a
// map are never read, and those that are not needed at a time have no place.
struct Bordered {
  float* data;  // row `first` of the first frame
  int64_t height, width, channels, side;
  int64_t first, rows;
  int64_t row() const { return (width + 2 * side) * channels; }
  int64_t frame() const { return rows * row(); }
  float* line(int64_t frame_number, int64_t y) const { return data + frame_number * frame() + (y - first) * row(); }
  float* pixels(int64_t frame_number, int64_t y) const { return line(frame_number, y) + side * channels; }
  // As a convolution reads it whose kernel reaches so far above a map.
  Source source(int64_t top) const { return {line(0, -top), channels, channels, row(), frame()}; }
  void clear_sides(int64_t frame_number, int64_t y) const {
    std::fill_n(line(frame_number, y), side * channels, 0.0f);
    std::fill_n(pixels(frame_number, y) + width * channels, side * channels, 0.0f);
  }
};

// One row of a map of half the size from one or two rows of the map: four times `scale` the mean of the pixels that there
// are.
void pool_row(const float* upper, const float* lower, int64_t width, int64_t channels, float scale, float* out) {
  for (int64_t x = 0; x < width; x += 2, out += channels) {
    const bool pair = x + 1 < width;
    const float *a = upper + x * channels, *b = pair ? a + channels : a;
    const float *c = lower + x * channels, *d = pair ? c + channels : c;
    const auto pool = [&](int64_t n, int lanes) __attribute__((always_inline)) {
      const Vector sum = (load(a + n, lanes) + load(b + n, lanes)) + (load(c + n, lanes) + load(d + n, lanes));
      store(out + n, sum * scale, lanes);
    };
    int64_t n = 0;
    for (; n + kLanes <= channels; n += kLanes) pool(n, kLanes);
    if (n < channels) pool(n, static_cast<int>(channels - n));
  }
}

// Rows [first, last) of the half-sized map, as far as it has them.
void pool_rows(const float* frame, int64_t height, int64_t width, int64_t first, int64_t last, float scale,
               const Bordered& to, int64_t number) {
  const int64_t row = width * to.channels;
  for (int64_t y = std::max<int64_t>(first, 0); y < std::min(last, to.height); ++y) {
    to.clear_sides(number, y);
    const float* upper = frame + 2 * y * row;
    pool_row(upper, 2 * y + 1 < height ? upper + row : upper, width, to.channels, scale, to.pixels(number, y));
  }
}

// Likewise.
void copy_rows(const float* frame, int64_t first, int64_t last, const Bordered& to, int64_t number) {
  const int64_t row = to.width * to.channels;
  for (int64_t y = std::max<int64_t>(first, 0); y < std::min(last, to.height); ++y) {
    to.clear_sides(number, y);
    std::memcpy(to.pixels(number, y), frame + y * row, row * sizeof(float));
  }
}

// The frames of a map in strips, all frames of a strip before the next strip.
struct Strips {
  int64_t frames, height, step;
  bool in_turn;
  int64_t per_frame() const { return (height + step - 1) / step; }
  int64_t of_clip() const { return frames * per_frame(); }
  template <class Function>
  void at(int64_t n, const Function& fn) const {  // fn(clip, t, first row, behind the last row)
    const int64_t of_frame = per_frame();
    const int64_t clip = n / frames / of_frame, t = in_turn ? n % frames : n / of_frame % frames;
    const int64_t s = in_turn ? n / frames % of_frame : n % of_frame;
    fn(clip, t, s * step, std::min((s + 1) * step, height));
  }
};

// Where a frame's numbers are, if not in the maps: in memory of the thread that computes it.
struct Local {
  const float* source = nullptr;    // the first frame of the first source
  const float* addend = nullptr;    // the frame of the addend
  const float* ahead = nullptr;     // what is read next, to be fetched meanwhile,
  int64_t ahead_step = 0;           // so many numbers for each pixel behind
  int64_t ahead_pixel = 0;          // this one of the map
  int64_t ahead_out = 0;            // from this strip of the result to the next one
};

// A map that is added, frame by frame.
struct Addend {
  const float* data;
  int64_t frame;          // step between frames
  const int32_t* places;  // in a frame, of what is added to each pixel of the result's
};

// Places of the pixels of a map of half the size (rounded up), each repeated, or of a map of the result's own size.
const int32_t* places_of(int which, int64_t height, int64_t width, int64_t pixel, bool is_half) {
  static thread_local std::vector<int32_t> kept[2];
  std::vector<int32_t>& places = kept[which];
  places.resize(height * width);
  const int shift = is_half, row = static_cast<int>((is_half ? low_size(width) : width) * pixel);
  int32_t* place = places.data();
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) *place++ = (y >> shift) * row + (x >> shift) * static_cast<int>(pixel);
  return places.data();
}

// One convolution of one or two sources, and where its result goes.
struct Convolution {
  const Layer& layer;
  Geometry size;
  Source sources[2];
  int num_sources;
  const float *weight, *bias, *base;
  float* out;
  int64_t outs;
  bool relu;
  const std::vector<Block>& blocks;
  Addend addend{};
  bool is_local = false;  // `out` is a thread's own
  int64_t gap = 0;        // numbers between the pixels of `out`
  const Convolution* next = nullptr;  // the layer's next one
  int number = 0;                     // in the layer

  bool has_space() const { return layer.kernel[1] * layer.kernel[2] > 1 || layer.stride[1] * layer.stride[2] > 1; }

  int64_t channels() const { return sources[0].channels + (num_sources > 1 ? sources[1].channels : 0); }

  // From an output frame to the first frame behind all that it reads, where frames are as many as output frames.
  int64_t frames_ahead() const { return layer.dilation[0] * (layer.kernel[0] - 1) - layer.padding[0] + 1; }

  int64_t rows() const { return channels() * layer.kernel[0] * layer.kernel[1] * layer.kernel[2]; }  // of its weight

  // Output rows [first, last) of frame t of one clip.
  void compute(int64_t clip, int64_t t, int64_t first, int64_t last, const Local& local = {}) const {
    // Weights that this core comes to for the first time are fetched block by block, the next one's at the end.
    static thread_local const float* known[3];
    const bool is_new = known[number] != weight;
    known[number] = weight;
    const Rows all{0, rows()};
    const std::vector<Tap>& taps = taps_of(clip, t, all, local);
    Local here = local;
    for (size_t n = 0; n < blocks.size(); ++n) {
      if (is_new) fetch_weights(n, first, last, &here);
      compute_part(taps, clip, t, first, last, blocks[n], all, here);
      here.ahead = nullptr;
    }
  }

  // What these rows of a block's weights add to the sums; the first ones begin them, the last ones end them.
  void compute_part(const std::vector<Tap>& taps, int64_t clip, int64_t t, int64_t first, int64_t last,
                    const Block& block, const Rows& part, const Local& local) const {
    if (!has_space()) {
      run(taps, clip, t, 0, first * size.out_width, last * size.out_width, block, part, local);
      return;
    }
    static thread_local std::vector<Tap> within;  // the map, above and below which all is zero
    for (int64_t y = first; y < last; ++y) {
      const auto is_within = [&](const Tap& tap) {
        const int64_t row = y * layer.stride[1] + tap.y;
        return row >= 0 && row < size.height;
      };
      const bool all = std::all_of(taps.begin(), taps.end(), is_within);
      if (!all) {
        within.clear();
        std::copy_if(taps.begin(), taps.end(), std::back_inserter(within), is_within);
      }
      run(all ? taps : within, clip, t, y, 0, size.out_width, block, part, local);
    }
  }

  // What output frame t reads where these rows of weights meet it, seen from its first pixel.
  const std::vector<Tap>& taps_of(int64_t clip, int64_t t, const Rows& part, const Local& local) const {
    static thread_local std::vector<Tap> taps;  // of the last call
    const int64_t* k = layer.kernel;
    taps.clear();
    int64_t weight_row = 0;
    for (int s = 0; s < num_sources; ++s) {
      const Source& x = sources[s];
      const bool joins = layer.dilation[2] == 1 && x.pixel == x.channels;  // neighbours under the kernel are one run
      const int64_t columns = joins ? 1 : k[2], count = x.channels * (joins ? k[2] : 1);
      for (int64_t i = 0; i < k[0]; ++i) {
        const int64_t frame = t * layer.stride[0] - layer.padding[0] + i * layer.dilation[0];
        if (frame < 0 || frame >= size.frames) {
          weight_row += k[1] * k[2] * x.channels;
          continue;
        }
        const float* start = s == 0 && local.source ? local.source + frame * x.frame
                                                    : x.data + (clip * size.frames + frame) * x.frame;
        for (int64_t j = 0; j < k[1]; ++j)
          for (int64_t c = 0; c < columns; ++c, weight_row += count) {
            const int64_t from = std::max<int64_t>(part.begin - weight_row, 0);
            const int64_t behind = std::min(part.end - weight_row, count), y = j * layer.dilation[1];
            if (from < behind)
              taps.push_back({start + y * x.row + c * layer.dilation[2] * x.pixel + from, x.row * layer.stride[1],
                              x.pixel * layer.stride[2], behind - from, weight_row + from, y - layer.padding[1]});
          }
      }
    }
    return taps;
  }

  // Pixels [begin, end), counted from row y of the output.
  void run(const std::vector<Tap>& taps, int64_t clip, int64_t t, int64_t y, int64_t begin, int64_t end,
           const Block& block, const Rows& part, const Local& local) const {
    const bool begins = part.begin == 0, ends = part.end == rows();  // the sums
    if (taps.empty() && !begins && !ends) return;
    const float* packed = weight + rows() * block.first;
    const int64_t frame = clip * size.out_frames + t, pixel = y * size.out_width + begin;
    const int64_t at = (frame * size.out_height * size.out_width + pixel) * (outs + gap) + block.first;
    const float* added = !begins         ? nullptr
                         : local.addend  ? local.addend
                         : addend.data   ? addend.data + frame * addend.frame
                                         : nullptr;
    const int64_t ahead_step = local.ahead ? local.ahead_step : 0;
    Tiles tiles{bias && begins ? bias + block.first : nullptr,
                !begins ? out + at : base ? base + at : nullptr,
                added ? added + block.first : nullptr,
                added ? addend.places + pixel : nullptr,
                out + at,
                outs + gap,
                block.last_lanes,
                relu && ends,
                is_local || !begins,
                ahead_step ? local.ahead + (pixel - local.ahead_pixel) * ahead_step : nullptr,
                ahead_step,
                begins ? local.ahead_out : 0};
    // Nearly equal ones.
    const int64_t length = end - begin, most = most_pixels(block.vectors);
    const int64_t count = (length + most - 1) / most;
    if (!count) return;
    const int64_t pixels = length / count, longer = length % count, done = longer * (pixels + 1);
    if (longer) tile_function(static_cast<int>(pixels + 1), block.vectors)(taps, y, begin, packed, tiles, longer);
    tiles.out += done * tiles.out_step;
    if (tiles.base) tiles.base += done * tiles.out_step;
    if (tiles.added) tiles.places += done;
    if (tiles.ahead) tiles.ahead += done * ahead_step;
    tile_function(static_cast<int>(pixels), block.vectors)(taps, y, begin + done, packed, tiles, count - longer);
  }

  // Rows of the output that go together: an even number of them, for pooling.
  int64_t strip() const {
    const int64_t row = size.width * (channels() * std::min(layer.kernel[0], size.frames) + outs);
    const int64_t rows = kStrip / std::max<int64_t>(row, 1) - layer.dilation[1] * (layer.kernel[1] - 1);
    return std::max<int64_t>(has_space() ? 8 : 2, rows / 2 * 2);
  }

  // From unit n's results to the next unit's. Of maps of half the size the strips' rows are shifted by one bit.
  int64_t ahead_out(const Strips& strips, int64_t n, int64_t units, int shift = 0) const {
    if (n + 1 >= units) return 0;
    const auto place = [&](int64_t unit) {
      int64_t at = 0;
      strips.at(unit, [&](int64_t clip, int64_t t, int64_t first, int64_t) {
        at = ((clip * size.out_frames + t) * size.out_height + (first >> shift)) * size.out_width * (outs + gap);
      });
      return at;
    };
    return place(n + 1) - place(n);
  }

  // While unit n is computed, what the first source holds for the first unit behind it that nothing has read yet.
  void fetch_map(const Strips& strips, int64_t n, int64_t units, Local* local, int shift = 0) const {
    if (!has_space()) fetch_map(sources[0], strips, n, units, local, shift);
  }

  // Likewise, where the first source is copied from a map strip by strip.
  void fetch_map(const Source& map, const Strips& strips, int64_t n, int64_t units, Local* local, int shift = 0) const {
    const int64_t next = n + frames_ahead();
    if (next >= units) return;
    strips.at(next, [&](int64_t clip, int64_t t, int64_t first, int64_t) {
      local->ahead = map.data + (clip * size.frames + t) * map.frame + (first >> shift) * map.row;
    });
    local->ahead_step = map.channels;
    strips.at(n, [&](int64_t, int64_t, int64_t first, int64_t) { local->ahead_pixel = (first >> shift) * size.out_width; });
  }

  // While these rows of a block are computed, the weights of the block behind it.
  void fetch_weights(size_t n, int64_t first, int64_t last, Local* local) const {
    const bool is_last = n + 1 == blocks.size();
    if (is_last && !next) return;
    const Convolution& conv = is_last ? *next : *this;
    const Block& block = conv.blocks[is_last ? 0 : n + 1];
    const int64_t lines = conv.rows() * block.vectors * kLanes / kLine, pixels = (last - first) * size.out_width;
    local->ahead = conv.weight + conv.rows() * block.first;
    local->ahead_step = (lines + pixels - 1) / pixels * kLine;
    local->ahead_pixel = first * size.out_width;
  }
};

// A whole map, strip by strip. behind(clip, t, first row, behind the last row) follows where rows have been read for the
// first time.
template <class Function>
void compute_strips(const Convolution& conv, const Strips& strips, int64_t threads, const Function& behind) {
  const int64_t units = conv.size.clips * strips.of_clip();
  parallel_for(threads, units, [&](int64_t n) {
    Local local;
    conv.fetch_map(strips, n, units, &local);
    local.ahead_out = conv.ahead_out(strips, n, units);
    strips.at(n, [&](int64_t clip, int64_t t, int64_t first, int64_t last) {
      conv.compute(clip, t, first, last, local);
      behind(clip, t, first, last);
    });
  });
}

// Likewise, by weights that fill the cache: one block of them after the other, or, of a large one, one part.
template <class Function>
void compute_blocks(const Convolution& conv, const Strips& strips, int64_t threads, const Function& behind) {
  const int64_t units = conv.size.clips * strips.of_clip(), rows = conv.rows(), width = conv.size.out_width;
  const int64_t blocks = conv.blocks.size();
  // Groups of units, as few as leave threads without work for less than a twentieth of the time.
  int64_t groups = 1;
  while (groups < units && 20 * ((blocks * groups + threads - 1) / threads * threads - blocks * groups) > blocks * groups)
    ++groups;
  parallel_for(threads, blocks * groups, [&](int64_t n) {
    const Block& block = conv.blocks[n / groups];
    const int64_t begin = units * (n % groups) / groups, end = units * (n % groups + 1) / groups;
    const int64_t row = block.vectors * kLanes, parts = rows * row > kLargeBlock ? (rows * row + kPart - 1) / kPart : 1;
    int64_t pixels = 0;
    for (int64_t unit = begin; unit < end; ++unit)
      strips.at(unit, [&](int64_t, int64_t, int64_t first, int64_t last) { pixels += (last - first) * width; });
    for (int64_t p = 0; p < parts; ++p) {
      const Rows part{rows * p / parts, rows * (p + 1) / parts};
      // The weights behind these are fetched meanwhile, so many numbers for each pixel.
      const bool are_last = p + 1 == parts && n / groups + 1 == blocks;
      const float* ahead = !are_last ? conv.weight + rows * block.first + part.end * row
                           : conv.next ? conv.next->weight
                                       : nullptr;
      const int64_t ahead_step = ((part.end - part.begin) * row / kLine + pixels - 1) / pixels * kLine;
      for (int64_t unit = begin; unit < end; ++unit) {
        Local local;
        if (n < groups && p == 0) conv.fetch_map(strips, unit, end, &local);
        local.ahead_out = conv.ahead_out(strips, unit, units);
        strips.at(unit, [&](int64_t clip, int64_t t, int64_t first, int64_t last) {
          if (!local.ahead && ahead) {
            local.ahead = ahead, local.ahead_step = ahead_step, local.ahead_pixel = first * width;
            ahead += (last - first) * width * ahead_step;
          }
          conv.compute_part(conv.taps_of(clip, t, part, local), clip, t, first, last, block, part, local);
          if (n < groups && p + 1 == parts) behind(clip, t, first, last);
        });
      }
    }
  }, 1);
}

template <class Function>
void compute_all(const Convolution& conv, int64_t threads, const Function& behind) {
  const Strips strips{conv.size.out_frames, conv.size.out_height, conv.strip(), conv.layer.kernel[0] > 1};
  if (conv.rows() * conv.outs > kCachedWeights)
    compute_blocks(conv, strips, threads, behind);
  else
    compute_strips(conv, strips, threads, behind);
}

void compute_all(const Convolution& conv, int64_t threads) {
  compute_all(conv, threads, [](int64_t, int64_t, int64_t, int64_t) {});
}

// The greater, and what is no number, as torch's pools have it.
[[gnu::always_inline]] inline Vector greater(Vector best, Vector value) {
  return (value > best) | (value != value) ? value : best;
}

// One row of maxima from the rows under its windows.
void max_row(const Layer& layer, const float* rows, int64_t count, int64_t width, int64_t channels, float* out) {
  const int64_t pooled_width = layer.pooled_size(width, 1), row = width * channels;
  for (int64_t x = 0; x < pooled_width; ++x, out += channels) {
    const int64_t start = x * layer.window_stride[1] - layer.window_padding[1];
    const int64_t first = std::max<int64_t>(start, 0), last = std::min(start + layer.window[1], width);
    const auto pool = [&](int64_t n, int lanes) __attribute__((always_inline)) {
      Vector best = load(rows + first * channels + n, lanes);
      for (int64_t y = 0; y < count; ++y)
        for (int64_t i = first; i < last; ++i) best = greater(best, load(rows + y * row + i * channels + n, lanes));
      store(out + n, best, lanes);
    };
    int64_t n = 0;
    for (; n + kLanes <= channels; n += kLanes) pool(n, kLanes);
    if (n < channels) pool(n, static_cast<int>(channels - n));
  }
}

// A whole map and the max pool behind it: of the convolution's own rows only some are there at a time.
void compute_pooled(const Convolution& conv, int64_t threads) {
  const Layer& layer = conv.layer;
  const Geometry& size = conv.size;
  const int64_t stride = layer.window_stride[0], padding = layer.window_padding[0], window = layer.window[0];
  const int64_t height = layer.pooled_size(size.out_height, 0), width = layer.pooled_size(size.out_width, 1);
  const int64_t images = size.clips * size.out_frames, row = size.out_width * conv.outs;
  const int64_t pieces = std::clamp<int64_t>((2 * threads + images - 1) / images, 1, threads > 1 ? height : 1);
  constexpr int64_t kRows = 4;  // of the result at a time
  parallel_for(threads, images * pieces, [&](int64_t n) {
    const int64_t image = n / pieces, piece = n % pieces, end = height * (piece + 1) / pieces;
    float* rows = scratch(6, ((kRows - 1) * stride + window) * row);
    int64_t begin = 0, have = 0;  // rows [begin, have) of the convolution are there
    for (int64_t first = height * piece / pieces; first < end; first += kRows) {
      const int64_t last = std::min(first + kRows, end);
      const int64_t wanted = std::max<int64_t>(first * stride - padding, 0);
      const int64_t behind = std::min((last - 1) * stride - padding + window, size.out_height);
      if (wanted < have) std::memmove(rows, rows + (wanted - begin) * row, (have - wanted) * row * sizeof(float));
      begin = wanted, have = std::max(have, wanted);
      Convolution part = conv;
      part.is_local = true;
      part.out = rows - (image * size.out_height + begin) * row;
      if (have < behind) part.compute(image / size.out_frames, image % size.out_frames, have, behind);
      have = std::max(have, behind);
      for (int64_t y = first; y < last; ++y) {
        const int64_t top = std::max<int64_t>(y * stride - padding, 0);
        const int64_t bottom = std::min(y * stride - padding + window, size.out_height);
        float* to = conv.out + (image * height + y) * width * conv.outs;
        max_row(layer, rows + (top - begin) * row, bottom - top, size.out_width, conv.outs, to);
      }
    }
  });
}

}  // namespace

extern "C" {

int64_t num_registers() { return kRegisters; }

// Maps (clips, channels, pixels) as (clips, pixels, channels).
void interleave(const float* from, float* to, int64_t clips, int64_t channels, int64_t pixels, int64_t threads) {
  constexpr int64_t kRun = 4096;
  const int64_t runs = (pixels + kRun - 1) / kRun;
  parallel_for(threads, clips * runs, [&](int64_t n) {
    const int64_t first = n % runs * kRun, last = std::min(first + kRun, pixels);
    const float* in = from + n / runs * channels * pixels;
    float* out = to + n / runs * channels * pixels;
    if (channels == 3) {  // pictures
      const float *r = in, *g = in + pixels, *b = in + 2 * pixels;
      for (int64_t p = first; p < last; ++p) out[3 * p] = r[p], out[3 * p + 1] = g[p], out[3 * p + 2] = b[p];
      return;
    }
    for (int64_t p = first; p < last; ++p)
      for (int64_t c = 0; c < channels; ++c) out[p * channels + c] = in[c * pixels + p];
  });
}

}  // extern "C"

void run(const Layer& layer, const float* given_high, const float* given_low, const float* base_high,
         const float* base_low, float* out_high, float* out_low, float* out_pooled, int64_t threads) {
  const int64_t images = layer.clips * layer.frames;
  const bool has_space = layer.kernel[1] * layer.kernel[2] > 1;
  const int64_t top = has_space ? layer.padding[1] : 0, side = has_space ? layer.padding[2] : 0;
  int64_t height = layer.height, width = layer.width;
  const float* high = given_high;

  const auto rows_of = [&](int which, int64_t frames, int64_t h, int64_t w, int64_t channels, int64_t first, int64_t rows) {
    return Bordered{scratch(which, frames * rows * (w + 2 * side) * channels), h, w, channels, side, first, rows};
  };
  const auto bordered = [&](int which, int64_t frames, int64_t h, int64_t w, int64_t channels) {
    return rows_of(which, frames, h, w, channels, 0, h);
  };
  const auto out_size = [&](int64_t n, int axis) {
    return (n + 2 * layer.padding[axis] - layer.dilation[axis] * (layer.kernel[axis] - 1) - 1) / layer.stride[axis] + 1;
  };
  const auto geometry = [&](int64_t h, int64_t w) {
    return Geometry{layer.clips, layer.frames, h, w, out_size(layer.frames, 0), out_size(h, 1), out_size(w, 2)};
  };
  const auto plain = [](const float* data, int64_t h, int64_t w, int64_t channels) {
    return Source{data, channels, channels, w * channels, h * w * channels};
  };

  if (layer.pool_first) {
    const Bordered pooled{scratch(0, images * low_size(height) * low_size(width) * layer.in_high),
                          low_size(height), low_size(width), layer.in_high, 0, 0, low_size(height)};
    parallel_for(threads, images, [&](int64_t n) {
      pool_rows(high + n * height * width * layer.in_high, height, width, 0, pooled.height, 0.25f, pooled, n);
    });
    high = pooled.data, height = pooled.height, width = pooled.width;
  }
  const int64_t half_height = low_size(height), half_width = low_size(width);
  const int64_t high_frame = height * width * layer.in_high;

  // x_low for all that reads it as it is: of half the size of x_high, or of its size where that was pooled.
  const int64_t low_height = layer.pool_first ? height : half_height, low_width = layer.pool_first ? width : half_width;
  const int64_t low_frame = low_height * low_width * layer.in_low;
  Source low = plain(given_low, low_height, low_width, layer.in_low);
  if (has_space && (layer.weight_from_low || layer.high_reads_low || (layer.low_reads_low && !layer.pool_first))) {
    const Bordered copy = bordered(1, images, low_height, low_width, layer.in_low);
    parallel_for(threads, images, [&](int64_t n) {
      copy_rows(given_low + n * low_frame, -top, low_height + top, copy, n);
    });
    low = copy.source(top);
  }
  Source low_of_low = low;  // as y_low reads it
  if (layer.low_reads_low && layer.pool_first) {
    const Bordered to = bordered(2, images, half_height, half_width, layer.in_low);
    parallel_for(threads, images, [&](int64_t n) {
      pool_rows(given_low + n * low_frame, low_height, low_width, -top, half_height + top, 0.25f, to, n);
    });
    low_of_low = to.source(top);
  }

  const Geometry size = geometry(height, width), half = geometry(half_height, half_width);
  const bool gives_low = layer.weight_low, pools = gives_low && layer.low_reads_high;
  const int64_t low_outs = layer.weight_from_low ? layer.outs_high + (layer.shares_low ? layer.outs_low : 0) : 0;
  // What is pooled for y_low, if the caller wants to keep it: at once in its place, or copied from within the border.
  const Bordered kept{out_pooled, half_height, half_width, layer.in_high, 0, 0, half_height};
  const bool keeps = pools && out_pooled, pools_there = keeps && top == 0 && side == 0;
  const auto pool_for_low = [&](int64_t image, int64_t first, int64_t last, const Bordered& to, int64_t number) {
    const float* frame = high + image * high_frame;
    pool_rows(frame, height, width, first - top, last + top, layer.pools_sums ? 1.0f : 0.25f, to, number);
    if (!keeps || pools_there) return;
    for (int64_t y = first; y < std::min(last, half_height); ++y)
      std::copy_n(to.pixels(number, y), half_width * layer.in_high, kept.pixels(image, y));
  };
  const auto high_blocks = blocks_of(layer.outs_high, layer.rows_high()),
             from_low_blocks = blocks_of(low_outs, layer.rows_from_low()),
             below_blocks = blocks_of(layer.outs_low, layer.rows_low());
  Convolution main{layer, size, {plain(high, height, width, layer.in_high), low}, layer.high_reads_low ? 2 : 1,
                   layer.weight_high, layer.bias_high, base_high, out_high, layer.outs_high,
                   layer.relu != 0, high_blocks};
  Convolution from_low{layer, half, {low}, 1, layer.weight_from_low, nullptr, nullptr, nullptr,
                       low_outs, false, from_low_blocks};
  Convolution below{layer, half, {}, 0, layer.weight_low, layer.bias_low, base_low, out_low,
                    layer.outs_low, layer.relu != 0, below_blocks};
  if (pools) ++below.num_sources;  // set below
  if (gives_low && layer.low_reads_low && !layer.shares_low) below.sources[below.num_sources++] = low_of_low;
  main.number = 1, below.number = 2;
  if (gives_low) main.next = &below;
  if (low_outs) from_low.next = &main;
  const int64_t from_low_frame = half.out_height * half.out_width * (low_outs + kGap);
  from_low.gap = kGap;
  if (low_outs) {  // what it gives is where the others' sums start
    float* bias = scratch(7, low_outs);
    std::fill_n(bias, low_outs, 0.0f);
    if (layer.bias_high) std::copy_n(layer.bias_high, layer.outs_high, bias);
    if (layer.shares_low && layer.bias_low) std::copy_n(layer.bias_low, layer.outs_low, bias + layer.outs_high);
    from_low.bias = bias;
    const int64_t pixel = low_outs + kGap;
    main.addend = {nullptr, from_low_frame, places_of(0, size.out_height, size.out_width, pixel, true)};
    if (layer.shares_low)
      below.addend = {nullptr, from_low_frame, places_of(1, half.out_height, half.out_width, pixel, false)};
  }

  // Strip by strip where all weights stay in the cache, and where an output frame reads the input frame of its number:
  // what is pooled, repeated and copied then never leaves it. A kernel with an extent in time needs the pooled strips
  // of several frames, so that one thread then has a strip's frames in turn.
  const bool alike = size.out_frames == layer.frames && size.out_height == height && size.out_width == width;
  const int64_t weights = layer.taps() * (layer.in_high + layer.in_low) * (layer.outs_high + layer.outs_low);
  const bool in_turn = layer.kernel[0] > 1;
  const Strips strips{size.out_frames, size.out_height, main.strip(), in_turn};
  const int64_t strip_units = size.clips * strips.per_frame() * (in_turn ? 1 : strips.frames);
  const bool by_strip = alike && !layer.takes_maximum() && weights <= kCachedWeights && !(has_space && in_turn) &&
                        (!in_turn || strip_units >= 2 * threads);

  if (by_strip) {
    // Strips take turns in one place, which stays in the cache.
    const auto local_pooled = [&](int64_t first) {
      if (pools_there) return kept;
      const int64_t frames = in_turn ? layer.frames : 1, rows = low_size(strips.step) + 2 * top;
      return rows_of(3, frames, half_height, half_width, layer.in_high, first / 2 - top, rows);
    };
    const auto local_copy = [&](int64_t first) {
      return rows_of(4, 1, height, width, layer.in_high, first - top, strips.step + 2 * top);
    };
    if (has_space) main.sources[0] = local_copy(0).source(top);
    if (pools) below.sources[0] = local_pooled(0).source(top);
    if (!in_turn) {
      if (pools && !pools_there) below.sources[0].frame = 0;
      if (has_space) main.sources[0].frame = 0;
    }
    const int64_t part_row = half.out_width * (low_outs + kGap);
    // The rows above a strip have been read for the one before it.
    const Source behind_halo = plain(high + top * width * layer.in_high, height, width, layer.in_high);
    parallel_for(threads, strip_units, [&](int64_t unit) {
      const int64_t units = strip_units * (in_turn ? strips.frames : 1);
      int64_t have = 0;  // frames that are pooled
      for (int64_t n = in_turn ? unit * strips.frames : unit, end = n + (in_turn ? strips.frames : 1); n < end; ++n)
        strips.at(n, [&](int64_t clip, int64_t t, int64_t first, int64_t last) {
          Local of_high, of_low;
          main.fetch_map(behind_halo, strips, n, units, &of_high);
          of_high.ahead_out = main.ahead_out(strips, n, units);
          const int64_t half_first = first / 2, half_last = low_size(last);
          const float* frames = high + clip * size.frames * high_frame;
          if (pools) {
            const Bordered to = local_pooled(first);
            const int64_t wanted = in_turn ? std::min(t + main.frames_ahead(), size.frames) : t + 1;
            for (have = in_turn ? have : t; have < wanted; ++have) {
              const int64_t image = clip * size.frames + have;
              pool_for_low(image, half_first, half_last, to, pools_there ? image : in_turn ? have : 0);
            }
            if (!pools_there) of_low.source = to.source(top).data;
          }
          if (has_space) {
            const Bordered to = local_copy(first);
            copy_rows(frames + t * high_frame, first - top, last + top, to, 0);
            of_high.source = to.source(top).data;
          }
          if (low_outs) {
            float* part = scratch(5, low_size(strips.step) * part_row) - half_first * part_row;
            Convolution local = from_low;
            local.is_local = true;
            local.out = part - (clip * size.frames + t) * from_low_frame;
            Local of_from_low;
            from_low.fetch_map(strips, n, units, &of_from_low, 1);
            local.compute(clip, t, half_first, half_last, of_from_low);
            of_high.addend = part;
            if (layer.shares_low) of_low.addend = part + layer.outs_high;
          }
          main.compute(clip, t, first, last, of_high);
          if (!gives_low) return;
          of_low.ahead_out = below.ahead_out(strips, n, units, 1);
          below.compute(clip, t, half_first, half_last, of_low);
        });
    });
    return;
  }
  if (low_outs) {
    from_low.out = scratch(5, half.clips * half.out_frames * from_low_frame);
    compute_all(from_low, threads);
    main.addend.data = from_low.out;
    if (layer.shares_low) below.addend.data = from_low.out + layer.outs_high;
  }
  const Bordered pooled = pools_there ? kept
                          : pools     ? bordered(3, images, half_height, half_width, layer.in_high)
                                      : Bordered{};
  if (pools) below.sources[0] = pooled.source(top);
  const Bordered copy = has_space ? bordered(4, images, height, width, layer.in_high) : Bordered{};
  if (has_space) main.sources[0] = copy.source(top);
  const auto pool = [&](int64_t image, int64_t first, int64_t last) {
    if (pools) pool_for_low(image, first, last, pooled, image);
  };
  const bool while_read = alike && !has_space;
  parallel_for(threads, has_space || (pools && !while_read) ? images : 0, [&](int64_t n) {
    if (has_space) copy_rows(high + n * high_frame, -top, height + top, copy, n);
    pool(n, 0, half_height);
  });
  if (layer.takes_maximum())
    compute_pooled(main, threads);
  else
    compute_all(main, threads, [&](int64_t clip, int64_t t, int64_t first, int64_t last) {
      if (while_read) pool(clip * layer.frames + t, first / 2, low_size(last));
    });
  if (gives_low) compute_all(below, threads);
}

extern "C" {

void run_layer(const Layer* layer, const float* high, const float* low, const float* base_high, const float* base_low,
               float* out_high, float* out_low, int64_t threads) {
  run(*layer, high, low, base_high, base_low, out_high, out_low, nullptr, threads);
}

// Layers in order, so many times. For each of their six maps, as run_layer takes them: a slot (-1: no map), and where
// in it; from one time to the next slots move on by their steps.
void run_layers(const Layer* const* layers, const int64_t* maps, float* const* slots, const int64_t* steps,
                int64_t count, int64_t times, int64_t threads) {
  for (int64_t time = 0; time < times; ++time) {
    const int64_t* map = maps;
    for (int64_t n = 0; n < count; ++n) {
      float* at[6];
      for (float*& place : at) {
        place = map[0] < 0 ? nullptr : slots[map[0]] + time * steps[map[0]] + map[1];
        map += 2;
      }
      run_layer(layers[n], at[0], at[1], at[2], at[3], at[4], at[5], threads);
    }
  }
}

}  // extern "C"
