"use strict";
// The page of `octvideo serve`: a video is chosen or recorded, sent, and its answer shown. After timeline.js and camera.js.

const limits = JSON.parse(document.getElementById("data").textContent); // {max_bytes, max_length_sec}
const byId = (id) => document.getElementById(id);
// What is said where the server gives no reason, or one for programs.
const REFUSALS = {
  0: "No answer came. Is the server still running, and the file still there?",
  413: "The video is too large.",
  429: "The server is busy: too many others wait.",
  503: "The server is stopping.",
};
let chosen = null; // {blob, title, url}
let sending = null; // the request under way
let camera = null;
let shown = null; // the timeline
let waiting = 0;

byId("here").textContent = location.origin + location.pathname.replace(/[^/]*$/, "");

// ── what people are told ──

function say(text) {
  byId("state").textContent = text;
  byId("problem").textContent = "";
}

function complain(text) {
  byId("state").textContent = "";
  byId("problem").textContent = text;
}

function mebibytes(count) {
  return `${(count / 2 ** 20).toFixed(1)} MiB`;
}

// ── the video ──

function choose(blob, title) {
  if (blob.size > limits.max_bytes) {
    complain(`“${title}” has ${mebibytes(blob.size)}. This server takes up to ${mebibytes(limits.max_bytes)}.`);
    return;
  }
  clearTimeout(waiting);
  if (sending) sending.abort();
  if (camera) camera.close();
  hideAnswer();
  if (chosen) URL.revokeObjectURL(chosen.url);
  chosen = { blob, title, url: URL.createObjectURL(blob) };
  preview();
  say("The video is chosen, and not sent yet.");
  byId("send").focus();
}

function preview() {
  const unplayable = "This browser can't play this file. The server may read it all the same.";
  const { root } = screenOf(chosen.url, chosen.title, unplayable);
  const about = element("p", { class: "quiet" }, named(chosen.title), `, ${mebibytes(chosen.blob.size)}`);
  byId("preview").replaceChildren(root, about);
  byId("drop-title").textContent = "Drop another video here";
}

byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) choose(file, file.name);
  event.target.value = ""; // the same file may be chosen again
});

// A video that misses its place must not replace the page.
for (const kind of ["dragenter", "dragover"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
}
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
window.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) choose(file, file.name);
  else complain("That is no file.");
});

byId("camera").addEventListener("click", () => {
  if (camera) camera.close();
  if (sending) sending.abort();
  camera = showCamera(byId("preview"), { bytes: limits.max_bytes, seconds: limits.max_length_sec }, {
    say,
    complain,
    take: (blob) => choose(blob, "Recording"),
    left() {
      if (chosen && byId("answer").hidden) preview();
      byId("camera").focus();
    },
  });
});

// ── the question ──

for (const radio of document.querySelectorAll("[name=what]")) {
  radio.addEventListener("change", () => {
    const isTimeline = radio.value === "timeline";
    byId("of-threshold").hidden = !isTimeline;
    byId("threshold").disabled = !isTimeline;
  });
}

byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (sending) return;
  if (!chosen) {
    complain("Choose a video first.");
    byId("file").focus();
    return;
  }
  send(byId("question").elements.what.value);
});

byId("cancel").addEventListener("click", () => sending && sending.abort());

function send(what) {
  const { blob, title, url } = chosen;
  const request = new XMLHttpRequest(); // fetch tells nothing of how far an upload is
  const progress = byId("progress");
  let arrivedAt = 0;
  clearTimeout(waiting);
  hideAnswer();
  preview();
  sending = request;
  byId("send").hidden = true;
  byId("sending").hidden = false;
  byId("cancel").focus();
  progress.value = 0;
  byId("how-far").textContent = "";
  say("The video is on its way.");

  request.upload.addEventListener("progress", ({ loaded, total }) => {
    progress.value = loaded / total;
    byId("how-far").textContent = `${mebibytes(loaded)} of ${mebibytes(total)}`;
  });
  request.upload.addEventListener("load", () => {
    arrivedAt = performance.now();
    progress.removeAttribute("value");
    say("The video has arrived. The server analyses it.");
  });
  const ticking = setInterval(() => {
    if (arrivedAt) byId("how-far").textContent = clock((performance.now() - arrivedAt) / 1000, false);
  }, 200);

  function settle() {
    clearInterval(ticking);
    sending = null;
    byId("sending").hidden = true;
    byId("send").hidden = false;
    byId("send").focus();
  }
  request.addEventListener("abort", () => {
    settle();
    say("Cancelled.");
  });
  request.addEventListener("error", () => {
    settle();
    refused(request, {});
  });
  request.addEventListener("load", () => {
    settle();
    let content = {};
    try {
      content = JSON.parse(request.responseText);
    } catch {
      // Something between here and the server has answered.
    }
    if (request.status === 200 && content.seconds) showAnswer(what, content, { title, url });
    else refused(request, content);
  });
  const form = new FormData();
  form.append("file", blob, "video");
  const query = what === "timeline" ? `?threshold=${encodeURIComponent(byId("threshold").value)}` : "";
  request.open("POST", what + query);
  request.send(form);
}

function refused(request, content) {
  const hasReason = content.error && request.status !== 429 && request.status !== 503;
  const reason = hasReason ? `${content.error[0].toUpperCase()}${content.error.slice(1)}.` : REFUSALS[request.status];
  const words = [reason || `The server answers ${request.status}.`];
  const seconds = Number(request.status ? request.getResponseHeader("Retry-After") : 0);
  if (seconds > 0) {
    words.push(`Try again in ${seconds} s.`);
    waiting = setTimeout(() => say("You can try again now."), 1000 * seconds);
  }
  complain(words.join(" "));
}

// ── the answer ──

function hideAnswer() {
  if (shown) shown.remove();
  shown = null;
  byId("view").replaceChildren();
  byId("answer").hidden = true;
}

function showAnswer(what, content, { title, url }) {
  byId("preview").replaceChildren(); // it goes on beside the answer
  byId("answer-title").replaceChildren(named(title));
  byId("answer").hidden = false;
  if (what === "timeline") {
    shown = showTimeline(byId("view"), { ...content, title, video: url });
    const count = content.segments.length;
    say(`Done: ${count} ${count === 1 ? "segment" : "segments"} in ${clock(content.duration)}.`);
  } else {
    const { root } = screenOf(url, title, "This browser can't play the video. Its scores are here all the same.");
    const list = element("ol", { class: "now" }, ...scoreLines(content.top));
    const scores = element("section", { class: "now-panel" }, element("h3", { class: "now-title" }, "The whole video"), list);
    byId("view").append(element("div", { class: "stage" }, root, scores));
    say(`Done: ${content.top[0].name}, ${percent(content.top[0].score)}.`);
  }
  const { waiting: queued, decoding, computing } = content.seconds;
  const words = [[queued, "waiting"], [decoding, "decoding"], [computing, "computing"]].map(([s, of]) => `${s.toFixed(2)} s ${of}`);
  byId("seconds").textContent = `${words.join(", ")}.`;
  byId("answer-title").focus();
}
