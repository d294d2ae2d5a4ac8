// Layers in bfloat16.

#include "group.h"
#include "layer_run.h"
#include "shift.h"

#if defined(OCTVIDEO_HAS_BFLOAT16)
void run_bfloat16(const Layer& layer, const Maps& maps, int64_t threads) {
  switch (layer.kind) {
    case kDepthwise: return DepthwiseRun<BFloat16>(layer, threads)(maps);
    case kMean: return MeanRun<BFloat16>(layer, maps, threads)();
    case kScale: return ScaleRun<BFloat16>(layer, maps, threads)();
    case kShift: return run_shift<BFloat16>(layer, maps, threads);
    default: return run_in_groups<BFloat16>(layer, maps, threads);
  }
}

void run_group_bfloat16(const Step* steps, int64_t count, const std::vector<Maps>& places, int64_t threads) {
  GroupRun<BFloat16>(steps, count, places, threads)();
}
#endif
