"""What loading costs: beside bare decoders and other libraries, stage by stage, and from end to end.

ways.py      one clip or one video, read by us, by the bare decoder, by an open per view, by pytorchvideo; our stages
loaders.py   whole DataLoaders with workers, and how many of them a GPU needs
augmentations.py   what each augmentation costs
command.py   the command line of tools/benchmark_loading.py, and its tables
"""
