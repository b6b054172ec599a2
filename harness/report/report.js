// Sorting tables by click. Cells without data-sort (nothing was measured) stay last in both directions.
"use strict";

function order(first, second) {
  const [a, b] = [Number(first), Number(second)];
  if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
  return first.localeCompare(second, undefined, { numeric: true });
}

function sortBy(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const keyOf = (row) => row.cells[column].dataset.sort;
  const rows = [...table.tBodies[0].rows].sort((first, second) => {
    const [a, b] = [keyOf(first), keyOf(second)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * order(a, b);
  });
  table.tBodies[0].append(...rows);
}

for (const heading of document.querySelectorAll("thead th")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}
