"""Pages to look at and to send: of a run, and of videos with their timelines.

page.py       one HTML file that needs nothing from elsewhere; what names hold is only text in it
timeline.py   a video beside its timeline, and the list of several videos
report.py     a run: figures, curves, confusion matrix, classes, mistakes
card.py       what is written of a network; card_markdown.py: the same for the Hugging Face hub
browse.py     augmented and mixed clips with their labels
serve.py      the page of `octvideo serve`: choose or record a video, and see its timeline
chosen.py     which videos of a run get a thumbnail, and which are listed
curves.py     curves as SVG: of a training, of precision over recall
folder.py     where they are written

look.css is the look of all of them. After dom.js and table.js, timeline.js shows a document of
`octvideo.inference.timeline_document`, and report.js shows a run, with matrix.js, or several.js where videos have
several labels. camera.js and serve.js are the server's.
"""
