// Downstream results, configuration, environment; then everything is set up.
function setUpResults() {
  const rows = DATA.results || [];
  if (!rows.length) return;
  const shown = table(at("result-table"), [
    { title: "Task", value: (r) => r.task }, { title: "Encoder", value: (r) => r.encoder }, { title: "Mode", value: (r) => r.mode }, { title: "Protocol", value: (r) => r.protocol },
    { title: "Test", value: (r) => r.value, number: true, show: (r) => [percent(r.value)] }, { title: "Validation", value: (r) => r.valid, number: true, show: (r) => [percent(r.valid)] },
    { title: "Measure", value: (r) => r.metric }, { title: "Classes", value: (r) => r.n_classes, number: true }, { title: "Train", value: (r) => r.n_train, number: true },
    { title: "Test clips", value: (r) => r.n_test, number: true }, { title: "Seed", value: (r) => r.seed, number: true },
  ], rows, showConfusion);
  at("result-filter").addEventListener("input", () => shown.filter(at("result-filter").value));
  shown.pick(rows.find((r) => r.encoder === "this encoder" && r.confusion.length) || rows[0]);
}

// A row of bars for each task, one bar an encoder, with the line that naming the commonest class would reach.
function setUpBars() {
  const rows = DATA.bars || [], names = [...new Set(rows.flatMap((row) => Object.keys(row.encoders)))], several = new Set(rows.map((row) => row.how)).size > 1;
  if (!rows.length) return;
  at("bars").style.height = `${(innerWidth < 600 ? 180 : 100) + rows.length * (12 + 18 * names.length)}px`;
  const places = rows.map((_, r) => r), chances = places.filter((r) => rows[r].chance !== null);
  draw("bars", () => [...names.map((name, k) => {
    const at_ = places.filter((r) => name in rows[r].encoders), found = at_.map((r) => rows[r].encoders[name]);
    return { type: "bar", orientation: "h", name: plain(short(name, 28)), y: at_, x: found.map(([mean]) => mean), marker: { color: ["#4c78d8", "#9aa3ad", "#f58518", ...PALETTE.slice(2)][k % 21] },
      error_x: { visible: found.some(([, least, most]) => most > least), symmetric: false, array: found.map(([mean, , most]) => most - mean), arrayminus: found.map(([mean, least]) => mean - least), color: colour("--soft"), thickness: 1 },
      text: found.map(([mean]) => percent(mean)), textposition: "inside", insidetextanchor: "end", constraintext: "none", textfont: { size: 11 }, hovertemplate: found.map(([, least, most]) => `${plain(name)}: %{text}${most > least ? `, ${percent(least)} to ${percent(most)}` : ""}<extra></extra>`) };
  }), ...(chances.length ? [{ type: "scatter", mode: "lines", name: "always the commonest class", y: chances.flatMap((r) => [r - 0.45, r + 0.45, null]), x: chances.flatMap((r) => [rows[r].chance, rows[r].chance, null]), line: { width: 2, dash: "dot", color: colour("--ink") }, hovertemplate: "always the commonest class: %{x:.1%}<extra></extra>" }] : [])],
  { barmode: "group", bargap: 0.2, margin: { l: 60, r: 12, t: 30, b: 40 }, showlegend: true, legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" },
    xaxis: { range: [0, 1], tickformat: ".0%", title: { text: "on test", standoff: 6 } },
    yaxis: { range: [rows.length - 0.5, -0.5], showgrid: false, tickvals: places, ticktext: rows.map((row) => plain(short(row.task, 24)) + (several ? `<br>${plain(row.how)}` : "") + (row.metric === "accuracy" ? "" : `<br>${plain(row.metric)}`)) } });
}

function showConfusion(result) {
  const full = Array.isArray(result.confusion) && result.confusion.length > 0;
  at("confusion-title").textContent = full ? `Confusion: ${result.task}, ${result.encoder}, ${result.mode}, ${result.protocol}` : `${result.task}: no confusion matrix (several labels a clip have none)`;
  at("confusion").hidden = !full;
  if (!full) return;
  const shares = shareOf(result.confusion), few = result.classes.length <= 30, places = result.classes.map((_, i) => i);
  const named = few ? { tickvals: places, ticktext: result.classes.map((name) => plain(short(name, 16))) } : { showticklabels: false };
  const numbers = result.classes.length <= 12 && innerWidth > 600 ? { texttemplate: "%{text}", text: result.confusion } : {};
  draw("confusion", () => [heat(result.classes, result.classes, result.confusion, "true:", "said:", shares, numbers)],
    { margin: { l: 40, r: 4, t: 4, b: 40 }, xaxis: { ...named, title: { text: "predicted", standoff: 14 }, showgrid: false, tickangle: -40 }, yaxis: { ...named, title: { text: "true", standoff: 14 }, autorange: "reversed", showgrid: false } });
}

function branch(key, value, depth) {
  if (value !== null && typeof value === "object") {
    const entries = Object.entries(value);
    if (entries.length) return make("details", { open: depth < 0 }, make("summary", { textContent: key }), ...entries.map(([k, v]) => branch(k, v, depth + 1)));
    value = Array.isArray(value) ? "[]" : "{}";
  }
  return make("div", { className: "leaf" }, make("span", { className: "key", textContent: `${key}: ` }), String(value));
}

function setUpConfig() {
  const tree = at("config-tree"), everything = () => tree.querySelectorAll("details");
  tree.append(...Object.entries(DATA.config).map(([key, value]) => branch(key, value, 0)));
  if (!tree.children.length) tree.append(make("p", { className: "note", textContent: "The run has no config.yaml that could be read." }));
  at("config-open").addEventListener("click", () => {
    const open = [...everything()].some((part) => !part.open);
    for (const part of everything()) part.open = open;
    at("config-open").textContent = open ? "Close all" : "Open all";
  });
  const path = (leaf) => { let text = leaf.textContent; for (let up = leaf.parentElement; up !== tree; up = up.parentElement) text = `${up.firstChild.textContent}.${text}`; return text.toLowerCase(); };
  at("config-find").addEventListener("input", () => {
    const words = at("config-find").value.trim().toLowerCase();
    for (const leaf of tree.querySelectorAll(".leaf")) { const hit = path(leaf).includes(words); leaf.hidden = !hit; leaf.classList.toggle("hit", Boolean(words) && hit); }
    for (const part of everything()) { const hit = part.querySelector(".leaf:not([hidden])") !== null; part.hidden = !hit; part.open = Boolean(words) && hit; }
  });
}

function setUpNotes() {
  for (const element of document.querySelectorAll("[data-note]")) {
    const text = DATA.notes[element.dataset.note];
    if (text) { element.textContent = text; element.hidden = false; }
  }
  if (!(DATA.explorer || []).length) { const note = document.querySelector("[data-note=explorer]"); note.textContent = DATA.notes.map || DATA.notes.clusters || "The clusters were made of other clips than the manifest lists now."; note.hidden = false; }
  for (const element of document.querySelectorAll("[data-needs]")) { const value = DATA[element.dataset.needs]; element.hidden = !value || value.length === 0; }
}

function setUpEnvironment() {
  at("environment-table").append(...Object.entries(DATA.environment || {}).map(([name, value]) => make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: value }))));
  at("environment-table").parentElement.hidden = !DATA.environment;
  at("environment").hidden = !DATA.environment && !DATA.notes.environment;
}

setUpTheme();
setUpNotes();
for (const setUp of [setUpSummary, setUpCurves, setUpClusters, setUpMap, setUpExplorer, setUpRecordings, setUpWhen, setUpLabels, setUpBars, setUpResults, setUpConfig, setUpEnvironment]) {
  try { setUp(); } catch (error) { console.error(setUp.name, error); }
}
document.documentElement.dataset.ready = "yes";
