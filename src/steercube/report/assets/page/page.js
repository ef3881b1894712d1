"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// A table sorts by the number that a cell begins with, else by its text; empty cells stay last.
const keyOf = (cell) => {
  const text = cell.textContent.trim().replace(/−/g, "-").replace(/,(?=\d{3})/g, "");
  const found = text.match(/^[~+]?(-?\d+(?:\.\d+)?)/);
  return text === "" || text === "–" ? null : found ? Number(found[1]) : text.toLowerCase();
};
const compare = (a, b, sign) => {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === typeof b) return sign * (a < b ? -1 : a > b ? 1 : 0);
  return typeof a === "number" ? -1 : 1;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      rows.sort((a, b) => compare(keyOf(a.cells[column]), keyOf(b.cells[column]), sign));
      table.tBodies[0].append(...rows);
    });
  });
}

// The heat map: a cell's interval, items, layer and layer curve.
const number = (value) => (value === null ? "–" : value.toFixed(2).replace("-", "−"));
const curveOf = (cell) => {
  const c = cell.curve, width = 250, height = 110, left = 28, bottom = 22;
  if (!c.depth || c.depth.length < 2) return "";
  const drawn = c.cohens_d.map((d, i) => i).filter((i) => c.cohens_d[i] !== null);
  const lows = drawn.map((i) => c.cohens_d_low[i] ?? c.cohens_d[i]);
  const highs = drawn.map((i) => c.cohens_d_high[i] ?? c.cohens_d[i]);
  const floor = Math.min(0, ...lows), top = Math.max(...highs);
  const x = (depth) => left + depth * (width - left - 4);
  const y = (d) => height - bottom - ((d - floor) / (top - floor || 1)) * (height - bottom - 6);
  const at = (values) => drawn.map((i, n) => `${x(c.depth[i]).toFixed(1)},${y(values[n]).toFixed(1)}`);
  const line = at(drawn.map((i) => c.cohens_d[i])).join(" ");
  const band = [...at(highs), ...at(lows).reverse()].join(" ");
  return `<svg viewBox="0 0 ${width} ${height}" aria-hidden="true">
    <line class="axis" x1="${left}" x2="${width - 4}" y1="${y(0)}" y2="${y(0)}"/>
    <polygon class="band" points="${band}"/><polyline class="line" points="${line}"/>
    <circle class="best" cx="${x(cell.depth)}" cy="${y(cell.cohens_d)}" r="3.5"/>
    <text x="${left - 4}" y="${y(0) + 3}" text-anchor="end">0</text>
    <text x="${left - 4}" y="${y(top) + 8}" text-anchor="end">${number(top)}</text>
    <text x="${left}" y="${height - 6}">d over depth 0</text>
    <text x="${width - 4}" y="${height - 6}" text-anchor="end">1</text></svg>`;
};
for (const figure of document.querySelectorAll("figure:has(table.heat)")) {
  const detail = figure.querySelector(".cell-detail");
  const buttons = [];
  const show = (button, cell) => {
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    const said = document.createElement("p");
    const name = document.createElement("strong");
    name.textContent = `${cell.model} on ${cell.concept}`;
    said.append(
      name,
      `: d = ${number(cell.cohens_d)} [${number(cell.cohens_d_low)}, ${number(cell.cohens_d_high)}] ` +
        `(${data.level}, over items), n = ${cell.n} items, best layer ${cell.layer} ` +
        `(${Math.round(100 * cell.depth)}% of the depth)${cell.notes ? `; ${cell.notes}` : ""}.`,
    );
    detail.innerHTML = curveOf(cell);
    detail.prepend(said);
  };
  for (const place of figure.querySelectorAll("[data-cell]")) {
    const cell = data.cells[place.dataset.cell];
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-label", `${cell.model} on ${cell.concept}: d ${number(cell.cohens_d)}`);
    button.append(...place.childNodes);
    place.append(button);
    buttons.push(button);
    for (const event of ["mouseenter", "focus", "click"])
      button.addEventListener(event, () => show(button, cell));
  }
}

// The layer curves: each model can be switched off.
const curves = [...document.querySelectorAll('figure[id^="layer_curves"] svg')];
if (curves.length && data.models.length > 1) {
  const box = document.createElement("fieldset");
  box.className = "toggles";
  const legend = document.createElement("legend");
  legend.textContent = "Show";
  box.append(legend);
  data.models.forEach((model, at) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "checkbox";
    input.checked = true;
    input.addEventListener("change", () => {
      for (const svg of curves)
        for (const group of svg.querySelectorAll(`[id^="curve-${at}-"]`))
          group.style.display = input.checked ? "" : "none";
    });
    label.append(input, ` ${model}`);
    box.append(label);
  });
  curves[0].before(box);
}

// A cited number tells its source on a tap as it does under a pointer.
const source = document.getElementById("source");
document.addEventListener("click", (event) => {
  const cited = event.target.closest(".cited, .said");
  source.textContent = cited ? `${cited.textContent}: ${cited.title}` : "";
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") source.textContent = "";
});
