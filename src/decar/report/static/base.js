"use strict";
// What everything here is made of: elements, charts in the colours of the page, tables that sort and filter.
// Names and labels become text nodes, never HTML; where plotly reads a little HTML in texts, `plain` takes it away.
const DATA = JSON.parse(document.getElementById("data").textContent);
const CLIPS = DATA.clips;
const PALETTE = ["#4c78d8", "#f58518", "#2fa35b", "#e4575e", "#9467c8", "#12a5b8", "#b8860b", "#e377b2", "#7a8b99", "#8fae1b",
  "#8c564b", "#2b4fa0", "#ff9da6", "#5f9e8f", "#c43d9b", "#d4a017", "#6b6ecf", "#3d7d3d", "#a55194", "#d6616b"];
const at = (id) => document.getElementById(id);
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1) + " %");
const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function choices(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  if (chosen !== undefined) select.value = chosen;
}

// --- charts: kept, to be drawn anew in other colours ---
const charts = new Map();
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(id, traces, layout = {}) {
  const element = typeof id === "string" ? at(id) : id;
  charts.set(element, [traces, layout]);
  const axis = { gridcolor: colour("--grid"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
  const given = typeof layout === "function" ? layout() : layout;
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 44, r: 12, t: 8, b: 40 }, showlegend: false,
    font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") }, hovermode: "closest",
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left", namelength: 0 },
    ...given, xaxis: { ...axis, ...given.xaxis }, yaxis: { ...axis, ...given.yaxis },
  };
  const config = { responsive: true, displaylogo: false, displayModeBar: false, ...given.config };
  delete whole.config;
  return Plotly.react(element, typeof traces === "function" ? traces() : traces, whole, config);
}

function redraw() { for (const [element, [traces, layout]] of charts) if (element.id === "map-chart") drawMap(); else draw(element, traces, layout); }

function setUpTheme() {
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  at("theme").addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; redraw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function heat(rows, columns, counts, from, to, shares, order = {}) {
  const hovertext = counts.map((row, r) => row.map((n, c) => `${plain(from)} ${plain(rows[r])} → ${plain(to)} ${plain(columns[c])}<br>${n} clips, ${percent(shares[r][c])} of the row`));
  return {
    type: "heatmap", z: shares, hovertext, hoverinfo: "text", zmin: 0, zmax: 1, xgap: rows.length > 40 ? 0 : 1, ygap: rows.length > 40 ? 0 : 1,
    colorscale: [[0, colour("--back")], [0.005, colour("--mark")], [1, colour("--accent")]],
    colorbar: { thickness: 10, outlinewidth: 0, tickformat: ".0%", len: 0.9 }, ...order,
  };
}

const shareOf = (counts) => counts.map((row) => { const sum = row.reduce((a, b) => a + b, 0) || 1; return row.map((n) => n / sum); });

// --- tables: a heading sorts, a row is picked by click, Enter or space; arrows go up and down ---
function table(element, columns, rows, pick) {
  let by = null, down = true, words = "", picked = null;
  const head = make("tr"), body = make("tbody");
  const heads = columns.map((column, i) => {
    const button = make("button", { type: "button" });
    const cell = make("th", { className: column.number ? "number" : "", scope: "col" }, button);
    button.addEventListener("click", () => { down = by === i ? !down : Boolean(column.number); by = i; show(); });
    head.append(cell);
    return [cell, button];
  });
  const compare = (a, b) => {
    const [x, y] = [columns[by].value(a), columns[by].value(b)];
    if (x === y) return 0;
    if (x === null) return 1;
    if (y === null) return -1;
    return (x < y ? -1 : 1) * (down ? -1 : 1);
  };
  function line(row) {
    const cells = columns.map((c) => make("td", { className: c.number ? "number" : "text" }, ...(c.show ? c.show(row) : [String(c.value(row) ?? "–")])));
    const tr = make("tr", { className: pick ? "pick" : "" }, ...cells);
    if (!pick) return tr;
    tr.tabIndex = 0;
    tr.setAttribute("aria-selected", String(row === picked));
    const choose = () => { picked = row; for (const other of body.rows) other.setAttribute("aria-selected", String(other === tr)); pick(row); };
    tr.addEventListener("click", choose);
    tr.addEventListener("keydown", (event) => {
      const next = { ArrowDown: tr.nextElementSibling, ArrowUp: tr.previousElementSibling }[event.key];
      if (event.key === "Enter" || event.key === " ") choose();
      else if (next) next.focus();
      else return;
      event.preventDefault();
    });
    return tr;
  }
  function show() {
    heads.forEach(([cell, button], i) => {
      button.textContent = columns[i].title + (by === i ? (down ? " ↓" : " ↑") : "");
      cell.setAttribute("aria-sort", by !== i ? "none" : down ? "descending" : "ascending");
    });
    const kept = rows.filter((row) => words.split(/\s+/).every((word) => columns.some((c) => String(c.value(row) ?? "").toLowerCase().includes(word))));
    if (by !== null) kept.sort(compare);
    body.replaceChildren(...kept.map(line));
    if (!kept.length) body.append(make("tr", {}, make("td", { colSpan: columns.length, textContent: "nothing fits" })));
  }
  element.replaceChildren(make("thead", {}, head), body);
  show();
  return {
    filter(text) { words = text.trim().toLowerCase(); show(); },
    pick(row) { picked = row; show(); pick(row); },
    unpick() { picked = null; show(); },
    show,
  };
}
