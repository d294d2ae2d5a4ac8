// Layers in int8.

#include "depthwise.h"
#include "gate.h"
#include "layer_run.h"

#if defined(OCTVIDEO_HAS_INT8)
void run_int8(const Layer& layer, const Maps& maps, int64_t threads) {
  switch (layer.kind) {
    case kDepthwise: return DepthwiseRun<Int8>(layer, maps, threads)();
    case kMean: return MeanRun<Int8>(layer, maps, threads)();
    case kScale: return ScaleRun<Int8>(layer, maps, threads)();
    default: return LayerRun<Int8>(layer, maps, threads)();
  }
}
#endif
