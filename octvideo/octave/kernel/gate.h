// Squeeze-excitation: the mean of each channel over a clip, and what is scaled by a gate of one pixel for each clip.

#pragma once

#include <vector>

#include "activation.h"
#include "layer.h"
#include "memory.h"
#include "pooling.h"

namespace {

// A clip's means: of the high channels, and then of the low ones.
template <class Format>
class MeanRun {
  using Element = typename Format::Element;

 public:
  MeanRun(const Layer& layer, const Maps& maps, int64_t threads) : layer(layer), maps(maps), threads(threads) {}

  void operator()() const {
    parallel_for(threads, layer.clips, [&](int64_t clip) {
      compute(clip, maps.high, layer.height * layer.width, layer.in_high, 0);
      if (layer.in_low) compute(clip, maps.low, low_size(layer.height) * low_size(layer.width), layer.in_low, 1);
    });
  }

 private:
  const Layer& layer;
  const Maps& maps;
  const int64_t threads;

  // Pixels in groups, whose sums are added: float32 would lose much of a single long sum.
  void compute(int64_t clip, const void* data, int64_t frame, int64_t channels, int which) const {
    constexpr int64_t kGroup = 256;
    const int64_t pixels = layer.frames * frame;
    const auto* const x = static_cast<const Element*>(data) + clip * pixels * channels;
    float* const total = scratch<float>(kSums, 2 * channels);
    float* const group = total + channels;
    std::fill_n(total, channels, 0.0f);
    for (int64_t begin = 0; begin < pixels; begin += kGroup) {
      std::fill_n(group, channels, 0.0f);
      for (int64_t p = begin; p < std::min(begin + kGroup, pixels); ++p)
        each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
          store(group + c, load(group + c, lanes) + Format::load_raw(x + p * channels + c, lanes), lanes);
        });
      for (int64_t c = 0; c < channels; ++c) total[c] += group[c];
    }
    const Quantum of_x = quantum_of(layer.in_scale[which], layer.in_zero[which]);
    const Quantum of_out = quantum_of(layer.out_scale[0], layer.out_zero[0]);
    Element* const out = static_cast<Element*>(maps.out_high) + clip * layer.outs_high + (which ? layer.in_high : 0);
    each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const Vector mean = load(total + c, lanes) * (1.0f / static_cast<float>(pixels));
      store_real<Format>(out + c, kIsInt8<Format> ? (mean - of_x.zero) * of_x.scale : mean, lanes, of_out);
    });
  }
};

// activation(x * gate + residual); the gate's channels are the high ones, and then the low ones.
template <class Format>
class ScaleRun {
  using Element = typename Format::Element;

 public:
  ScaleRun(const Layer& layer, const Maps& maps, int64_t threads) : layer(layer), maps(maps), threads(threads) {}

  void operator()() const {
    parallel_for(threads, layer.clips * layer.frames, [&](int64_t image) {
      compute(image, maps.high, maps.residual_high, maps.out_high, layer.height * layer.width, layer.in_high, 0);
      if (layer.in_low)
        compute(image, maps.low, maps.residual_low, maps.out_low, low_size(layer.height) * low_size(layer.width),
                layer.in_low, 1);
    });
  }

 private:
  const Layer& layer;
  const Maps& maps;
  const int64_t threads;

  void compute(int64_t image, const void* data, const void* added, void* to, int64_t pixels, int64_t channels,
               int which) const {
    const int64_t begin = image * pixels * channels, all = layer.in_high + layer.in_low;
    const auto* const x = static_cast<const Element*>(data) + begin;
    const auto* const residual = added ? static_cast<const Element*>(added) + begin : nullptr;
    Element* const out = static_cast<Element*>(to) + image * pixels * (channels + layer.out_gap[which]);
    const auto* const gate = static_cast<const Element*>(maps.gate) + image / layer.frames * all + (which ? layer.in_high : 0);
    float* const factors = scratch<float>(kSums, channels);
    const Quantum of_x = quantum_of(layer.in_scale[which], layer.in_zero[which]);
    const Quantum of_gate = quantum_of(layer.gate_scale, layer.gate_zero);
    const Quantum of_residual = quantum_of(layer.residual_scale[which], layer.residual_zero[which]);
    const Quantum of_out = quantum_of(layer.out_scale[which], layer.out_zero[which]);
    each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      store(factors + c, load_real<Format>(gate + c, lanes, of_gate), lanes);
    });
    constexpr int64_t kVectors = 16;
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t first = 0; first < channels; first += kVectors * kLanes) {
        const int64_t at = p * channels + first, to_at = p * (channels + layer.out_gap[which]) + first;
        const int64_t part = std::min(kVectors * kLanes, channels - first);
        Vector values[kVectors];
        each_vector(part, [&](int64_t c, int lanes) __attribute__((always_inline)) {
          Vector value = load_real<Format>(x + at + c, lanes, of_x) * load(factors + first + c, lanes);
          if (residual) value += load_real<Format>(residual + at + c, lanes, of_residual);
          values[c / kLanes] = value;
        });
        activate(values, (part + kLanes - 1) / kLanes, layer.activation);
        each_vector(part, [&](int64_t c, int lanes) __attribute__((always_inline)) {
          store_real<Format>(out + to_at + c, values[c / kLanes], lanes, of_out);
        });
      }
  }
};

}  // namespace
