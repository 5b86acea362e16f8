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
}

setUpTheme();
setUpNotes();
for (const setUp of [setUpFacts, setUpCurves, setUpClusters, setUpMap, setUpExplorer, setUpWhen, setUpLabels, setUpResults, setUpConfig, setUpEnvironment]) {
  try { setUp(); } catch (error) { console.error(setUp.name, error); }
}
document.documentElement.dataset.ready = "yes";
