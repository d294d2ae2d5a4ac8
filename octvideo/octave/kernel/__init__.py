"""What a processor does: whole octave layers and ordinary convolutions, by C++ of our own.

The Python side, in the order to read it:

layout.py            channels-last maps, and views of them
library.py           loads the C++, which a wheel brings or a compiler makes (variants.py: for which processors)
formats.py           number formats: float32, bfloat16, int8
large_pages.py       memory for weights and for maps between layers
fused_conv.py        a layer that computes scores: its form, the struct that both sides share, packed weights
light_layers.py      layers of light blocks: depthwise convolutions, means, products with a gate, temporal shifts
sequence.py          layers that follow each other: where each map lies, and one call for all
training.py          a layer in a training step, forward and back

The C++:

vectors.h            vectors of the machine's width; threads.h: loops on torch's threads; memory.h: memory of a thread
formats.h            number formats, side by side: elements of maps, words of weights, sums of products
layer.h              the structs that Python fills; the order of a convolution's K; blocks of outputs
activation.h         what follows a layer, element by element
tiles.h              the micro-kernel on vectors, float32's and those of the processors' own bfloat16 and int8 products
amx.h                the micro-kernel on AMX tiles
pooling.h            maps with padding, filled by copying or pooling; max pools
strips.h             a map in strips of rows
convolution.h        one convolution of a layer, strip by strip
depthwise.h          depthwise convolutions
gate.h               squeeze-excitation: means over clips, products with a gate
shift.h              temporal shift
group.h              layers of a light block together, part by part of their maps
layer_run.h          a whole layer, by strips or by maps; layer_float32.cpp and the others compile it for each format
fused_conv.cpp       a sequence of layers
pack_weights.cpp     weights in the order and the format in which tiles read them
weight_gradient.cpp  the gradient of the weight of convolutions one pixel wide
product_rates.cpp    the machine's peak in each format
"""
