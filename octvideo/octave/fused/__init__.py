"""Networks whose layers do in passing what surrounds them: in inference, and for GPUs in training too.

Read from the top:

prepare.py    `prepare_inference`: a copy of a network, in which norms, additions, ReLUs and pools join convolutions
sequence.py   convolutions that follow each other, as one call of the kernel
conv.py       a convolution, ordinary or octave: kernel, else oneDNN, else torch
gates.py      squeeze-excitation: means over clips, products with a gate
onednn.py     oneDNN's fused convolution
training.py   `fuse_training`: norms that take on what surrounds them, for CUDA
patterns.py   what the nodes around a layer do; activations.py: which activation
              one applies
arrange.py    `arrange`: ordinary convolutions in the form that is fast for their layout, for training too
"""
