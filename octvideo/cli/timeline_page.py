"""Where `octvideo timeline` writes pages: `--page DIR`.

DIR/index.html is the page of one video, or lists the pages of several; DIR/videos/ has the videos as browsers play
them. What is there already of a video is not written again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from octvideo.cli.timeline_shown import Scored
from octvideo.inference.segments import Segment
from octvideo.inference.timeline_document import timeline_document
from octvideo.pages.chosen import common_folder
from octvideo.pages.folder import PageFolder
from octvideo.pages.timeline import ListedVideo, index_page, timeline_page
from octvideo.progress import Progress
from octvideo.video import VideoReadError
from octvideo.video.browser import write_for_browser


class TimelinePages:
    """A folder of pages.

    Args:
        folder: of them, made here.
        paths: of the videos that there will be.
        names: of all classes.
        classes: those that are looked for; None is all.

    Raises:
        UserError: see `PageFolder`.
    """

    def __init__(self, folder: Path, paths: Sequence[str], names: Sequence[str], classes: Sequence[int] | None) -> None:
        num_videos = len(paths)
        self._num_videos, self._names, self._classes = num_videos, names, classes
        # Files of class folders have the same names: what they share is left out, and no more.
        self._shared = common_folder(paths) if num_videos > 1 else ""
        self._listed: list[ListedVideo] = []
        several = [self._name(number) for number in range(num_videos)] if num_videos > 1 else []
        self._folder = PageFolder(folder, "videos", ["index.html", *several])

    def _name(self, number: int) -> str:
        """Of a video's page, where there are several: as many digits as the last one has."""
        return f"{number + 1:0{len(str(self._num_videos))}}.html"

    def add(self, path: str, video: Scored, segments: Sequence[Segment], trouble: str) -> None:
        """Writes the page of a video; of one that can't be read the list says so."""
        title = path.removeprefix(self._shared) if self._num_videos > 1 else Path(path).name
        if not video.starts:
            self._listed.append(ListedVideo(title, None, None, trouble or "it is shorter than a window"))
            return
        notes, url = [trouble] if trouble else [], None
        try:
            with Progress(f"writing {Path(path).name} for browsers, seconds", max(int(video.ends[-1]), 1)) as progress:
                played = write_for_browser(
                    path, self._folder.inner, is_damaged=bool(trouble), on_frame=lambda s: progress.update(int(s))
                )
            url = f"videos/{played.path.name}"
            how = "a copy of the file" if played.is_copy else "the file anew, in H.264, so that browsers play it"
            notes += [f"The video is {how}.", *played.notes]
        except VideoReadError as error:
            notes.append(str(error))
        document = timeline_document(
            video.starts,
            video.ends,
            video.scores,
            segments,
            self._names,
            title=title,
            video=url,
            classes=self._classes,
            notes=notes,
        )
        alone = self._num_videos == 1
        page = "index.html" if alone else self._name(len(self._listed))
        self._folder.write(page, timeline_page(document, up=None if alone else "index.html"))
        self._listed.append(ListedVideo(title, page, document, trouble))

    def close(self) -> None:
        """Writes the list of the videos that are done, unless one page is all there is."""
        with self._folder:
            if not self._listed:
                return
            if self._num_videos > 1 or self._listed[0].page is None:
                self._folder.write("index.html", index_page(self._listed))
        print(f"the page is {self._folder.path / 'index.html'}", file=sys.stderr)
