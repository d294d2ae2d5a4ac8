"""How an ordinary network becomes an octave one.

Read from the top, as `octavize` calls them:

octavize.py        the whole: a network in, an octave one out, with the same state_dict
trace.py           one graph that holds in training and in evaluation, or an error that says why
conv_form.py       convolutions of other classes than torch's, by what their `forward` is seen to do
roles.py           what each node of the graph does to a pair of maps
value_classes.py   values that must be split alike, and the share that each is asked to have
solve.py           which channels of every value are low
rewrite.py         the modules and the graph, changed to the solution
modules.py         operations on a pair: activations, pools, additions, concatenation, gates
report.py          what became octave and what could not

and, for trained networks, with clips:

calibration.py     what is asked for, and what is said of it
spectrum.py        what each channel loses at half resolution, and what that does to the output
choose.py          which channels are low, and how many of each layer
reorder.py         they become the last ones: the same function, its channels renamed
refit.py           layer by layer, weights and statistics fitted to the ordinary network's values
least_squares.py   a convolution's weights
walk.py            a network computed node by node over all clips
"""
