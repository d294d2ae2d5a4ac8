"""Networks whose layers do in passing what surrounds them: in inference, and for GPUs in training too.

Read from the top:

prepare.py           `prepare_inference`: a copy in which norms, additions, activations and pools join convolutions
sequence.py          layers that follow each other, as one call of the kernel
conv.py              a convolution, ordinary or octave: kernel, else oneDNN, else torch
light_operations.py  squeeze-excitation (means over clips, products with a gate), temporal shifts
onednn.py            oneDNN's fused convolution
training.py          `fuse_training`: norms that take on what surrounds them, for CUDA
patterns.py          what the nodes around a layer do
activations.py       which of the kernel's activations one applies
arrange.py           `arrange`: ordinary convolutions in the form that is fast for their layout, for training too
"""
