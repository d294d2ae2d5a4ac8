// Layers in int8.

#include "layer_run.h"

#if defined(OCTVIDEO_HAS_INT8)
void run_int8(const Layer& layer, const Maps& maps, int64_t threads) { LayerRun<Int8>(layer, maps, threads)(); }
#endif
