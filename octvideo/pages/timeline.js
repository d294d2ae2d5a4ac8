"use strict";
// A video beside its timeline; after dom.js and table.js. The document is described in octvideo/inference/timeline_document.py.

const SVG = "http://www.w3.org/2000/svg";
const MOST_NOW = 6; // classes beside the video
const MOST_SEGMENTS = 500; // rows of the table
const TICK_PX = 72; // that a tick of the axis has, with its text

/** 1:02.5, of 62.5 seconds; hours where there are some. */
function clock(seconds, tenths = true) {
  const count = Math.round(Math.max(seconds, 0) * 10);
  const hours = Math.floor(count / 36000);
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(count / 600) % 60;
  const rest = `${two(Math.floor(count / 10) % 60)}${tenths ? "." + (count % 10) : ""}`;
  return hours ? `${hours}:${two(minutes)}:${rest}` : `${minutes}:${rest}`;
}

function percent(score) {
  return `${(100 * score).toFixed(score > 0.0995 ? 0 : 1)} %`;
}

/** The index of the cell that holds a time, or -1: cells are in order and may have gaps. */
function cellAt(data, time) {
  let low = 0;
  let high = data.starts.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (time < data.starts[middle]) high = middle - 1;
    else if (time >= data.ends[middle]) low = middle + 1;
    else return middle;
  }
  // The end of the video belongs to its last cell.
  const last = data.starts.length - 1;
  return last >= 0 && time >= data.ends[last] ? last : -1;
}

/** The outline of a row's scores in a box of `duration` by 1: steps, and nothing where no window speaks. */
function outline(starts, ends, scores) {
  const parts = [];
  let end = null;
  scores.forEach((score, n) => {
    if (score === null) return;
    const joined = end !== null && Math.abs(starts[n] - end) < 1e-6;
    const height = Number((1 - score).toFixed(3));
    if (!joined) parts.push(end === null ? `M${starts[n]} 1` : `V1ZM${starts[n]} 1`);
    parts.push(`V${height}H${ends[n]}`);
    end = ends[n];
  });
  return end === null ? "" : parts.join("") + "V1Z";
}

/** Steps between ticks of the axis, in seconds, so that there are at most `most` ticks. */
function tickStep(duration, most) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200];
  return steps.find((step) => duration / step < most) || 86400 * Math.ceil(duration / (86400 * most));
}

/** A video to play, {video, root}; `unplayable` is said where the browser can't. */
function screenOf(url, title, unplayable) {
  const problem = element("p", { class: "problem", role: "alert", hidden: true });
  const video = element("video", { controls: true, preload: "metadata", playsinline: true, tabindex: "0" });
  video.setAttribute("aria-label", title);
  if (url) video.src = url;
  else video.hidden = true;
  video.addEventListener("error", () => {
    video.hidden = true;
    problem.hidden = false;
    problem.textContent = unplayable;
  });
  // What a browser has recorded does not say how long it is, and can't be sought in until its end was looked for.
  video.addEventListener("loadedmetadata", () => {
    if (video.duration !== Infinity) return;
    video.addEventListener("durationchange", () => (video.currentTime = 0), { once: true });
    video.currentTime = 1e9;
  });
  return { video, root: element("div", { class: "screen" }, video, problem) };
}

/** Lines of a list of [{name, score}]. */
function scoreLines(ranked) {
  return ranked.map(({ name, score }) => {
    const meter = element("span", { class: "meter", "aria-hidden": "true" }, element("span"));
    meter.firstChild.style.width = `${100 * score}%`;
    return element("li", {}, named(name), element("span", { class: "number" }, percent(score)), meter);
  });
}

/**
 * Builds the view of a timeline into an element, and returns {video, seek, time, remove}.
 *
 * Keys on the timeline: left and right a cell (with shift 10), page up and down a segment, home, end, space plays.
 */
function showTimeline(root, data) {
  const duration = Math.max(data.duration, 0.001);
  let at = 0; // seconds
  let hovered = null;
  let frame = 0;

  // ── the video, and the scores beside it ──
  const unplayable = "This browser can't play the video. Its timeline is here all the same.";
  const { video, root: screen } = screenOf(data.video, data.title, unplayable);
  const nowTitle = element("h2", { class: "now-title" });
  const nowList = element("ol", { class: "now" });
  const now = element("section", { class: "now-panel", "aria-label": "Scores at this moment" }, nowTitle, nowList);
  const stage = element("div", { class: "stage" }, screen, now);

  // ── the rows ──
  const axis = element("div", { class: "axis", "aria-hidden": "true" });
  function drawAxis() {
    const width = axis.clientWidth || 800;
    const step = tickStep(duration, Math.max(Math.min(8, width / TICK_PX), 1));
    const ticks = [];
    for (let n = 0; (n * step) / duration <= 1 - TICK_PX / width || n === 0; n += 1) {
      const tick = element("span", {}, clock(n * step, step < 1));
      tick.style.insetInlineStart = `${(100 * n * step) / duration}%`;
      ticks.push(tick);
    }
    axis.replaceChildren(...ticks);
  }
  const plot = element("div", {
    class: "plot",
    tabindex: "0",
    role: "slider",
    dir: "ltr",
    "aria-label": "Position in the video",
    "aria-valuemin": "0",
    "aria-valuemax": String(duration),
  });
  data.classes.forEach((name, row) => {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${duration} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", outline(data.starts, data.ends, data.scores[row] || []));
    path.setAttribute("class", "score");
    svg.append(path);
    const bars = element("div", { class: "bars" });
    for (const one of data.segments) {
      if (one.class !== row) continue;
      const bar = element("span", { class: "bar" });
      bar.style.left = `${(100 * one.start) / duration}%`;
      bar.style.width = `${(100 * (one.end - one.start)) / duration}%`;
      bars.append(bar);
    }
    const strip = element("div", { class: "strip" }, svg, bars);
    plot.append(element("div", { class: "row" }, element("div", { class: "label" }, named(name)), strip));
  });
  plot.append(element("div", { class: "row axis-row" }, element("div", { class: "label" }), axis));
  const cursor = element("div", { class: "cursor", hidden: true }, element("span"));
  const needle = element("div", { class: "needle" });
  const over = element("div", { class: "over", "aria-hidden": "true" }, needle, cursor);
  plot.append(over);

  // ── the segments, as a table ──
  const listed = data.segments.slice(0, MOST_SEGMENTS);
  const lines = listed.map((one) => {
    const go = element("button", { type: "button", class: "link" }, clock(one.start));
    go.addEventListener("click", () => seek(one.start));
    return element(
      "tr",
      {},
      element("td", {}, go),
      element("td", {}, clock(one.end)),
      element("td", {}, named(data.classes[one.class])),
      element("td", { class: "number" }, percent(one.score)),
    );
  });
  const rows = listed.map((one, n) => ({ line: lines[n], keys: [one.start, one.end, data.classes[one.class], one.score] }));
  const columns = [{ title: "from" }, { title: "to" }, { title: "class" }, { title: "score", number: true, falls: true }];
  const segments = element("section", {}, element("h2", {}, "Segments"));
  if (listed.length) {
    const table = sortableTable(rows, columns, { by: 0, name: "segments", caption: "Segments; headings sort" });
    segments.append(element("div", { class: "scrolls" }, table));
  } else segments.append(element("p", { class: "quiet" }, "No class reaches its threshold."));
  if (data.segments.length > listed.length) {
    segments.append(element("p", { class: "quiet" }, `The first ${listed.length} of ${data.segments.length}.`));
  }
  const notes = element("ul", { class: "notes quiet" });
  for (const note of data.notes || []) notes.append(element("li", { dir: "auto" }, note));
  const help = element(
    "p",
    { class: "quiet keys" },
    "Click the timeline to seek. Keys: ← → a step, with shift ten; page up and down a segment; space plays.",
  );
  const along = element("section", {}, element("h2", {}, "Timeline"), plot, help, notes);
  root.replaceChildren(element("div", { class: "timeline" }, stage, along, segments));

  // ── what changes ──
  function showScores(time) {
    const cell = cellAt(data, time);
    nowTitle.textContent = `At ${clock(time)}`;
    const ranked = data.classes
      .map((name, row) => ({ name, score: cell < 0 ? null : data.scores[row][cell] }))
      .filter((one) => one.score !== null && one.score !== undefined)
      .sort((a, b) => b.score - a.score)
      .slice(0, MOST_NOW);
    nowList.replaceChildren(...scoreLines(ranked));
    if (!ranked.length) nowList.append(element("li", { class: "quiet" }, "no window speaks here"));
    return ranked;
  }

  function place(line, time) {
    line.style.left = `${(100 * Math.min(Math.max(time, 0), duration)) / duration}%`;
  }

  function moved() {
    place(needle, at);
    const ranked = showScores(hovered === null ? at : hovered);
    plot.setAttribute("aria-valuenow", at.toFixed(2));
    const best = hovered === null && ranked.length ? `, ${ranked[0].name} ${percent(ranked[0].score)}` : "";
    plot.setAttribute("aria-valuetext", `${clock(at)} of ${clock(duration)}${best}`);
    listed.forEach((one, n) => {
      if (one.start <= at && at < one.end) lines[n].setAttribute("aria-current", "time");
      else lines[n].removeAttribute("aria-current");
    });
  }

  function seek(time) {
    at = Math.min(Math.max(time, 0), duration);
    if (data.video) video.currentTime = at;
    moved();
  }

  function follow() {
    at = video.currentTime;
    moved();
    frame = video.paused || video.ended ? 0 : requestAnimationFrame(follow);
  }
  video.addEventListener("play", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(follow);
  });
  for (const event of ["pause", "seeked", "timeupdate"]) {
    video.addEventListener(event, () => {
      if (video.seeking) return; // until it is there, the needle stands where it was asked to
      at = video.currentTime;
      moved();
    });
  }

  // ── by mouse and finger ──
  function timeOf(event) {
    const box = over.getBoundingClientRect();
    return (duration * Math.min(Math.max(event.clientX - box.left, 0), box.width)) / Math.max(box.width, 1);
  }
  let drags = false;
  over.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drags = true;
    over.setPointerCapture(event.pointerId);
    plot.focus({ preventScroll: true });
    seek(timeOf(event));
  });
  over.addEventListener("pointermove", (event) => {
    if (drags) seek(timeOf(event));
    hovered = timeOf(event);
    cursor.hidden = false;
    cursor.firstChild.textContent = clock(hovered);
    cursor.classList.toggle("late", hovered > 0.9 * duration);
    place(cursor, hovered);
    moved();
  });
  for (const event of ["pointerup", "pointercancel", "pointerleave"]) {
    over.addEventListener(event, () => {
      drags = false;
      if (event === "pointerup") return;
      hovered = null;
      cursor.hidden = true;
      moved();
    });
  }

  // ── by keyboard ──
  function stepped(count) {
    const cells = data.starts.length;
    if (!cells) return at;
    let cell = cellAt(data, at);
    // In a gap, the cell before it.
    if (cell < 0) cell = data.starts.findLastIndex((start) => start <= at);
    return data.starts[Math.min(Math.max(cell + count, 0), cells - 1)];
  }
  plot.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const starts = data.segments.map((one) => one.start).sort((a, b) => a - b);
    const actions = {
      ArrowRight: () => seek(stepped(event.shiftKey ? 10 : 1)),
      ArrowUp: () => seek(stepped(event.shiftKey ? 10 : 1)),
      ArrowLeft: () => seek(stepped(event.shiftKey ? -10 : -1)),
      ArrowDown: () => seek(stepped(event.shiftKey ? -10 : -1)),
      Home: () => seek(0),
      End: () => seek(duration),
      PageDown: () => seek(starts.find((start) => start > at + 0.001) ?? duration),
      PageUp: () => seek(starts.findLast((start) => start < at - 0.001) ?? 0),
      " ": () => {
        if (data.video && video.paused) video.play().catch(() => {});
        else video.pause();
      },
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });

  const resized = new ResizeObserver(drawAxis);
  resized.observe(axis);
  moved();
  return {
    video,
    seek,
    time: () => at,
    remove() {
      cancelAnimationFrame(frame);
      resized.disconnect();
      video.pause();
      root.replaceChildren();
    },
  };
}
