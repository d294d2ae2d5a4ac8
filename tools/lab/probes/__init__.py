"""What conversion keeps of an image network with ImageNet weights, judged on videos by a fixed linear classifier.

clips.py       a folder with clips.csv → labels, folds, sources and frames
networks.py    the networks whose weights can be had, and their features
classifier.py  the judge
arms.py        ways to convert a network, in the order of their worth
work.py        measures arms, one line of a file each
training.py    trains converted and ordinary networks alike
depth.py       what channels lose against depth: a picture, a table
summary.py     lines → shares kept, with intervals over sources; tables, a picture
command.py     the command line
"""
