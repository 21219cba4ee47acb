"use strict";
// Values under the pointer, for every chart.
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg");
  const told = JSON.parse(figure.querySelector("script").textContent);
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  const scale = (at, from, to, log) => {
    const f = log ? Math.log : (value) => value;
    return Math.min(Math.max((f(at) - f(from)) / (f(to) - f(from)), 0), 1);
  };
  const value = (share, from, to, log) =>
    log ? Math.exp(Math.log(from) + share * (Math.log(to) - Math.log(from))) : from + share * (to - from);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  line.setAttribute("stroke", "var(--dim)");
  line.setAttribute("stroke-width", "0.7");
  line.setAttribute("visibility", "hidden");
  svg.appendChild(line);
  const said = (y, axes) => (axes.percent ? (100 * y).toFixed(2) + "%" : String(Number(y.toPrecision(4))));
  const hide = () => { tip.hidden = true; line.setAttribute("visibility", "hidden"); };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * told.width;
    const y = ((event.clientY - box.top) / box.height) * told.height;
    const axes = told.axes.find((a) => x >= a.left && x <= a.right && y >= a.top && y <= a.bottom);
    if (!axes) return hide();
    const wanted = value((x - axes.left) / (axes.right - axes.left), axes.x[0], axes.x[1], axes.xlog);
    let nearest = null;
    const rows = axes.series.map((series) => {
      let best = 0;
      series.x.forEach((at, i) => {
        if (Math.abs(at - wanted) < Math.abs(series.x[best] - wanted)) best = i;
      });
      const at = series.x[best];
      if (nearest === null || Math.abs(at - wanted) < Math.abs(nearest - wanted)) nearest = at;
      const spacing = (series.x[series.x.length - 1] - series.x[0]) / Math.max(1, series.x.length - 1);
      return { at, spacing, label: series.label, color: series.color, text: said(series.y[best], axes) };
    });
    const span = Math.abs(axes.x[1] - axes.x[0]);
    tip.textContent = "";
    const near = rows.filter((row) => Math.abs(row.at - nearest) <= Math.max(0.03 * span, 0.6 * row.spacing));
    near.sort((a, b) => Math.abs(a.at - nearest) - Math.abs(b.at - nearest) || a.at - b.at);
    let heading = null;
    for (const row of near) {
      if (row.at !== heading) {
        heading = row.at;
        const head = tip.appendChild(document.createElement("div"));
        head.textContent = (axes.xlabel || told.axes[told.axes.length - 1].xlabel) + " " + Number(heading.toPrecision(4));
      }
      const entry = tip.appendChild(document.createElement("div"));
      const dot = entry.appendChild(document.createElement("i"));
      dot.style.background = "var(--c-" + row.color.slice(1) + ", " + row.color + ")";
      entry.appendChild(document.createTextNode(row.label + ": " + row.text));
    }
    const px = axes.left + scale(nearest, axes.x[0], axes.x[1], axes.xlog) * (axes.right - axes.left);
    for (const [name, at] of [["x1", px], ["x2", px], ["y1", axes.top], ["y2", axes.bottom]]) line.setAttribute(name, at);
    line.setAttribute("visibility", "visible");
    tip.hidden = false;
    const left = (px / told.width) * box.width;
    const free = box.width - left > tip.offsetWidth + 16;
    tip.style.left = (free ? left + 12 : Math.max(0, left - tip.offsetWidth - 12)) + "px";
    const above = box.top - figure.getBoundingClientRect().top;
    tip.style.top = above + (axes.top / told.height) * box.height + 8 + "px";
  };
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointermove", show);
  // A finger that is lifted leaves its values to be read, until it taps elsewhere.
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  document.addEventListener("pointerdown", (event) => { if (!svg.contains(event.target)) hide(); });
}
// Tables of many rows are sorted by a click on a column's head: as numbers where all of its cells
// begin with one (or hold a data element), else as text. What is missing comes last.
const NUMBER = /^(?:at least )?[<>]?\$?(-?[\d,]*\.?\d+(?:e[-+]?\d+)?)(?: ?[%×]| ± | of | px$| [KMGT]i?B$| \(|$)/;
const isMissing = (cell) => ["", "-", "–"].includes(cell.textContent.trim());
const numberIn = (cell) => {
  const data = cell.querySelector("data");
  if (data) return Number(data.value);
  const found = NUMBER.exec(cell.textContent.trim());
  return found ? Number(found[1].replace(/,/g, "")) : NaN;
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (!body || body.rows.length < 5) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const cell = (row) => row.cells[column];
      const rows = [...body.rows].filter((row) => !isMissing(cell(row)));
      const missing = [...body.rows].filter((row) => isMissing(cell(row)));
      const numeric = rows.every((row) => !Number.isNaN(numberIn(cell(row))));
      rows.sort((a, b) => {
        const order = numeric
          ? numberIn(cell(a)) - numberIn(cell(b))
          : cell(a).textContent.trim().localeCompare(cell(b).textContent.trim(), undefined, { numeric: true });
        return down ? -order : order;
      });
      body.append(...rows, ...missing);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
