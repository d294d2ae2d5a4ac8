// Layers computed together, part by part of their maps, so that what lies between them stays in the cache: a depthwise
// convolution, the pointwise layer whose result it reads, and those that read its own result. Of a depthwise convolution
// with an extent in time, the frames that are read again stay in a ring; of another one, the rows. What it pools first is
// pooled frame by frame.

#pragma once

#include <type_traits>
#include <vector>

#include "depthwise.h"
#include "gate.h"

#if defined(__linux__)
#include <unistd.h>
#endif

// For tests, which change it: bytes of what lies between layers, so that small maps have several parts; 0: by the cache.
extern "C" {
inline int64_t most_group_bytes = 0;
}

namespace {

// Bytes of what lies between layers.
inline int64_t group_bytes() {
  if (most_group_bytes) return most_group_bytes;
  static const int64_t bytes = [] {
    int64_t cache = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::clamp<int64_t>(cache, 512 << 10, 4 << 20) / 2;
  }();
  return bytes;
}

// Rows [begin, end) of frames [first, last) of one clip.
struct Part {
  int64_t clip, first, last, begin, end;
  int64_t frames() const { return last - first; }
  int64_t rows() const { return end - begin; }
};

// Where a value lies: in a map of all frames and rows, or, of a thread's own, in a ring of some frames, of some rows or of
// rows in a ring.
struct GroupMap {
  char* data[2];           // high, low; null where there is none
  int64_t channels[2], gap[2];    // gap: elements between pixels
  int64_t frames, height, width;  // of the whole high map
  int64_t element;                // bytes
  int64_t ring = 0;               // frames; 0: a whole map
  int64_t ring_rows = 0;          // of the high map
  int64_t first_row = 0;          // that the ring has
  bool has_row_ring = false;      // row y is the ring's row y % ring_rows

  int64_t rows(int which) const {
    const int64_t own = ring ? ring_rows : height;
    return which ? low_size(own) : own;
  }
  int64_t row_bytes(int which) const { return (which ? low_size(width) : width) * (channels[which] + gap[which]) * element; }
  int64_t frame_bytes(int which) const { return rows(which) * row_bytes(which); }
  char* at(int which, int64_t clip, int64_t frame, int64_t row) const {
    if (!data[which]) return nullptr;
    const int64_t f = ring ? frame % ring : clip * frames + frame, y = !ring ? row : has_row_ring ? row % ring_rows : row - first_row;
    return data[which] + f * frame_bytes(which) + (which ? y / 2 : y) * row_bytes(which);
  }
  int64_t bytes_of_row() const { return row_bytes(0) + row_bytes(1) / 2; }
};

template <class Format>
class GroupRun {
 public:
  // `places`: what each step reads and makes; local results have no place.
  GroupRun(const Step* steps, int64_t count, const std::vector<Maps>& places, int64_t threads)
      : steps(steps), count(count), places(places), threads(threads) {
    bool is_by_frame = true;
    for (int64_t n = 0; n < count; ++n) {
      layers.push_back(*steps[n].layer);
      if (layers[n].kind == kDepthwise) depthwise = n;
      if (layers[n].kind == kScale || (n == depthwise && layers[n].kernel[0] > 1)) is_by_frame = false;
    }
    // Clips are frames of a long one where none of them knows of others.
    if (is_by_frame && (depthwise < 0 || layers[depthwise].stride[0] == 1))
      for (Layer& layer : layers) layer.frames *= layer.clips, layer.clips = 1;
    clips = layers[0].clips, in_frames = layers[0].frames, in_height = layers[0].height, in_width = layers[0].width;
    out_frames = depthwise < 0 ? in_frames : layers[depthwise].out_size(in_frames, 0);
    pools = depthwise >= 0 && layers[depthwise].pool_first;
    out_height = depthwise < 0 ? in_height : layers[depthwise].out_size(read_size(in_height), 1);
    choose_parts();
  }

  void operator()() const {
    // Chunks of frames follow each other where they share what they read; else the strips of a chunk do.
    const int64_t chunks = num_chunks(), strips = num_strips();
    parallel_for(threads, clips * chunks * runs, [&](int64_t unit) {
      const int64_t clip = unit / runs / chunks, run = unit % runs;
      const int64_t begin = shares_frames() ? 0 : unit / runs % chunks * chunk;
      const int64_t end = shares_frames() ? out_frames : std::min(begin + chunk, out_frames);
      int64_t made = 0;  // frames, or rows, before the depthwise convolution
      for (int64_t strip = strips * run / runs; strip < strips * (run + 1) / runs; ++strip)
        for (int64_t t = begin; t < end; t += chunk)
          compute({clip, t, std::min(t + chunk, end), strip * rows, std::min((strip + 1) * rows, out_height)}, &made);
    });
  }

 private:
  const Step* steps;
  const int64_t count;
  const std::vector<Maps>& places;
  const int64_t threads;
  std::vector<Layer> layers;
  int64_t depthwise = -1;
  int64_t clips, in_frames, in_height, in_width, out_frames, out_height;
  bool pools = false;  // before the depthwise convolution
  int64_t rows, chunk;  // of a part of the result: rows, frames
  int64_t runs;         // of a chunk's strips, each computed by one thread
  int64_t row_ring = 0;  // rows that the depthwise convolution's input has at once, where strips share them

  bool shares_frames() const { return depthwise >= 0 && layers[depthwise].kernel[0] > 1; }
  int64_t num_strips() const { return (out_height + rows - 1) / rows; }
  int64_t num_chunks() const { return shares_frames() ? 1 : (out_frames + chunk - 1) / chunk; }
  bool is_local(int64_t n) const { return steps[n].out_high.slot == kLocal; }

  // Pixels that start with whole vectors: none lies in more cache lines than it must, and pixels of many channels do not
  // share few of a cache's sets.
  static int64_t gap_after(int64_t channels) {
    const int64_t vectors = (channels + kLanes - 1) / kLanes;
    return (vectors | 1) * kLanes - channels;
  }

  // Of the map that the depthwise convolution reads, from that of the group's input.
  int64_t read_size(int64_t size) const { return pools ? low_size(size) : size; }

  // Rows and frames of the group's input that a part of the depthwise convolution's result needs.
  Part needed(const Part& part) const {
    if (depthwise < 0) return part;
    const Layer& layer = layers[depthwise];
    Part from = part;
    from.first = std::max<int64_t>(part.first * layer.stride[0] - layer.padding[0], 0);
    from.last = std::min((part.last - 1) * layer.stride[0] - layer.padding[0] + layer.dilation[0] * (layer.kernel[0] - 1) + 1, in_frames);
    const int64_t reach = layer.dilation[1] * (layer.kernel[1] - 1) + 1;
    from.begin = part.begin * layer.stride[1] - layer.padding[1];
    from.end = (part.end - 1) * layer.stride[1] - layer.padding[1] + reach;
    if (layer.in_low) {
      const int64_t low_begin = part.begin / 2 * layer.stride[1] - layer.padding[1];
      const int64_t low_end = (low_size(part.end) - 1) * layer.stride[1] - layer.padding[1] + reach;
      from.begin = std::min(from.begin, 2 * low_begin), from.end = std::max(from.end, 2 * low_end);
    }
    if (pools) {  // each row from two, and of a low map from two that lie under four
      const int64_t step = layer.in_low ? 4 : 2;
      from.begin = std::max<int64_t>(from.begin, 0) * 2 / step * step;
      from.end = (2 * from.end + step - 1) / step * step;
    }
    // Rows of low maps, which the layer before it may have where it has none itself, lie under two of the high ones.
    if (layers[0].in_low || layer.in_low) from.begin -= from.begin & 1, from.end += from.end & 1;
    from.begin = std::max<int64_t>(from.begin, 0), from.end = std::min(from.end, in_height);
    return from;
  }

  // Frames that the depthwise convolution's input has at once.
  int64_t ring(int64_t of_chunk) const {
    const Layer& layer = layers[depthwise];
    return std::min((of_chunk - 1) * layer.stride[0] + layer.dilation[0] * (layer.kernel[0] - 1) + 1, in_frames);
  }

  int64_t local_bytes(int64_t of_rows, int64_t of_chunk) const {
    int64_t bytes = 0;
    for (int64_t n = 0; n + 1 < count; ++n) {
      if (!is_local(n)) continue;
      const bool is_before = n < depthwise;
      const GroupMap map = result(n);
      if (is_before && pools) continue;  // some rows at a time
      const int64_t height = is_before ? std::min(of_rows * stride() + reach(), in_height) : of_rows;
      bytes += map.bytes_of_row() * height * (is_before ? ring(of_chunk) : of_chunk);
    }
    if (pools) bytes += pooled().bytes_of_row() * std::min(of_rows * stride() + reach(), read_size(in_height)) * ring(of_chunk);
    return bytes;
  }
  int64_t stride() const { return depthwise < 0 ? 1 : layers[depthwise].stride[1]; }
  int64_t reach() const {
    if (depthwise < 0) return 0;
    const Layer& layer = layers[depthwise];
    return layer.dilation[1] * (layer.kernel[1] - 1) * (layer.in_low ? 2 : 1);
  }

  // Rows that are pooled at once: as many as stay in the cache beside what lies between layers.
  int64_t pooled_at_once() const {
    const int64_t most = group_bytes() / 4 / std::max<int64_t>(result(0).bytes_of_row(), 1);
    return std::max<int64_t>(most / 4 * 4, 4);
  }

  // Whole frames, and several of them, where they fit; else rows of one.
  void choose_parts() {
    // Strips of rings of frames compute rows twice: a larger part, some of it outside the cache, costs less.
    const int64_t most = group_bytes() * (shares_frames() ? 2 : 1);
    rows = std::max<int64_t>(out_height, 1), chunk = std::max<int64_t>(out_frames, 1);
    while (chunk > 1 && local_bytes(rows, chunk) > most) chunk = (chunk + 1) / 2;
    for (rows += rows & 1; rows > 4 && local_bytes(rows, chunk) > most;) rows -= 2;
    set_rows((out_height + num_strips() - 1) / std::max<int64_t>(num_strips(), 1));  // strips of about one height
    // All threads have work.
    const auto is_short = [&] { return threads > 1 && clips * num_chunks() * num_strips() < 2 * threads; };
    while (is_short() && !shares_frames() && chunk > 1) chunk = (chunk + 1) / 2;
    while (is_short() && rows > 8) set_rows(rows / 2);
    if (rows < out_height) chunk = 1;  // frames' rows do not lie side by side
    const int64_t units = std::max<int64_t>(clips * num_chunks(), 1);
    runs = shares_frames() ? num_strips() : threads > 1 ? std::min((2 * threads + units - 1) / units, num_strips()) : 1;
    if (shares_frames() || rows >= out_height) return;
    for (int64_t top = 0; top < out_height; top += rows) {
      const Part from = needed({0, 0, 1, top, std::min(top + rows, out_height)});
      row_ring = std::max(row_ring, read_size(from.rows()));
    }
    row_ring += row_ring & 1;
  }

  void set_rows(int64_t wanted) { rows = std::max<int64_t>(wanted + (wanted & 1), 2); }

  // The result of step n as a whole map; local ones get their memory later.
  GroupMap result(int64_t n) const {
    const Layer& layer = layers[n];
    const bool keeps_channels = layer.kind == kDepthwise || layer.kind == kScale;
    const bool is_after = n >= depthwise && depthwise >= 0;
    const int64_t high = keeps_channels ? layer.in_high : layer.outs_high, low = keeps_channels ? layer.in_low : layer.outs_low;
    const bool has_gaps = is_local(n) && !places[n].residual_high;  // a residual's pixels lie side by side
    return {{static_cast<char*>(places[n].out_high), static_cast<char*>(places[n].out_low)},
            {high, low}, {has_gaps ? gap_after(high) : 0, has_gaps && low ? gap_after(low) : 0},
            is_after ? out_frames : in_frames, is_after ? out_height : in_height,
            is_after ? layers[depthwise].out_size(read_size(in_width), 2) : in_width, kElement<Format>};
  }

  // What the depthwise convolution reads if it pools first.
  GroupMap pooled() const {
    const Layer& layer = layers[depthwise];
    return {{nullptr, nullptr}, {layer.in_high, layer.in_low},
            {gap_after(layer.in_high), layer.in_low ? gap_after(layer.in_low) : 0},
            in_frames, read_size(in_height), read_size(in_width), kElement<Format>};
  }

  void compute(const Part& part, int64_t* made) const {
    const Part from = needed(part);
    static thread_local std::vector<GroupMap> results;
    results.clear();
    int64_t bytes = 0;
    const auto limit = [&bytes](GroupMap& map, int64_t frames, int64_t begin, int64_t end) {
      map.ring = frames, map.first_row = begin, map.ring_rows = end - begin;
      bytes += map.ring * (map.frame_bytes(0) + map.frame_bytes(1)) + 2 * kLine;
    };
    // What the depthwise convolution reads.
    const auto limit_read = [&](GroupMap& map, int64_t begin, int64_t end) {
      map.has_row_ring = row_ring > 0;
      row_ring ? limit(map, 1, 0, row_ring) : limit(map, ring(chunk), begin, end);
    };
    for (int64_t n = 0; n < count; ++n) {
      GroupMap map = result(n);
      if (is_local(n) && n < depthwise)
        pools ? limit(map, 1, 0, pooled_at_once()) : limit_read(map, from.begin, from.end);
      if (is_local(n) && n >= depthwise) limit(map, chunk, part.begin, part.end);
      results.push_back(map);
    }
    GroupMap half{};
    if (pools) half = pooled(), limit_read(half, from.begin / 2, low_size(from.end));
    // Parts that share a ring get the same places.
    char* memory = scratch<char>(kGroup, bytes);
    const auto place = [&memory](GroupMap& map) {
      for (int which = 0; which < 2; ++which) {
        map.data[which] = map.channels[which] ? memory : nullptr;
        memory += (map.ring * map.frame_bytes(which) + kLine - 1) / kLine * kLine;
      }
    };
    if (pools) place(half);
    for (int64_t n = 0; n < count; ++n)
      if (is_local(n)) place(results[n]);
    // Rows, or frames, that are not there yet, as far as they lie side by side.
    const auto make = [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
      const Part missing{part.clip, first, last, begin, end};
      if (pools) pool_frame(missing, &results, half);
      else if (depthwise > 0) compute_pointwise(0, missing, results);
    };
    if (row_ring) {
      for (int64_t y = std::max(*made, from.begin), next; y < from.end; y = next)
        next = pools ? from.end : std::min(from.end, (y / row_ring + 1) * row_ring), make(from.first, from.last, y, next);
    } else {
      const bool is_whole = !pools && from.rows() == in_height;
      const int64_t ring = depthwise > 0 ? results[0].ring : 0;
      for (int64_t t = std::max(*made, from.first), next; t < from.last; t = next) {
        next = !is_whole ? t + 1 : ring ? std::min(from.last, (t / ring + 1) * ring) : from.last;
        make(t, next, from.begin, from.end);
      }
    }
    *made = std::max(*made, row_ring ? from.end : from.last);
    for (int64_t n = std::max<int64_t>(depthwise, 0); n < count; ++n)
      if (n == depthwise)
        compute_depthwise(layers[n], part, pools ? half : source(n, results), results[n]);
      else
        compute_pointwise(n, part, results);
  }

  // Some rows of a frame, which are computed first where they are a layer's result, to rows of half the size.
  void pool_frame(const Part& part, std::vector<GroupMap>* results, const GroupMap& half) const {
    using Element = typename Format::Element;
    const int64_t step = depthwise ? (*results)[0].ring_rows : part.rows();
    for (int64_t top = part.begin; top < part.end; top += step) {
      Part some = part;
      some.begin = top, some.end = std::min(top + step, part.end);
      if (depthwise) (*results)[0].first_row = top, compute_pointwise(0, some, *results);
      const GroupMap from = source(depthwise, *results);
      for (int which = 0; which < (half.channels[1] ? 2 : 1); ++which) {
        const int64_t height = which ? low_size(from.height) : from.height, width = which ? low_size(from.width) : from.width;
        const int64_t above = which ? 2 : 1;  // rows of the high map over one of this map
        for (int64_t y = top / (2 * above); y * 2 * above < some.end; ++y) {
          const char* const upper = from.at(which, part.clip, part.first, 2 * y * above);
          const char* const lower = 2 * y + 1 < height ? upper + from.row_bytes(which) : upper;
          pool_row<Format>(reinterpret_cast<const Element*>(upper), reinterpret_cast<const Element*>(lower), width,
                           half.channels[which], from.channels[which] + from.gap[which], 0.25f,
                           reinterpret_cast<Element*>(half.at(which, part.clip, part.first, y * above)),
                           half.channels[which] + half.gap[which]);
        }
      }
    }
  }

  // What step n reads.
  GroupMap source(int64_t n, const std::vector<GroupMap>& results) const {
    if (steps[n].high.slot == kLocal) return results[steps[n].high.offset];
    const Layer& layer = layers[n];
    return {{const_cast<char*>(static_cast<const char*>(places[n].high)), const_cast<char*>(static_cast<const char*>(places[n].low))},
            {layer.in_high, layer.in_low}, {0, 0}, layer.frames, layer.height, layer.width, kElement<Format>};
  }

  // A layer whose result has the size of what it reads: a part of it is a smaller map.
  void compute_pointwise(int64_t n, const Part& part, const std::vector<GroupMap>& results) const {
    const GroupMap from = source(n, results);
    Layer layer = layers[n];
    layer.clips = 1, layer.frames = part.frames(), layer.height = part.rows();
    for (int which = 0; which < 2; ++which) layer.in_gap[which] = from.gap[which], layer.out_gap[which] = results[n].gap[which];
    GroupMap residual = results[n];
    residual.ring = 0;
    residual.data[0] = const_cast<char*>(static_cast<const char*>(places[n].residual_high));
    residual.data[1] = const_cast<char*>(static_cast<const char*>(places[n].residual_low));
    const auto at = [&](const GroupMap& map, int which) { return map.at(which, part.clip, part.first, part.begin); };
    Maps maps{at(from, 0), at(from, 1), at(residual, 0), at(residual, 1), nullptr, at(results[n], 0), at(results[n], 1), nullptr};
    if (places[n].gate)
      maps.gate = static_cast<const char*>(places[n].gate) + part.clip * (layer.in_high + layer.in_low) * kElement<Format>;
    run_layer(layer, maps, 1);
  }

  void compute_depthwise(const Layer& layer, const Part& part, const GroupMap& from, const GroupMap& to) const {
    using Element = typename Format::Element;
    const DepthwiseRun<Format> run(layer, 1);
    const auto rows_of = [&](const GroupMap& map, int which, auto* data) {
      const int64_t first = map.ring ? map.first_row : 0;
      return FrameRows<std::remove_pointer_t<decltype(data)>>{data, map.frame_bytes(which) / map.element,
                                                              map.row_bytes(which) / map.element, map.ring,
                                                              which ? first / 2 : first, map.has_row_ring ? map.rows(which) : 0};
    };
    for (int which = 0; which < (layer.in_low ? 2 : 1); ++which) {
      DepthwiseMap<Format> map = run.map(which);
      map.from = rows_of(from, which, reinterpret_cast<const Element*>(from.data[which]));
      map.pixel += from.gap[which], map.out_pixel += to.gap[which];
      map.to = rows_of(to, which, reinterpret_cast<Element*>(to.data[which]));
      const int64_t first_frame = from.ring ? 0 : part.clip * from.frames, first_out = to.ring ? 0 : part.clip * to.frames;
      const int64_t begin = which ? part.begin / 2 : part.begin, end = which ? low_size(part.end) : part.end;
      run.compute(part.first, part.last, begin, end, map, first_frame, first_out);
    }
  }
};

}  // namespace
