"""What a CUDA device does in fewer passes over the maps: batch norm, residual, ReLU and pooling of an octave layer.

norm.py             `octave_norm`: the operation, by Triton where it runs, else by `plain`
plain.py            the same in plain torch: what Triton's kernels are held against
"""
