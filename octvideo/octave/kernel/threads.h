// parallel_for, on the threads that torch keeps.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

extern "C" {

// OpenMP's entry for "run this on so many threads": GNU's runtime, LLVM's and Intel's all have it. library.py sets it to
// that of the runtime which torch has loaded, so that both share one pool of threads and this library needs no runtime of
// its own. Null: one thread does all.
inline void (*gomp_parallel)(void (*run)(void*), void* data, unsigned threads, unsigned flags) = nullptr;

}  // extern "C"

namespace {

// fn(n) for n < count, on several threads, each in order. A thread takes `chunk` neighbours at a time; 0 lets a thread keep
// most neighbours together, and one whose core is busy with something else delays the others little.
template <class Function>
void parallel_for(int64_t threads, int64_t count, const Function& fn, int64_t chunk = 0) {
  struct Work {
    const Function& fn;
    const int64_t count, chunk;
    std::atomic<int64_t> next;

    static void run(void* data) {
      Work& work = *static_cast<Work*>(data);
      for (int64_t first; (first = work.next.fetch_add(work.chunk, std::memory_order_relaxed)) < work.count;)
        for (int64_t n = first; n < std::min(first + work.chunk, work.count); ++n) work.fn(n);
    }
  };
  if (count > 1 && threads > 1 && gomp_parallel) {
    Work work{fn, count, chunk ? chunk : std::max<int64_t>(1, count / (4 * threads)), {0}};
    gomp_parallel(Work::run, &work, static_cast<unsigned>(threads), 0);
  } else {
    for (int64_t n = 0; n < count; ++n) fn(n);
  }
}

}  // namespace
