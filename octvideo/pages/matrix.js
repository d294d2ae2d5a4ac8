"use strict";
// The confusion matrix: a table of buttons for few classes, a picture with a cursor for many.

const MOST_BUTTONS = 30; // classes

/** How strongly a cell is coloured, 0 to 1: its share of the row; small ones are still seen. */
function strength(count, total) {
  return total ? 0.12 + 0.88 * Math.sqrt(count / total) : 0;
}

/**
 * Builds the matrix.
 *
 * open(row, column) shows the videos of a cell.
 */
function showMatrix(root, data, open) {
  const counts = data.classes.map(() => new Map());
  for (const [row, column, count] of data.counts) counts[row].set(column, count);
  const totals = counts.map((row) => [...row.values()].reduce((a, b) => a + b, 0));
  root.append(
    element(
      "p",
      { class: "quiet" },
      "Rows are true classes, columns what they were taken for: ",
      element("span", { class: "swatch right" }),
      " right, ",
      element("span", { class: "swatch wrong" }),
      " wrong. A click, or enter, opens the videos of a cell; arrow keys move.",
    ),
  );
  const few = data.classes.length <= MOST_BUTTONS;
  (few ? tableOf : pictureOf)(root, data, counts, totals, open);
}

/** A table with a button in each cell that is not empty; one of them is in the order of the tab key. */
function tableOf(root, data, counts, totals, open) {
  const table = element("table", { class: "matrix" });
  const corner = element("th", { scope: "col" }, element("span", { class: "unseen" }, "true class"));
  const head = element("tr", {}, corner);
  data.classes.forEach((label) => head.append(element("th", { scope: "col", class: "tilted" }, element("div", {}, named(label)))));
  table.append(element("caption", { class: "unseen" }, "Confusion matrix"), element("thead", {}, head));
  const body = element("tbody");
  const buttons = new Map(); // "row,column"
  data.classes.forEach((label, row) => {
    const line = element("tr", {}, element("th", { scope: "row" }, named(label)));
    data.classes.forEach((other, column) => {
      const count = counts[row].get(column) || 0;
      const cell = element("td", {});
      if (count) {
        const button = element("button", { type: "button", class: row === column ? "cell right" : "cell wrong" }, String(count));
        button.tabIndex = buttons.size ? -1 : 0;
        button.style.setProperty("--alpha", strength(count, totals[row]).toFixed(2));
        const said = `${label}${row === column ? ", right" : ` taken for ${other}`}: ${videosOf(count)}`;
        button.setAttribute("aria-label", said);
        button.title = said;
        button.addEventListener("click", () => open(row, column));
        buttons.set(`${row},${column}`, button);
        cell.append(button);
      }
      line.append(cell);
    });
    body.append(line);
  });
  table.append(body);
  root.append(element("div", { class: "matrix-scrolls" }, table));
  const places = [...buttons.keys()].map((key) => key.split(",").map(Number));
  table.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const from = [...buttons].find(([, button]) => button === document.activeElement);
    if (!step || !from) return;
    event.preventDefault();
    const [row, column] = from[0].split(",").map(Number);
    // The nearest cell in that direction; in the same line where there is one.
    const next = places
      .map(([r, c]) => ({ key: `${r},${c}`, along: (r - row) * step[0] + (c - column) * step[1], aside: Math.abs((r - row) * step[1]) + Math.abs((c - column) * step[0]) }))
      .filter((one) => one.along > 0)
      .sort((a, b) => a.aside - b.aside || a.along - b.along)[0];
    if (!next) return;
    document.activeElement.tabIndex = -1;
    buttons.get(next.key).tabIndex = 0;
    buttons.get(next.key).focus();
  });
}

/** A picture of one dot a cell, enlarged, with a cursor that mouse and keyboard move. */
function pictureOf(root, data, counts, totals, open) {
  const k = data.classes.length;
  const canvas = element("canvas", { width: String(k), height: String(k), "aria-hidden": "true" });
  const mark = element("div", { class: "mark", hidden: "" });
  const frame = element("div", { class: "matrix-picture", tabindex: "0", role: "application" }, canvas, mark);
  frame.setAttribute("aria-label", `Confusion matrix of ${k} classes: arrow keys move, with shift to the next cell that is not empty, enter opens`);
  const readout = element("p", { class: "readout", "aria-live": "polite" }, "Point at a cell, or move there with the arrow keys; with shift, to the next one that is not empty.");
  root.append(readout, frame);

  function draw() {
    const context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colour = (property) => style.getPropertyValue(property).trim().split(/\s+/).map(Number);
    const right = colour("--heat");
    const wrong = colour("--heat-wrong");
    const image = context.createImageData(k, k);
    for (const [row, column, count] of data.counts) {
      const [red, green, blue] = row === column ? right : wrong;
      image.data.set([red, green, blue, Math.round(255 * (0.25 + 0.75 * strength(count, totals[row])))], 4 * (row * k + column));
    }
    context.putImageData(image, 0, 0);
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  let at = [0, 0];
  function move(row, column) {
    at = [Math.min(Math.max(row, 0), k - 1), Math.min(Math.max(column, 0), k - 1)];
    const count = counts[at[0]].get(at[1]) || 0;
    const taken = at[0] === at[1] ? [", right"] : [" taken for ", named(data.classes[at[1]])];
    readout.replaceChildren(named(data.classes[at[0]]), ...taken, `: ${count ? videosOf(count) : "no video"}`);
    mark.hidden = false;
    mark.style.setProperty("--row", at[0] / k);
    mark.style.setProperty("--column", at[1] / k);
    mark.style.setProperty("--size", 1 / k);
  }
  /** From a cell, the next one in a direction that is not empty. */
  function far([row, column], [down, along]) {
    for (let n = 1; n < k; n += 1) {
      const r = row + n * down;
      const c = column + n * along;
      if (r < 0 || c < 0 || r >= k || c >= k) break;
      if (counts[r].has(c)) return [r, c];
    }
    return [row, column];
  }
  function cellOf(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientY - box.top) * k) / box.height, ((event.clientX - box.left) * k) / box.width].map(Math.floor);
  }
  /** The cell at the pointer, or one that is not empty right beside it: cells are two pixels wide. */
  function nearOf(event) {
    const [row, column] = cellOf(event);
    const reach = Math.ceil((3 * k) / canvas.getBoundingClientRect().width);
    let best = [row, column];
    let least = Infinity;
    for (let r = row - reach; r <= row + reach; r += 1) {
      for (let c = column - reach; c <= column + reach; c += 1) {
        const distance = Math.hypot(r - row, c - column);
        if (counts[r]?.has(c) && distance < least) [best, least] = [[r, c], distance];
      }
    }
    return best;
  }
  function openHere() {
    if (counts[at[0]].has(at[1])) open(at[0], at[1]);
  }
  canvas.addEventListener("pointermove", (event) => move(...nearOf(event)));
  canvas.addEventListener("click", (event) => {
    move(...nearOf(event));
    openHere();
  });
  frame.addEventListener("focus", () => move(...at));
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      openHere();
    } else if (step && !event.altKey && !event.metaKey && !event.ctrlKey) {
      event.preventDefault();
      move(...(event.shiftKey ? far(at, step) : [at[0] + step[0], at[1] + step[1]]));
    }
  });
}
