"""What a CUDA device does in fewer passes over the maps: batch norm, residual, ReLU and pooling of an octave layer.

In the order to read it:

norm.py                `octave_norm`, the operation: by Triton where it runs, else by `plain_norm`
plain.py               the same in plain torch
norm_ops.py            torch operators with gradients, and how large a program is; imports Triton
norm_kernels.py        the kernels, forward; norm_grad_kernels.py: back
weight_blocks.py       the convolutions of a layer as one step of autograd
weight_kernels.py      cuts a weight's blocks out, and puts them back; imports Triton
devices.py             where Triton runs; probe_kernels.py: tries it
"""
