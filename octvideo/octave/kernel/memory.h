// Memory that a thread keeps from call to call.

#pragma once

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "vectors.h"

namespace {

// What a thread keeps apart.
enum Scratch { kPooledInput, kPaddedLow, kPooledLow, kPooledHigh, kPaddedHigh, kFromLow, kMaxPoolRows, kBias, kScratches };

// Elements that are not set; much of them in pages of 2 MB, for the reason that large_pages.py gives.
class Memory {
 public:
  ~Memory() { std::free(data_); }
  float* reserve(int64_t elements) {
    if (elements <= size_) return data_;
    constexpr size_t kPage = 2 << 20, kMuch = 128 << 10;
    const size_t least = elements * sizeof(float), unit = least < kMuch ? kCacheLine * sizeof(float) : kPage;
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

float* scratch(Scratch which, int64_t elements) {
  static thread_local Memory kept[kScratches];
  return kept[which].reserve(elements);
}

}  // namespace
