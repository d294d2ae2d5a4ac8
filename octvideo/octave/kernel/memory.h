// Memory that a thread keeps from call to call.

#pragma once

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "formats.h"

// For tests, which change it: what a thread keeps is full of NaN when it is asked for the first time after that.
extern "C" {
inline int64_t poison_round = 0;
}

namespace {

// What a thread keeps apart.
enum Scratch { kPooledInput, kPaddedLow, kPooledLow, kPooledHigh, kPaddedHigh, kFromLow, kMaxPoolRows, kBias, kPadFrameHigh, kPadFrameLow, kSums, kGroup, kScratches };

// Bytes that are not set; much of them in pages of 2 MB, for the reason that large_pages.py gives.
class Memory {
 public:
  ~Memory() { std::free(data_); }
  void* reserve(size_t least) {
    if (least > size_) grow(least);
    if (poisoned_ != poison_round) std::memset(data_, 0xFF, size_), poisoned_ = poison_round;
    return data_;
  }

 private:
  void grow(size_t least) {
    constexpr size_t kPage = 2 << 20, kMuch = 512 << 10;
    const size_t unit = least < kMuch ? kLine : kPage, bytes = (least + unit - 1) / unit * unit;
    std::free(data_);
    data_ = std::aligned_alloc(unit, bytes);
    size_ = data_ ? bytes : 0;
    if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (unit == kPage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    poisoned_ = 0;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
  int64_t poisoned_ = 0;
};

template <class Element>
Element* scratch(Scratch which, int64_t elements) {
  static thread_local Memory kept[kScratches];
  return static_cast<Element*>(kept[which].reserve(elements * sizeof(Element)));
}

}  // namespace
