// The map, the clips on it, the clusters that they are in.
const CLIPS = DATA.clips;
const RUN = DATA.clusterings.length > 0; // else the clusters were made without a training
const clusterName = (id) => (id < 0 ? "noise" : String(id));
const labelOf = (name, i) => { const column = CLIPS.labels[name], code = column.codes[i]; return code < 0 ? "" : column.values[code]; };

function sight(i) {
  const [audio, picture, fault] = CLIPS.sounds[i] || ["", "", "not among the clips that this page has room for"];
  return [
    picture ? make("img", { className: "spectrogram", src: picture, alt: `log-mel spectrogram of ${CLIPS.name[i]}` }) : null,
    audio ? make("audio", { controls: true, preload: "none", src: audio }) : make("p", { className: "silent", textContent: `No sound: ${fault}` }),
  ];
}

function nearestHeard(i) {
  const far = (j) => (CLIPS.x[j] - CLIPS.x[i]) ** 2 + (CLIPS.y[j] - CLIPS.y[i]) ** 2;
  const heard = Object.keys(CLIPS.sounds).map(Number).filter((j) => j !== i && CLIPS.sounds[j][0]);
  return heard.length ? heard.reduce((a, b) => (far(b) < far(a) ? b : a)) : null;
}

function showClip(i) {
  const facts = [["length", `${CLIPS.seconds[i]} s${CLIPS.at[i] ? `, from ${CLIPS.at[i]} s` : ""}`], ...DATA.labels.map((name) => [name, labelOf(name, i)]),
    ...(CLIPS.clusters.length ? [["cluster", clusterName(CLIPS.clusters[CLIPS.clusters.length - 1][i])]] : []), ...(CLIPS.novelty ? [["novelty", CLIPS.novelty[i].toFixed(2)]] : [])].filter(([, value]) => value !== "");
  at("clip").replaceChildren(make("h3", { textContent: CLIPS.name[i] }), ...sight(i).filter(Boolean), ...neighbour(i),
    make("dl", { className: "values" }, ...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })])));
  at("clip").dataset.clip = i;
  ring(i);
}

function neighbour(i) {
  const other = CLIPS.sounds[i] && CLIPS.sounds[i][0] ? null : nearestHeard(i);
  if (other === null) return [];
  const button = make("button", { type: "button", textContent: "Go to the nearest clip with sound" });
  button.addEventListener("click", () => showClip(other));
  return [button];
}

let ringed = null, kept = null; // the point shown in the panel; the clusters that are kept bright

function ring(i) { ringed = i; drawMap(); }

function groups() {
  const [kind, name] = [at("colour").value.split(":")[0], at("colour").value.slice(at("colour").value.indexOf(":") + 1)];
  if (kind === "label") {
    const column = CLIPS.labels[name], most = column.values.length > 20 ? 19 : 20;
    const found = column.values.slice(0, most).map((value, k) => ({ name: value, colour: PALETTE[k], rows: [] }));
    const others = { name: `${column.values.length - most} others`, colour: "#9aa3ad", rows: [] }, none = { name: "no label", colour: "#c3c8cf", rows: [], faint: true };
    column.codes.forEach((code, i) => (code < 0 ? none : code < most ? found[code] : others).rows.push(i));
    return [none, others, ...found].filter((group) => group.rows.length);
  }
  const clusters = kind === "clustering" ? CLIPS.clusters[name] : null;
  return [{ name: "", rows: CLIPS.name.map((_, i) => i), colour: clusters ? clusters.map((c) => (c < 0 ? "#9aa3ad" : PALETTE[c % 20])) : PALETTE[0], clusters }];
}

function drawMap() {
  const phone = innerWidth < 860, labelled = at("colour").value.startsWith("label");
  const traces = groups().map((group) => ({
    type: "scatter", mode: "markers", name: plain(short(group.name, 28)), x: group.rows.map((i) => CLIPS.x[i]), y: group.rows.map((i) => CLIPS.y[i]), customdata: group.rows,
    text: group.rows.map((i) => plain(short(CLIPS.name[i], 60)) + (group.clusters ? `<br>cluster ${clusterName(group.clusters[i])}` : group.name ? `<br>${plain(short(group.name, 40))}` : "")), hoverinfo: "text",
    marker: { size: phone ? 5 : 6, color: group.colour, line: { width: 0 }, opacity: kept ? group.rows.map((i) => (kept.has(i) ? 1 : 0.08)) : group.faint ? 0.35 : 0.8 },
  }));
  if (ringed !== null) traces.push({ type: "scatter", mode: "markers", x: [CLIPS.x[ringed]], y: [CLIPS.y[ringed]], hoverinfo: "skip", showlegend: false, marker: { size: 16, symbol: "circle-open", color: colour("--ink"), line: { width: 3 } } });
  const bare = { showgrid: false, zeroline: false, showticklabels: false, ticks: "", showline: false };
  return draw("map-chart", traces, {
    margin: { l: 4, r: 4, t: 34, b: 4 }, uirevision: "map", modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--accent") }, dragmode: "zoom", xaxis: { ...bare, range: [-1.06, 1.06] }, yaxis: { ...bare, range: [-1.06, 1.06] }, showlegend: labelled,
    legend: { orientation: "h", y: -0.01, yanchor: "top", x: 0, itemsizing: "constant", font: { size: 12 } },
    config: { scrollZoom: !phone, displayModeBar: true, modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] },
  });
}

function setUpMap() {
  if (!CLIPS) return;
  const clusterings = CLIPS.clusters.map((_, i) => [`clustering:${i}`, RUN ? `clusters: ${DATA.explorer[i].name}` : "cluster"]).reverse();
  const labels = DATA.labels.map((name) => [`label:${name}`, name]);
  choices(at("colour"), [...(RUN ? [...labels, ...clusterings] : [...clusterings, ...labels]), ...(DATA.labels.length || clusterings.length ? [] : [["none:", "nothing"]])]);
  const n = CLIPS.name.length;
  at("map-hint").textContent = `Each point is a clip${n < DATA.n_clips ? `: a sample of ${n.toLocaleString("en")} out of ${DATA.n_clips.toLocaleString("en")}, drawn evenly at random` : ""}; t-SNE of the standardised embeddings, where near means alike and far means little. ` +
    `${DATA.n_sounds.toLocaleString("en")} clips can be heard, their first 4 s made equally loud: those nearest to and farthest from the middle of the clusters first, then a random choice.${DATA.labels.length ? "" : " The manifest has no label columns."}`;
  drawMap().then(() => at("map-chart").on("plotly_click", (event) => { const i = event.points[0].customdata; if (i !== undefined) showClip(i); }));
  at("colour").addEventListener("change", () => { kept = null; drawMap(); });
  at("find").addEventListener("input", () => {
    const words = at("find").value.trim().toLowerCase();
    const hits = !words ? [] : CLIPS.name.map((_, i) => i).filter((i) => CLIPS.name[i].toLowerCase().includes(words) || DATA.labels.some((name) => labelOf(name, i).toLowerCase().includes(words)));
    kept = hits.length ? new Set(hits) : null;
    drawMap();
    at("found").replaceChildren(...(words ? [make("span", { className: "hint", textContent: `${hits.length} found` })] : []),
      ...hits.slice(0, 8).map((i) => { const b = make("button", { type: "button", textContent: short(CLIPS.name[i], 48) }); b.addEventListener("click", () => showClip(i)); return b; }));
  });
}

// --- the cluster explorer ---
function card(i) {
  const name = make("button", { type: "button", className: "name", title: `${CLIPS.name[i]}: show on the map`, textContent: short(CLIPS.name[i].split("/").pop(), 60) });
  name.addEventListener("click", () => { showClip(i); at("map").scrollIntoView(); });
  const label = DATA.labels.length ? labelOf(at("against").value, i) : "";
  return make("div", { className: "card" }, ...sight(i), name, label ? make("div", { className: "silent", textContent: label }) : null);
}

function showCluster(c) {
  const which = Number(at("explored").value);
  const purities = Object.entries(c.purity).map(([name, [value, top, n]]) => [name, value === null ? "no labelled clip" : `${percent(value)} ${short(top, 40)} (of ${n} with a label)`]);
  const button = make("button", { type: "button", textContent: "Show on the map" });
  button.addEventListener("click", () => {
    kept = new Set(CLIPS.name.map((_, i) => i).filter((i) => CLIPS.clusters[which][i] === c.id));
    drawMap();
    at("map").scrollIntoView();
  });
  const part = (title, rows) => (rows.length ? [make("h4", { textContent: title }), make("div", { className: "cards" }, ...rows.map(card))] : []);
  at("cluster").replaceChildren(...[make("h3", { textContent: `${c.id < 0 ? "Noise" : `Cluster ${c.id}`}: ${c.size.toLocaleString("en")} clip${c.size === 1 ? "" : "s"}` }),
    make("dl", { className: "values" }, ...purities.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })])),
    ...part("Nearest to its middle", c.near), ...part("Farthest from its middle", c.far),
    c.near.length ? null : make("p", { className: "silent", textContent: "None of its clips is in the sample." }), make("p", {}, button)].filter(Boolean));
}

function setUpExplorer() {
  const all = DATA.explorer || [];
  if (!all.length) return;
  choices(at("explored"), all.map((_, i) => [i, `${all[i].name} (${all[i].clusters.length} clusters)`]), all.length - 1);
  at("explored").parentElement.hidden = all.length < 2;
  const columns = Object.keys(all[0].overall);
  choices(at("against"), columns.map((name) => [name, name]));
  at("against").parentElement.hidden = !columns.length;
  let shown = null;
  const bar = (value) => (value === null ? ["–"] : [make("span", { className: "bar" }, make("i", { style: `width:${Math.round(100 * value)}%` })), make("span", { textContent: percent(value) })]);
  const show = () => {
    const found = all[at("explored").value], name = at("against").value, overall = found.overall[name];
    at("explorer-hint").textContent = (RUN && Number(at("explored").value) < all.length - 1 ? "The last assignment of this clustering. " : "") + "Nearest and farthest: cosine to the mean of the cluster's standardised embeddings" +
      (CLIPS.name.length < DATA.n_clips ? ", among the sampled clips; sizes and purity are of all clips." : ".") +
      (overall ? ` Against ${name}: purity ${percent(overall.purity)}, NMI ${overall.nmi.toFixed(3)}. Purity is the share of the commonest label; many small clusters are purer by chance.` : RUN ? " The manifest has no label columns to compare with." : "");
    const of = (c) => c.purity[name] || [null, "", 0];
    shown = table(at("cluster-table"), [
      { title: "Cluster", value: (c) => c.id, number: true, show: (c) => [clusterName(c.id)] }, { title: "Clips", value: (c) => c.size, number: true },
      ...(columns.length ? [{ title: "Purity", value: (c) => of(c)[0], number: true, show: (c) => bar(of(c)[0]) }, { title: "Commonest", value: (c) => of(c)[1], show: (c) => [short(of(c)[1], 40) || "–"] }] : []),
    ], found.clusters, showCluster);
    shown.filter(at("cluster-filter").value);
    shown.pick(found.clusters.reduce((a, b) => (b.size > a.size ? b : a)));
  };
  at("explored").addEventListener("change", show);
  at("against").addEventListener("change", show);
  at("cluster-filter").addEventListener("input", () => shown.filter(at("cluster-filter").value));
  show();
}
