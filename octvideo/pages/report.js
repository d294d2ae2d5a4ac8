"use strict";
// The page of a run. The data are described in octvideo/pages/report.py.

const AT_ONCE = 12; // videos in a list, before "show more"
const MOST_MIXED = 30;
const report = JSON.parse(document.getElementById("data").textContent);
const several = typeof severalSaid === "function"; // labels a video: several.js is there
const stands = matchMedia("(prefers-reduced-motion: reduce)").matches;
let paused = stands;

function share(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)} %` : "–";
}

/** A share as a bar. */
function barOf(part, whole) {
  const bar = element("span", { class: "share", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.width = `${whole ? (100 * part) / whole : 0}%`;
  return bar;
}

// ── thumbnails that play while they are seen ──

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !paused) target.play().catch(() => {});
    else target.pause();
  }
});

function pauseButton() {
  const button = element("button", { type: "button", class: "pauses" });
  button.addEventListener("click", () => {
    paused = !paused;
    sayPaused();
    for (const video of document.querySelectorAll("video.thumb")) {
      // Anew, so that what is seen plays.
      seen.unobserve(video);
      if (paused) video.pause();
      else seen.observe(video);
    }
  });
  return button;
}

function sayPaused() {
  for (const button of document.querySelectorAll(".pauses")) {
    button.textContent = paused ? "Play clips" : "Pause clips";
  }
}

/** A video with its thumbnail or the reason why there is none, and what it was taken for. */
function figureOf([path, ...row]) {
  const clip = row.at(-1);
  let picture;
  if (clip >= 0) {
    picture = element("video", { class: "thumb", src: report.clips[clip], preload: "metadata", tabindex: "0" });
    Object.assign(picture, { muted: true, loop: true, playsInline: true, controls: stands });
    picture.setAttribute("aria-label", `Clip of ${path}`);
    const none = () => picture.replaceWith(element("div", { class: "thumb none" }, "its thumbnail is not in the folder"));
    picture.addEventListener("error", none);
    picture.addEventListener("click", () => (picture.paused ? picture.play().catch(() => {}) : picture.pause()));
    picture.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      picture.click();
    });
    seen.observe(picture);
  } else {
    const reason = clip === -1 ? "no thumbnail was made" : report.reasons[-2 - clip];
    picture = element("div", { class: clip === -1 ? "thumb none" : "thumb none broken" }, reason);
  }
  const said = element("figcaption", {}, ...(several ? severalSaid(row) : classSaid(row)));
  said.append(element("div", { class: "quiet path" }, named(path)));
  return element("figure", { class: "clip" }, picture, said);
}

/** The class of a video, and what it was taken for. */
function classSaid([truth, predicted, best, own]) {
  const lines = [element("div", {}, named(report.classes[truth]))];
  if (predicted < 0) lines.push(element("div", { class: "bad" }, "its scores are not finite"));
  else if (truth === predicted) lines.push(element("div", { class: "good" }, `right, ${share(best, 1000)}`));
  else {
    lines.push(
      element("div", { class: "bad" }, "taken for ", named(report.classes[predicted]), ` ${share(best, 1000)}`),
      element("div", { class: "quiet" }, `the true class has ${share(own, 1000)}`),
    );
  }
  return lines;
}

/** Videos, some at a time. */
function clipList(videos) {
  const list = element("div", { class: "clips" });
  const more = element("button", { type: "button" });
  let shown = 0;
  function show() {
    const first = shown;
    shown = Math.min(shown + AT_ONCE, videos.length);
    list.append(...videos.slice(first, shown).map(figureOf));
    more.hidden = shown === videos.length;
    more.textContent = `Show more (${(videos.length - shown).toLocaleString("en")} left)`;
  }
  more.addEventListener("click", () => {
    const next = list.children.length;
    show();
    list.children[next]?.querySelector("[tabindex]")?.focus();
  });
  show();
  return [list, more];
}

// ── the dialog with the videos of a cell or a class ──

const dialog = document.getElementById("clips");
function openList(title, videos, count) {
  const close = element("button", { type: "button", class: "close", "aria-label": "Close" }, "✕");
  close.addEventListener("click", () => dialog.close());
  const head = element("h2", { id: "clips-title" }, ...title, `: ${videosOf(count)}`);
  const bar = element("div", { class: "bar-of-dialog" }, head, pauseButton(), close);
  dialog.replaceChildren(bar);
  if (videos.length < count) {
    dialog.append(element("p", { class: "quiet" }, `${videos.length.toLocaleString("en")} of them are listed: the page has room for no more.`));
  }
  dialog.append(...clipList(videos));
  sayPaused();
  dialog.showModal();
  close.focus();
}
dialog.addEventListener("close", () => dialog.replaceChildren());
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // beside it
});

const cellCounts = new Map(report.counts.map(([row, column, count]) => [`${row},${column}`, count]));
function openCell(row, column) {
  const videos = report.videos.filter((one) => one[1] === row && one[2] === column);
  const title = row === column ? [named(report.classes[row]), ", right"] : [named(report.classes[row]), " taken for ", named(report.classes[column])];
  openList(title, videos, cellCounts.get(`${row},${column}`) || 0);
}
function openClass(row) {
  const videos = report.videos.filter((one) => one[1] === row);
  videos.sort((a, b) => (a[1] === a[2]) - (b[1] === b[2]) || b[3] - a[3]); // mistakes first
  openList([named(report.classes[row])], videos, report.table[row][0]);
}

// ── the sections ──

function showMistakes(root) {
  const videos = report.mistakes.map((number) => report.videos[number]);
  if (!videos.length) {
    root.append(element("p", { class: "quiet" }, several ? "Every video has its labels, and no others." : "No video was taken for another class."));
    return;
  }
  root.append(element("div", { class: "tools" }, pauseButton()), ...clipList(videos));
}

function showMixed(root) {
  const mixed = report.counts.filter(([row, column]) => row !== column).sort((a, b) => b[2] - a[2]);
  if (!mixed.length) {
    root.append(element("p", { class: "quiet" }, "No class was taken for another."));
    return;
  }
  const body = element("tbody");
  for (const [row, column, count] of mixed.slice(0, MOST_MIXED)) {
    const button = element("button", { type: "button", class: "link" }, videosOf(count));
    button.addEventListener("click", () => openCell(row, column));
    body.append(
      element(
        "tr",
        {},
        element("td", {}, named(report.classes[row])),
        element("td", {}, named(report.classes[column])),
        element("td", { class: "number" }, button),
        element("td", { class: "number extra" }, share(count, report.table[row][0])),
      ),
    );
  }
  const head = element("tr");
  for (const [title, kind] of [["true class", ""], ["taken for", ""], ["videos", "number"], ["of the class", "number extra"]]) {
    head.append(element("th", { scope: "col", class: kind }, title));
  }
  root.append(element("div", { class: "scrolls" }, element("table", {}, element("thead", {}, head), body)));
  if (mixed.length > MOST_MIXED) {
    root.append(element("p", { class: "quiet" }, `The first ${MOST_MIXED} of ${mixed.length.toLocaleString("en")} pairs of classes.`));
  }
}

function classTable() {
  const most = report.classes.map(() => null); // what a class is taken for most often
  for (const [row, column, count] of report.counts) {
    if (row !== column && (!most[row] || count > most[row][1])) most[row] = [column, count];
  }
  const taken = new Map(); // how often a class is said
  for (const [, column, count] of report.counts) taken.set(column, (taken.get(column) || 0) + count);
  const rows = report.table.map(([total, right, among5, low, high], row) => {
    const said = taken.get(row) || 0;
    const open = element("button", { type: "button", class: "link" }, named(report.classes[row]));
    open.addEventListener("click", () => openClass(row));
    const wrong = element("td", {});
    if (most[row]) {
      const button = element("button", { type: "button", class: "link" }, named(report.classes[most[row][0]]), ` (${most[row][1]})`);
      button.addEventListener("click", () => openCell(row, most[row][0]));
      wrong.append(button);
    }
    const cells = [
      element("th", { scope: "row" }, open),
      element("td", { class: "number" }, total.toLocaleString("en")),
      element("td", { class: "number" }, share(right, total), barOf(right, total)),
      element("td", { class: "number quiet" }, total ? `${(100 * low).toFixed(0)} – ${(100 * high).toFixed(0)} %` : "–"),
      element("td", { class: "number" }, share(among5, total)),
      element("td", { class: "number" }, share(right, said)),
      wrong,
    ];
    const ratio = (part, whole) => (whole ? part / whole : null);
    return {
      line: element("tr", {}, ...cells),
      text: report.classes[row].toLocaleLowerCase(),
      keys: [report.classes[row], total, ratio(right, total), null, ratio(among5, total), ratio(right, said), most[row] ? most[row][1] : 0],
    };
  });
  const columns = [
    { title: "class" },
    { title: "videos", number: true, falls: true },
    { title: "top-1", number: true },
    { title: "95 % interval", number: true, fixed: true },
    { title: "top-5", number: true },
    { title: "precision", number: true },
    { title: "most often taken for", falls: true },
  ];
  return [rows, columns];
}

function showClasses(root) {
  const [rows, columns] = several ? severalTable() : classTable();
  const found = element("span", { class: "quiet", role: "status" });
  const search = element("input", { type: "search", "aria-label": "Find a class", placeholder: "Find a class", dir: "auto" });
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLocaleLowerCase();
    let count = 0;
    for (const { line, text } of rows) {
      line.hidden = !text.includes(wanted);
      count += !line.hidden;
    }
    found.textContent = wanted ? `${count} of ${rows.length} classes` : "";
  });
  if (rows.length > 12) root.append(element("div", { class: "tools" }, search, found));
  const table = sortableTable(rows, columns, { by: 2, name: "classes", caption: "Classes; headings sort" });
  root.append(element("div", { class: "scrolls" }, table));
}

showMistakes(document.getElementById("mistakes"));
if (!several) {
  showMatrix(document.getElementById("matrix"), report, openCell);
  showMixed(document.getElementById("mixed"));
}
showClasses(document.getElementById("classes"));
if (report.videos.length < report.total) {
  const said = `${report.videos.length.toLocaleString("en")} of ${videosOf(report.total)} are listed by name: the page has room for no more. All of them are counted.`;
  document.getElementById("classes").append(element("p", { class: "quiet" }, said));
}
sayPaused();
