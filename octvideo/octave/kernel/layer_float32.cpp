// Layers in float32.

#include "group.h"
#include "layer_run.h"
#include "shift.h"

void run_float32(const Layer& layer, const Maps& maps, int64_t threads) {
  switch (layer.kind) {
    case kDepthwise: return DepthwiseRun<Float32>(layer, threads)(maps);
    case kMean: return MeanRun<Float32>(layer, maps, threads)();
    case kScale: return ScaleRun<Float32>(layer, maps, threads)();
    case kShift: return run_shift<Float32>(layer, maps, threads);
    default: return run_in_groups<Float32>(layer, maps, threads);
  }
}

void run_group_float32(const Step* steps, int64_t count, const std::vector<Maps>& places, int64_t threads) {
  GroupRun<Float32>(steps, count, places, threads)();
}
