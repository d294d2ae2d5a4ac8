"use strict";
// A video recorded by the camera; after dom.js and timeline.js.

const REFUSED = {
  NotFoundError: "there is none",
  NotAllowedError: "it was not allowed",
  NotReadableError: "another program uses it",
};
const OTHERWISE = "Please choose a file instead.";

/**
 * Shows in an element what the camera sees, with a button to record; returns {close}.
 *
 * A recording ends before it has more than `most`, {bytes, seconds}. `say` and `complain` tell people what happens, `take`
 * gets the recording, a Blob, and `left` is called where there will be none.
 */
function showCamera(root, most, { say, complain, take, left }) {
  const video = element("video", { "aria-label": "What the camera sees" });
  Object.assign(video, { muted: true, playsInline: true, autoplay: true });
  const record = element("button", { type: "button", class: "primary" }, "Record");
  const leave = element("button", { type: "button" }, "Close the camera");
  const length = element("span", { class: "quiet number" });
  let stream = null;
  let recorder = null;
  let ticking = 0;
  let isClosed = false;

  function close() {
    isClosed = true;
    clearInterval(ticking);
    if (recorder && recorder.state !== "inactive") recorder.stop();
    if (stream) for (const track of stream.getTracks()) track.stop();
    if (root.contains(video)) root.replaceChildren();
  }

  function fail(why) {
    if (isClosed) return;
    close();
    complain(`${why} ${OTHERWISE}`);
    left();
  }

  function stop() {
    if (recorder.state !== "inactive") recorder.stop();
  }

  function start() {
    const parts = [];
    const began = performance.now();
    let count = 0;
    recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", ({ data }) => {
      parts.push(data);
      count += data.size;
      if (count > 0.9 * most.bytes) stop();
    });
    recorder.addEventListener("stop", () => {
      if (isClosed) return;
      close();
      take(new Blob(parts, { type: recorder.mimeType }));
    });
    recorder.start(250); // milliseconds of a part
    ticking = setInterval(() => {
      const seconds = (performance.now() - began) / 1000;
      length.textContent = clock(seconds);
      if (seconds > Math.max(most.seconds - 1, most.seconds / 2)) stop();
    }, 100);
    record.textContent = "Stop";
    say("Recording.");
  }

  async function open() {
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      fail("This browser lends no camera to this page: it does so over https and at localhost.");
      return;
    }
    say("Waiting for the camera.");
    let granted;
    try {
      granted = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch (error) {
      fail(`The camera can't be used: ${REFUSED[error.name] || error.name}.`);
      return;
    }
    stream = granted;
    if (isClosed) {
      close();
      return;
    }
    stream.getVideoTracks()[0].addEventListener("ended", () => {
      if (!recorder) fail("The camera has gone."); // a recorder stops by itself
    });
    video.srcObject = stream;
    root.replaceChildren(video, element("div", { class: "tools" }, record, leave, length));
    record.focus();
    say("The camera is on. Press Record, and once more to stop.");
  }

  record.addEventListener("click", () => (recorder ? stop() : start()));
  leave.addEventListener("click", () => {
    close();
    say("The camera is off.");
    left();
  });
  open();
  return { close };
}
