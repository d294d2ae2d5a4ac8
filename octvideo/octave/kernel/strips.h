// Maps in strips of rows, so that what one strip needs stays in the cache.

#pragma once

#include "pooling.h"

namespace {

// Output rows [begin, end) of frame t of one clip.
struct Strip {
  int64_t clip, t, begin, end;
  int64_t height() const { return end - begin; }
  Strip at_half_size() const { return {clip, t, begin / 2, low_size(end)}; }
};

// The strips of all clips, in the order in which they are computed.
struct Strips {
  int64_t clips, frames, height, rows;  // `rows` in a strip
  bool by_time;                         // a strip's frames follow each other; else a frame's strips
  int64_t per_frame() const { return (height + rows - 1) / rows; }
  int64_t count() const { return clips * frames * per_frame(); }
  Strip operator[](int64_t n) const {
    const int64_t of_frame = per_frame();
    const int64_t t = by_time ? n % frames : n / of_frame % frames;
    const int64_t s = by_time ? n / frames % of_frame : n % of_frame;
    return {n / frames / of_frame, t, s * rows, std::min((s + 1) * rows, height)};
  }
};

}  // namespace
