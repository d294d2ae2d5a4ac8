"""A model of time on a GPU: the kernels that a network launches, what they move and multiply, and how long that takes.

Nothing runs on a GPU, and none is needed. The kernels are those of the graph that would run there:

    fake.py      the network and its clips as fake tensors on "cuda"; backward without the autograd engine
    eager.py     torch's operations, forward, backward and the optimizer's, as they are dispatched
    fused.py     the schedule of torch.compile's inductor, stopped before it writes code
    device.py    what a kernel takes: the larger of bytes over bandwidth and FLOPs over rate, and a launch's cost
    report.py    tables, JSON and a picture
    command.py   the command line
"""
