// The layers of a network, each in its number format, one after the other without a return to Python; and maps from
// float32 to a format and back.

#include "layer.h"
#include "memory.h"

#if defined(OCTVIDEO_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// In a file for each format, so that compilers do them at once.
void run_float32(const Layer& layer, const Maps& maps, int64_t threads);
void run_bfloat16(const Layer& layer, const Maps& maps, int64_t threads);
void run_int8(const Layer& layer, const Maps& maps, int64_t threads);
void run_group_float32(const Step* steps, int64_t count, const std::vector<Maps>& places, int64_t threads);
void run_group_bfloat16(const Step* steps, int64_t count, const std::vector<Maps>& places, int64_t threads);
void run_group_int8(const Step* steps, int64_t count, const std::vector<Maps>& places, int64_t threads);

void run_layer(const Layer& layer, const Maps& maps, int64_t threads) {
  // Results have no elements either, but means do.
  if (layer.clips * layer.frames * layer.height * layer.width == 0 && layer.kind != kMean) return;
#if defined(OCTVIDEO_HAS_BFLOAT16)
  if (layer.format == kBFloat16) return run_bfloat16(layer, maps, threads);
#endif
#if defined(OCTVIDEO_HAS_INT8)
  if (layer.format == kInt8) return run_int8(layer, maps, threads);
#endif
  run_float32(layer, maps, threads);
}

namespace {

void run_group(const Step* steps, int64_t count, const std::vector<Maps>& places, int64_t threads) {
  const Layer& layer = *steps->layer;
  if (layer.clips * layer.frames * layer.height * layer.width == 0) return;
#if defined(OCTVIDEO_HAS_BFLOAT16)
  if (layer.format == kBFloat16) return run_group_bfloat16(steps, count, places, threads);
#endif
#if defined(OCTVIDEO_HAS_INT8)
  if (layer.format == kInt8) return run_group_int8(steps, count, places, threads);
#endif
  run_group_float32(steps, count, places, threads);
}

// fn(first element, lanes) for all of `count` elements.
template <class Function>
void in_vectors(int64_t count, int64_t threads, const Function& fn) {
  constexpr int64_t kChunk = 4096;
  parallel_for(threads, (count + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int64_t end = std::min((chunk + 1) * kChunk, count);
    for (int64_t n = chunk * kChunk; n < end; n += kLanes) fn(n, static_cast<int>(std::min<int64_t>(kLanes, end - n)));
  });
}

template <class Format>
void convert(const float* from, void* to, int64_t count, const Quantum& quantum, int64_t threads) {
  auto* const out = static_cast<typename Format::Element*>(to);
  in_vectors(count, threads, [&](int64_t n, int lanes) { store_real<Format>(out + n, load(from + n, lanes), lanes, quantum); });
}

template <class Format>
void revert(const void* from, float* to, int64_t count, const Quantum& quantum, int64_t threads) {
  const auto* const in = static_cast<const typename Format::Element*>(from);
  in_vectors(count, threads, [&](int64_t n, int lanes) { store(to + n, load_real<Format>(in + n, lanes, quantum), lanes); });
}

}  // namespace

extern "C" {

int64_t num_registers() { return kRegisters; }
int64_t num_lanes() { return kLanes; }

// Lets layers be computed on AMX tiles, where the kernel was compiled for them, by this process from now on; whether the
// system does. Weights that were packed before are not for them. `asks`: the system, else it is taken to have agreed.
bool allow_tiles([[maybe_unused]] bool asks) {
#if defined(OCTVIDEO_HAS_AMX)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of arch_prctl, XFEATURE_XTILEDATA
  uses_tiles = !asks || syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
  return uses_tiles;
}

bool tiles_are_used() { return uses_tiles; }

// Whether layers can have the format.
bool has_format(int64_t format) {
#if defined(OCTVIDEO_HAS_BFLOAT16)
  if (format == kBFloat16) return true;
#endif
#if defined(OCTVIDEO_HAS_INT8)
  if (format == kInt8) return true;
#endif
  return format == kFloat32;
}

// A batch is computed in `parts` of equally many clips, each with slots of its own, that follow those of the part before it.
// Several parts run at once, each on one thread, so that no thread waits for another from layer to layer. Of a part, the first
// `sliced` steps are done for some clips, and then for the next ones, in `slices`: their maps stay in the cache.
void run_sequence(const Step* steps, int64_t count, char* const* slots, int64_t num_slots, int64_t parts, int64_t sliced,
                  int64_t slices, int64_t threads) {
  parallel_for(parts > 1 ? threads : 1, parts, [&](int64_t part) {
    char* const* const own = slots + part * num_slots;
    std::vector<Maps> places;
    const auto run = [&](const Step* begin, const Step* end, int64_t slice) {
      const auto map = [&](const Place& place) {
        return place.slot < 0 ? nullptr : own[place.slot] + place.offset + slice * place.slice;
      };
      for (const Step* step = begin; step < end; step += step->group) {
        places.clear();
        for (const Step* one = step; one < step + step->group; ++one)
          places.push_back({map(one->high), map(one->low), map(one->residual_high), map(one->residual_low),
                            map(one->gate), map(one->out_high), map(one->out_low), nullptr});
        if (step->group > 1)
          run_group(step, step->group, places, parts > 1 ? 1 : threads);
        else
          run_layer(*step->layer, places[0], parts > 1 ? 1 : threads);
      }
    };
    for (int64_t slice = 0; slice < slices; ++slice) run(steps, steps + sliced, slice);
    run(steps + sliced, steps + count, 0);
  }, 1);
}

// Elements of a format, bfloat16 or int8, of `count` real values. An int8 element is the value / scale + zero.
void convert_to(int64_t format, const float* from, void* to, int64_t count, float scale, int64_t zero, int64_t threads) {
  const Quantum quantum{scale, 1.0f / scale, static_cast<float>(zero)};
#if defined(OCTVIDEO_HAS_BFLOAT16)
  if (format == kBFloat16) convert<BFloat16>(from, to, count, quantum, threads);
#endif
#if defined(OCTVIDEO_HAS_INT8)
  if (format == kInt8) convert<Int8>(from, to, count, quantum, threads);
#endif
}

// And back.
void convert_from(int64_t format, const void* from, float* to, int64_t count, float scale, int64_t zero, int64_t threads) {
  const Quantum quantum{scale, 1.0f / scale, static_cast<float>(zero)};
#if defined(OCTVIDEO_HAS_BFLOAT16)
  if (format == kBFloat16) revert<BFloat16>(from, to, count, quantum, threads);
#endif
#if defined(OCTVIDEO_HAS_INT8)
  if (format == kInt8) revert<Int8>(from, to, count, quantum, threads);
#endif
}

}  // extern "C"
