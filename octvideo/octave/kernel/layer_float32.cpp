// Layers in float32.

#include "layer_run.h"

void run_float32(const Layer& layer, const Maps& maps, int64_t threads) { LayerRun<Float32>(layer, maps, threads)(); }
