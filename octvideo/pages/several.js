"use strict";
// What the page of a run shows of several labels a video; before report.js, which calls it. See report_document.

/** The labels of a video: those that were found, those that were missed, and wrong ones. */
function severalSaid([truth, predicted, best, own]) {
  const line = (row, score, kind, word) => {
    const said = `${word} ${score === null ? "not finite" : share(score, 1000)}`.replaceAll(" ", "\u00a0");
    return element("div", {}, named(report.classes[row]), " ", element("span", { class: kind }, said));
  };
  const taken = new Set(predicted);
  const held = new Set(truth);
  const found = truth.map((row, n) => (taken.has(row) ? line(row, own[n], "good", "right") : line(row, own[n], "bad", "missed")));
  const wrong = predicted.map((row, n) => (held.has(row) ? null : line(row, best[n], "bad", "wrong")));
  return [...found, ...wrong.filter(Boolean)];
}

/** The table of classes, as rows and columns of sortableTable. */
function severalTable() {
  const link = (content, title, count, test, last = () => false) => {
    const button = element("button", { type: "button", class: "link" }, content);
    button.addEventListener("click", () => {
      const videos = report.videos.filter(test);
      openList(title, videos.sort((a, b) => last(a) - last(b)), count);
    });
    return button;
  };
  const percent = (value) => (value === null ? "–" : share(value, 1));
  const rows = report.table.map(([videos, taken, hits, ap, low, high, threshold], row) => {
    const label = () => named(report.classes[row]);
    const precision = taken ? hits / taken : null;
    const recall = videos ? hits / videos : null;
    const f1 = videos + taken ? (2 * hits) / (videos + taken) : null;
    const [missed, wrong] = [videos - hits, taken - hits];
    const isTrue = (video) => video[1].includes(row);
    const isTaken = (video) => video[2].includes(row);
    const cells = [
      element("th", { scope: "row" }, link(label(), [label()], videos, isTrue, isTaken)),
      element("td", { class: "number" }, videos.toLocaleString("en")),
      element("td", { class: "number" }, percent(ap), barOf(ap, 1)),
      element("td", { class: "number" }, percent(precision)),
      element("td", { class: "number" }, percent(recall)),
      element("td", { class: "number" }, percent(f1)),
      element("td", { class: "number quiet" }, f1 === null ? "–" : `${(100 * low).toFixed(0)} – ${(100 * high).toFixed(0)} %`),
      element("td", { class: "number" }, missed ? link(String(missed), [label(), ", missed"], missed, (one) => isTrue(one) && !isTaken(one)) : "0"),
      element("td", { class: "number" }, wrong ? link(String(wrong), [label(), ", wrong"], wrong, (one) => isTaken(one) && !isTrue(one)) : "0"),
      element("td", { class: "number quiet" }, threshold.toFixed(3)),
    ];
    return {
      line: element("tr", {}, ...cells),
      text: report.classes[row].toLocaleLowerCase(),
      keys: [report.classes[row], videos, ap, precision, recall, f1, null, missed, wrong, threshold],
    };
  });
  const columns = [
    { title: "class" },
    { title: "videos", number: true, falls: true },
    { title: "AP", number: true },
    { title: "precision", number: true },
    { title: "recall", number: true },
    { title: "F1", number: true },
    { title: "95 % interval", number: true, fixed: true },
    { title: "missed", number: true, falls: true },
    { title: "wrong", number: true, falls: true },
    { title: "threshold", number: true },
  ];
  return [rows, columns];
}
