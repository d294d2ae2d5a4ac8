"use strict";
// A table that sorts by its headings; after dom.js.

/**
 * Makes a table out of rows {line, keys}: a `tr`, and for each column what it sorts by; null is unknown, and comes last.
 *
 * Columns are {title, number, falls, fixed}: whether they hold numbers, sort from the highest first, or not at all.
 * It begins in the order of the column `by`, from the lowest.
 */
function sortableTable(rows, columns, { by, name, caption }) {
  const body = element("tbody");
  const head = element("tr");
  const sorted = [...rows];
  let current = [-1, 1];
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  function sort(column, direction) {
    current = [column, direction];
    sorted.sort((a, b) => {
      const [x, y] = [a.keys[column], b.keys[column]];
      if (x === null || y === null) return (x === null) - (y === null);
      return direction * compare(x, y);
    });
    [...head.children].forEach((th, n) => {
      if (n === column) th.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else th.removeAttribute("aria-sort");
    });
    body.replaceChildren(...sorted.map((one) => one.line));
  }
  columns.forEach(({ title, number, falls, fixed }, column) => {
    const th = element("th", { scope: "col", class: number ? "number" : "" });
    if (fixed || rows.length < 2) th.append(title);
    else {
      const button = element("button", { type: "button", class: "sorts" }, title);
      button.addEventListener("click", () => sort(column, current[0] === column ? -current[1] : falls ? -1 : 1));
      th.append(button);
    }
    head.append(th);
  });
  sort(by, 1);
  return element("table", { class: name }, element("caption", { class: "unseen" }, caption), element("thead", {}, head), body);
}
