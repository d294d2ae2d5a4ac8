"""Work on many machines by Ray (https://ray.io): processes that load once, and items that are given to them.

connection.py   a cluster that is there, or one of this machine alone
pool.py         items in, results out, whatever becomes of processes and nodes

Plain actors rather than `ray.data`: its unit of work, of loss and of writing is a block of rows. What a command here
must keep is a line for each video, written by the driver the moment it is known, into the file that the command on
one machine writes, too. So a run that was stopped goes on with either, and a video that ends its process is found by
itself, where `ray.data` does the block again and again.
"""
