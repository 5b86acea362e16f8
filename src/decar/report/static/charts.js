// Curves, sizes, flows.
const stepAxis = { title: { text: "step", standoff: 6 } };

function setUpCurves() {
  for (const curve of DATA.curves || []) {
    const chart = make("div", { className: "chart", id: `curve-${curve.name.replace(/\W/g, "-")}` });
    at("curve-charts").append(make("figure", {}, make("figcaption", {}, make("b", { textContent: curve.title }), make("span", { textContent: curve.hint })), chart));
    const line = (series, more) => ({ x: series.x, y: series.y, type: "scatter", hovertemplate: "%{y:.4g}<br>epoch %{customdata}, step %{x}", customdata: series.epoch, ...more });
    draw(chart, () => [
      ...(curve.fine && curve.fine.y.length ? [line(curve.fine, { mode: "lines", opacity: 0.35, line: { color: colour("--accent"), width: 1 } })] : []),
      line(curve, { mode: "lines+markers", line: { color: colour("--accent"), width: 2 }, marker: { size: curve.y.length > 60 ? 1 : 6 } }),
    ], { xaxis: { ...stepAxis, rangemode: "tozero" }, yaxis: { rangemode: curve.name === "n_clusters" ? "tozero" : "normal" } });
  }
}

function setUpClusters() {
  const all = DATA.clusterings;
  if (!all.length) return;
  choices(at("which"), all.map((c, i) => [i, clusteringName(i)]), all.length - 1);
  const now = () => all[at("which").value];
  const drawSizes = () => {
    const found = now().sizes.shown[at("size-epoch").value];
    draw("sizes", () => [{ type: "bar", x: found.map((_, i) => i + 1), y: found, marker: { color: colour("--accent") }, hovertemplate: "%{y} clips" }],
      { xaxis: { title: { text: "cluster, by size", standoff: 6 } }, yaxis: { title: { text: "clips" } }, bargap: 0.15 });
  };
  const drawFlow = () => {
    const flow = now().flows[at("flow-pair").value];
    at("flow-hint").textContent = flow
      ? `Rows: clusters of epoch ${flow.from + 1}; columns: clusters of epoch ${flow.to + 1}, put so that as many clips as can be lie on the diagonal. ${percent(flow.stay)} of the clips lie there; ${flow.nmi === null ? "the labels were kept, not clustered anew." : `NMI ${flow.nmi.toFixed(3)}. A bright diagonal: the clusters have settled.`}`
      : "There is only one assignment, nothing has moved yet.";
    at("flow").hidden = !flow;
    at("flow-pair").parentElement.hidden = !flow;
    if (!flow) return;
    const shares = shareOf(flow.counts);
    draw("flow", () => [heat(flow.rows, flow.columns, flow.counts, "cluster", "cluster", shares)],
      { margin: { l: 36, r: 4, t: 4, b: 36 }, xaxis: { showticklabels: false, title: { text: `clusters of epoch ${flow.to + 1}` }, showgrid: false }, yaxis: { showticklabels: false, title: { text: `clusters of epoch ${flow.from + 1}` }, autorange: "reversed", showgrid: false } });
  };
  const drawAll = () => {
    const { sizes, flows } = now();
    at("quantiles").parentElement.hidden = sizes.epochs.length < 2; // one point is no curve
    const names = ["smallest", "25 %", "median", "75 %", "largest"];
    draw("quantiles", () => names.map((name, i) => ({
      x: sizes.epochs.map((e) => e + 1), y: sizes.quantiles.map((q) => q[i]), type: "scatter", mode: sizes.epochs.length > 40 ? "lines" : "lines+markers", name,
      line: { color: PALETTE[i], width: i === 2 ? 3 : 1.5 }, hovertemplate: `${name}: %{y}`,
    })), { xaxis: { title: { text: "epoch", standoff: 6 }, dtick: sizes.epochs.length < 12 ? 1 : undefined }, yaxis: { title: { text: "clips" }, rangemode: "tozero" }, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, hovermode: "x unified" });
    const shown = Object.keys(sizes.shown).map(Number).sort((a, b) => a - b);
    choices(at("size-epoch"), shown.map((e) => [e, e + 1]), shown[shown.length - 1]);
    choices(at("flow-pair"), flows.map((f, i) => [i, `${f.from + 1} → ${f.to + 1}`]), flows.length - 1);
    drawSizes();
    drawFlow();
  };
  at("which").addEventListener("change", drawAll);
  at("size-epoch").addEventListener("change", drawSizes);
  at("flow-pair").addEventListener("change", drawFlow);
  drawAll();
}

function clusteringName(i) {
  const found = DATA.clusterings[i].sizes;
  const n = found.n_clusters[found.n_clusters.length - 1];
  return `${i + 1} of ${DATA.clusterings.length} (${n} cluster${n === 1 ? "" : "s"}, since epoch ${found.epochs[0] + 1})`;
}
