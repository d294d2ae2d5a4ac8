"""The page of `octvideo serve` in a real browser, in front of a real server with a tiny network."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.inference import Predictor
from octvideo.models import i3d_small
from octvideo.pages.serve import serve_page
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings

pytest.importorskip("fastapi", reason="octvideo serve needs the extra 'serve'")
from octvideo.serving.computing import Computing
from octvideo.serving.limits import Limits
from octvideo.serving.server import bound_socket, serve, url_of
from octvideo.serving.service import Service

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">'\"&{{ 7*7 }}"
ARABIC = "فتح الصندوق"
LEFT, RIGHT, DOWN = "\ue012", "\ue014", "\ue015"
TAB, ENTER, ESCAPE, PAGE_DOWN = "\ue004", "\ue007", "\ue00c", "\ue00f"
LIMITS = Limits(max_bytes=150_000, max_length_sec=20, queue=1, workers=1)


class Served:
    """A server, and a browser that is shown its page.

    Args:
        page: the tab.
        service: that answers.
        url: of the page.
    """

    def __init__(self, page: Any, service: Service, url: str) -> None:
        self.page, self.service, self.url = page, service, url

    def open(self, **size: int) -> None:
        self.page.open(self.url, **size)

    def choose(self, video: Path) -> None:
        self.page.one("#file").send_keys(str(video))

    def ask(self, video: Path) -> None:
        """Uploads a video, and waits for its answer or its refusal."""
        self.choose(video)
        self.page.one("#send").click()
        self.answered()

    def answered(self) -> None:
        self.page.until(
            "return document.querySelector('#sending').hidden && (!document.querySelector('#answer').hidden"
            " || !!document.querySelector('#problem').textContent)"
        )

    @property
    def state(self) -> str:
        return str(self.page.one("#state").text)

    @property
    def problem(self) -> str:
        return str(self.page.one("#problem").text)

    def position(self) -> float:
        return float(self.page.one(".plot").get_attribute("aria-valuenow"))

    def focused(self) -> str:
        """The id of what has the focus, or its class."""
        return str(self.page.js("return document.activeElement.id || document.activeElement.className"))


@contextlib.contextmanager
def serving(page: Any, folder: Path, names: list[str], limits: Limits = LIMITS) -> Iterator[Served]:
    """Serves as `octvideo serve` does; at the end nothing may have been asked of anybody else, or be left."""
    torch.manual_seed(1)
    network = i3d_small(num_classes=len(names), alpha=0.25, width=8)
    # Logits far apart, so that there are segments.
    [module for module in network.modules() if isinstance(module, nn.Linear)][-1].weight.data *= 100
    views = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=1, short_side_px=32, crop_px=32)
    block = make_block(network, names, views=views, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "octvideo": block}, folder / "last.ckpt")
    predictor = Predictor.from_checkpoint(folder / "last.ckpt", device="cpu")
    with Service(predictor, limits) as service:
        bound = bound_socket("127.0.0.1", 0)
        bound.listen()
        url = url_of(bound)
        thread = threading.Thread(target=serve, args=(service, bound))
        thread.start()
        try:
            yield Served(page, service, url)
            assert [asked for asked in page.requests() if not asked.removeprefix("blob:").startswith(url)] == []
            # The console tells of refusals, and of looking for the end of a recording.
            usual = ("the server responded with a status of", "net::ERR_REQUEST_RANGE_NOT_SATISFIABLE")
            assert [said for said in page.errors() if not any(words in said for words in usual)] == []
            assert page.driver.title != "hacked"
        finally:
            service.is_stopping = True
            thread.join()
        assert service.counts == (0, 0) and list(service.folder.iterdir()) == []


@pytest.fixture
def served(chromium: Any, tmp_path: Path) -> Iterator[Served]:
    with serving(chromium, tmp_path, [ARABIC, HOSTILE]) as served:
        yield served


@pytest.fixture
def video(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> Path:
    """Four seconds that a browser plays."""
    return encode(tmp_path / "clip & <b>.mp4", moving(80), g=10)


def test_an_upload_is_shown_beside_its_timeline(served: Served, video: Path) -> None:
    page = served.page
    served.open()
    assert sorted(page.texts(".known bdi")) == sorted([ARABIC, HOSTILE])
    page.one("#threshold").clear()
    page.one("#threshold").send_keys("0.3")
    served.choose(video)
    page.until("return document.querySelector('#preview video').readyState >= 1")
    assert served.state == "The video is chosen, and not sent yet." and served.focused() == "send"
    page.one("#send").click()
    served.answered()
    assert served.problem == "" and served.state.startswith("Done: ")
    assert page.one("#answer-title").text == video.name and page.all("#preview *") == []
    assert set(page.texts(".plot .label bdi")) == {ARABIC, HOSTILE}
    page.until("return document.querySelector('#view video').readyState >= 1")

    # A click seeks in the video that the browser holds itself.
    from selenium.webdriver.common.action_chains import ActionChains

    over = page.one(".over")
    ActionChains(page.driver).move_to_element_with_offset(over, over.size["width"] // 4, 0).click().perform()
    page.until("return Math.abs(document.querySelector('#view video').currentTime - 3) < 0.1")
    assert served.position() == pytest.approx(3, abs=0.1)
    assert page.js("return document.querySelector('#view video').src").startswith(f"blob:{served.url}")
    asked = [url for url in page.requests() if not url.startswith("blob:")]
    assert asked == [served.url, f"{served.url}timeline?threshold=0.3"]

    # The table of the segments sorts.
    shown = page.texts(".segments tbody .number")
    assert len(shown) >= 2
    page.all(".segments .sorts")[3].click()
    scores = [float(text.removesuffix(" %")) for text in page.texts(".segments tbody .number")]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_the_keyboard_alone_is_enough(served: Served, video: Path) -> None:
    page = served.page
    served.open()
    page.keys(TAB, TAB)  # past the link to the content
    assert served.focused() == "file"
    served.choose(video)  # the dialog of the system is not the page's
    assert served.focused() == "send"
    page.keys(ENTER)
    served.answered()
    assert served.focused() == "answer-title"
    for _ in range(20):
        page.keys(TAB)
        if served.focused() == "plot":
            break
    page.keys(RIGHT)
    assert served.position() > 0
    # The other question, and a video once more.
    page.js("document.querySelector('#camera').focus()")
    page.keys(TAB, DOWN)
    assert page.js("return document.querySelector('[name=what]:checked').value") == "predict"
    assert not page.one("#threshold").is_displayed()
    page.keys(TAB)
    assert served.focused() == "send"
    page.keys(ENTER)
    served.answered()
    assert served.focused() == "answer-title" and served.state.startswith("Done: ")
    top = page.texts("#view .now bdi")
    assert set(top) == {ARABIC, HOSTILE} and served.state.startswith(f"Done: {top[0]}, ")


@pytest.mark.slow
def test_before_a_video_is_chosen_the_page_says_what_is_missing(served: Served) -> None:
    served.open()
    served.page.one("#send").click()
    assert served.problem == "Choose a video first." and served.focused() == "file"
    assert served.page.one("#problem").get_attribute("role") == "alert"
    assert served.page.one("#state").get_attribute("role") == "status"


@pytest.mark.slow
def test_what_can_not_be_taken_is_told_clearly(served: Served, video: Path, tmp_path: Path, encode: Any) -> None:
    served.open()
    rotten = tmp_path / "rotten.mp4"
    rotten.write_bytes(b"nothing " * 100)
    served.ask(rotten)
    assert served.problem.startswith("Can't read the video: it is no video in a known container")
    assert "can't play this file" in served.page.one("#preview").text and served.focused() == "send"

    large = tmp_path / f"{HOSTILE.replace('/', '')}.mp4"
    large.write_bytes(bytes(150_001))
    served.choose(large)
    assert large.name in served.problem and "This server takes up to 0.1 MiB" in served.problem
    # The limit of the server, where the page does not know it.
    served.page.js("limits.max_bytes = 1e9")
    large.write_bytes(bytes(2_000_000))
    served.ask(large)
    assert served.problem.startswith("The video is larger than 0.14")

    long = encode(tmp_path / "long.mp4", torch.zeros(500, 32, 32, 3, dtype=torch.uint8), rate=20)
    served.ask(long)
    assert served.problem == "The video is too long: it lasts 25.0 s, and may last 20 s."
    # None of this keeps it from the next.
    served.ask(video)
    assert served.problem == "" and served.state.startswith("Done: ")


@pytest.mark.slow
def test_a_busy_and_a_stopping_server(served: Served, video: Path) -> None:
    served.open()
    service = served.service
    with contextlib.ExitStack() as taken:
        for _ in range(LIMITS.places):
            taken.enter_context(service.place())
        served.ask(video)
        assert served.problem.startswith("The server is busy: ") and served.problem.endswith("Try again in 2 s.")
    served.page.until("return document.querySelector('#state').textContent === 'You can try again now.'")
    assert served.problem == ""
    with service.place():
        service.is_stopping = True
        served.ask(video)
        assert served.problem == "The server is stopping. Try again in 10 s."
        service.is_stopping = False
    served.ask(video)
    assert served.state.startswith("Done: ")


@pytest.mark.slow
def test_a_server_that_has_gone(chromium: Any, tmp_path: Path, video: Path) -> None:
    with serving(chromium, tmp_path, ["a", "b"]) as served:
        served.open()
    served.ask(video)
    assert served.problem.startswith("No answer came.")
    assert "ERR_CONNECTION_REFUSED" in chromium.errors()[0]


@pytest.mark.slow
def test_while_it_is_computed_it_can_be_cancelled(
    served: Served, video: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    go_on, run = threading.Event(), Computing.run

    def waits(self: Computing, *arguments: Any) -> Tensor:
        assert go_on.wait(60)
        return run(self, *arguments)

    monkeypatch.setattr(Computing, "run", waits)
    request.addfinalizer(go_on.set)
    served.open()
    served.choose(video)
    served.page.keys(ENTER)
    served.page.until("return document.querySelector('#state').textContent.startsWith('The video has arrived')")
    assert served.focused() == "cancel" and not served.page.one("#send").is_displayed()
    assert served.page.js("return document.querySelector('#progress').position") == -1  # nobody knows how long it takes
    served.page.keys(ENTER)
    assert served.state == "Cancelled." and served.focused() == "send"
    assert not served.page.one("#sending").is_displayed() and not served.page.one("#answer").is_displayed()
    go_on.set()
    served.page.keys(ENTER)
    served.answered()
    assert served.state.startswith("Done: ")


@pytest.mark.slow
def test_a_video_is_dropped_anywhere(served: Served, video: Path) -> None:
    served.open()
    drop = """
      const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], arguments[1], {type: 'video/mp4'}));
      const event = new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true});
      return !document.querySelector('footer').dispatchEvent(event);
    """
    assert served.page.js(drop, base64.b64encode(video.read_bytes()).decode(), HOSTILE)
    assert HOSTILE in served.page.one("#preview").text
    served.page.keys(ENTER)
    served.answered()
    assert served.page.one("#answer-title").text == HOSTILE


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 400])
@pytest.mark.parametrize("width", [360, 1280])
def test_few_and_many_classes_wide_and_narrow(
    chromium: Any, tmp_path: Path, video: Path, num_classes: int, width: int
) -> None:
    names = [f"a class with a long name {n}" + " verylongword" * (n % 3) for n in range(num_classes)]
    names[:2] = [ARABIC, HOSTILE]
    with serving(chromium, tmp_path, names) as served:
        for is_dark in (False, True):
            chromium.dark(is_dark)
            served.open(width=width)
            chromium.js("document.querySelector('.known').open = true")
            assert chromium.texts(".known bdi") == names
            assert chromium.poor_contrast() == []
            served.ask(video)
            assert served.problem == "" and len(chromium.all(".plot .label bdi")) == min(num_classes, 20)
            assert ("20 of 400 classes" in chromium.one(".notes").text) == (num_classes == 400)
            assert chromium.js("return document.documentElement.scrollWidth <= innerWidth")
            assert chromium.poor_contrast() == []
        chromium.dark(False)


@pytest.mark.slow
def test_a_camera_that_is_not_there_is_no_dead_end(served: Served, video: Path) -> None:
    served.open()
    served.page.one("#camera").click()
    served.page.until("return document.querySelector('#problem').textContent")
    assert served.problem.startswith("The camera can't be used: ")
    assert served.problem.endswith(
        ("there is none. Please choose a file instead.", "it was not allowed. Please choose a file instead.")
    )
    assert served.focused() == "camera"
    served.ask(video)
    assert served.state.startswith("Done: ")


@pytest.mark.slow
def test_a_recording_of_the_camera(chromium_with_camera: Any, tmp_path: Path) -> None:
    page = chromium_with_camera
    is_on = "return !!document.querySelector('#preview video')?.srcObject?.active"
    with serving(page, tmp_path, [ARABIC, HOSTILE], Limits(max_length_sec=20, queue=1, workers=1)) as served:
        served.open()
        page.one("#camera").click()
        page.until(is_on)
        assert served.state == "The camera is on. Press Record, and once more to stop."
        page.keys(ENTER)  # it has the focus
        page.until("return document.querySelector('#preview .number').textContent > '0:02.5'")
        assert served.state == "Recording."
        page.keys(ENTER)
        page.until("return document.querySelector('#send') === document.activeElement")
        assert page.js("return document.querySelector('#preview video').src").startswith("blob:")
        page.keys(ENTER)
        served.answered()
        assert served.problem == "" and page.one("#answer-title").text == "Recording"
        # A recording states no length; it can be sought in all the same.
        page.until("return document.querySelector('#view video').readyState >= 1")
        page.until("return Number.isFinite(document.querySelector('#view video').duration)")
        page.until("return document.querySelector('#view video').currentTime === 0")
        from selenium.webdriver.common.action_chains import ActionChains

        over = page.one(".over")
        length = float(page.one(".plot").get_attribute("aria-valuemax"))
        ActionChains(page.driver).move_to_element(over).click().perform()
        page.until(
            "return Math.abs(document.querySelector('#view video').currentTime - arguments[0]) < 0.2", length / 2
        )

        # Another one ends by itself before it is longer than the server takes; and one is left off.
        page.js("limits.max_length_sec = 2")
        page.one("#camera").click()
        page.until(is_on)
        page.keys(ENTER)
        page.until("return document.querySelector('#send') === document.activeElement")
        page.one("#camera").click()
        page.until(is_on)
        page.keys(TAB, ENTER)
        assert served.state == "The camera is off." and served.focused() == "camera"
        assert "Recording" in page.one("#preview").text


def test_the_page_states_its_limits_and_names_are_text() -> None:
    html = serve_page([HOSTILE, "a"], max_bytes=200 * 2**20, max_length_sec=600)
    assert "up to 200 MiB and 10 minutes" in html and "2 classes that" in html
    assert html.count("</script><img") == 0 and "connect-src &#39;self&#39;" in html
    assert "30 seconds" in serve_page(["a"], max_bytes=2**20, max_length_sec=30)
