// Layers in float32.

#include "depthwise.h"
#include "gate.h"
#include "layer_run.h"

void run_float32(const Layer& layer, const Maps& maps, int64_t threads) {
  switch (layer.kind) {
    case kDepthwise: return DepthwiseRun<Float32>(layer, maps, threads)();
    case kMean: return MeanRun<Float32>(layer, maps, threads)();
    case kScale: return ScaleRun<Float32>(layer, maps, threads)();
    default: return LayerRun<Float32>(layer, maps, threads)();
  }
}
