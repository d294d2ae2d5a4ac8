// Layers in bfloat16.

#include "layer_run.h"

#if defined(OCTVIDEO_HAS_BFLOAT16)
void run_bfloat16(const Layer& layer, const Maps& maps, int64_t threads) { LayerRun<BFloat16>(layer, maps, threads)(); }
#endif
