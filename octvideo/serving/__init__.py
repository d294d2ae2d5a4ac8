"""A network behind HTTP: videos are uploaded, scores and segments come back.

::

    body ─ uploads ─▶ file ─ service: a place in the queue ─▶ decoding (a process that can be killed) ─▶ clips
      ─ computing (one thread for all) ─▶ logits ─ answers ─▶ JSON

limits.py      how much of anything a client may take
uploads.py     a request's body → a file without a name, counted while it comes
decoding.py    such a file → views, or windows, in a process of its own
computing.py   one thread that runs the engine, for one request after the other or several at once
answers.py     what the JSON holds, and how it is made of a decoded video
service.py     the queue: who waits, who is answered, who is turned away
metrics.py     counts and times, as Prometheus reads them
app.py         the routes, their errors, one line in the log for each request; the page is octvideo.pages.serve's
server.py      sockets, signals and the patience with slow clients: uvicorn
"""
