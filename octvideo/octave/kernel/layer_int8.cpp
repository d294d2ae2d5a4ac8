// Layers in int8.

#include "group.h"
#include "layer_run.h"
#include "shift.h"

#if defined(OCTVIDEO_HAS_INT8)
void run_int8(const Layer& layer, const Maps& maps, int64_t threads) {
  switch (layer.kind) {
    case kDepthwise: return DepthwiseRun<Int8>(layer, threads)(maps);
    case kMean: return MeanRun<Int8>(layer, maps, threads)();
    case kScale: return ScaleRun<Int8>(layer, maps, threads)();
    case kShift: return run_shift<Int8>(layer, maps, threads);
    default: return run_in_groups<Int8>(layer, maps, threads);
  }
}

void run_group_int8(const Step* steps, int64_t count, const std::vector<Maps>& places, int64_t threads) {
  GroupRun<Int8>(steps, count, places, threads)();
}
#endif
