// Layers in bfloat16.

#include "depthwise.h"
#include "gate.h"
#include "layer_run.h"

#if defined(OCTVIDEO_HAS_BFLOAT16)
void run_bfloat16(const Layer& layer, const Maps& maps, int64_t threads) {
  switch (layer.kind) {
    case kDepthwise: return DepthwiseRun<BFloat16>(layer, maps, threads)();
    case kMean: return MeanRun<BFloat16>(layer, maps, threads)();
    case kScale: return ScaleRun<BFloat16>(layer, maps, threads)();
    default: return LayerRun<BFloat16>(layer, maps, threads)();
  }
}
#endif
