// The map, the clips on it, the clusters that they are in.
const RUN = DATA.clusterings.length > 0; // else the clusters were made without a training
const clusterName = (id) => (id < 0 ? "noise" : String(id));
const labelOf = (name, i) => { const column = CLIPS.labels[name], code = column.codes[i]; return code < 0 ? "" : column.values[code]; };

const SEEN = 4; // seconds of a clip in its picture, and in its sound
const EACH = 12; // clips of a cluster that are shown at first, and with each "more"
const ofServer = (what, i) => `${what}/${i}?token=${SERVED.token}`;
const plays = (i) => Boolean(SERVED || (CLIPS.sounds[i] && CLIPS.sounds[i][0]));
const damaged = (i) => Boolean(CLIPS.sounds[i] && CLIPS.sounds[i][2]); // its file cannot be read

const soundOf = (i) => (SERVED ? ofServer("sound", i) : (CLIPS.sounds[i] || [""])[0]);

// The spectrogram of a clip, with ticks of frequency (the HTK mel scale) and of time; null where there is none.
function picture(i) {
  const source = (CLIPS.sounds[i] || [])[1] || (SERVED ? ofServer("picture", i) : "");
  if (!source) return null;
  const end = Math.min(SEEN, CLIPS.seconds[i]), { f_min: low, f_max: high } = DATA.frontend, mel = (hz) => Math.log10(1 + hz / 700);
  const step = [0.1, 0.25, 0.5, 1].find((one) => end / one <= 4) || 1, tick = (side, share, text) => make("span", { className: side, style: `${side}:${100 * share}%`, textContent: text });
  return make("div", { className: "sight" }, make("img", { className: "spectrogram", src: source, alt: `log-mel spectrogram of ${CLIPS.name[i]}` }),
    ...[1000, 2000, 4000, 8000, 16000].filter((hz) => low < hz && mel(hz) < 0.95 * mel(high)).map((hz) => tick("bottom", (mel(hz) - mel(low)) / (mel(high) - mel(low)), `${hz / 1000}${hz === 1000 ? " kHz" : ""}`)),
    ...[1, 2, 3].map((k) => k * step).filter((second) => second < 0.92 * end).map((second) => tick("left", second / end, second === step ? `${second} s` : second)));
}

function sight(i) {
  const sound = soundOf(i), fault = (CLIPS.sounds[i] || [])[2];
  return [picture(i), sound ? make("audio", { controls: true, preload: "none", src: sound }) : make("p", { className: "silent", textContent: `No sound: ${fault || "not among the clips that this page has room for"}` })];
}

function nearestHeard(i) {
  const far = (j) => (CLIPS.x[j] - CLIPS.x[i]) ** 2 + (CLIPS.y[j] - CLIPS.y[i]) ** 2;
  const heard = Object.keys(CLIPS.sounds).map(Number).filter((j) => j !== i && plays(j));
  return heard.length ? heard.reduce((a, b) => (far(b) < far(a) ? b : a)) : null;
}

function showClip(i) {
  const facts = [["length", `${CLIPS.seconds[i]} s${CLIPS.at[i] ? `, from ${CLIPS.at[i]} s` : ""}`], ...DATA.labels.map((name) => [name, labelOf(name, i)]),
    ...(CLIPS.clusters.length ? [["cluster", clusterName(CLIPS.clusters[CLIPS.clusters.length - 1][i])]] : []), ["novelty", CLIPS.novelty[i].toFixed(2)]].filter(([, value]) => value !== "");
  at("clip").replaceChildren(make("h3", { textContent: CLIPS.name[i] }), ...sight(i).filter(Boolean), ...neighbour(i),
    make("dl", { className: "values" }, ...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })])), chips(i));
  at("clip").dataset.clip = i;
  at("clip").tabIndex = 0;
  setCurrent(i);
  ring(i);
}

function neighbour(i) {
  const other = plays(i) ? null : nearestHeard(i);
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
  if (kind === "mine") {
    const none = { name: "no label", colour: "#c3c8cf", rows: [], faint: true }, found = new Map();
    CLIPS.name.forEach((_, i) => {
      const name = textOf(i);
      if (name && !found.has(name)) found.set(name, { name, colour: PALETTE[found.size % 20], rows: [] });
      (found.get(name) || none).rows.push(i);
    });
    return [none, ...found.values()].filter((group) => group.rows.length);
  }
  const clusters = kind === "clustering" ? CLIPS.clusters[name] : null;
  return [{ name: "", rows: CLIPS.name.map((_, i) => i), colour: clusters ? clusters.map((c) => (c < 0 ? "#9aa3ad" : PALETTE[c % 20])) : PALETTE[0], clusters }];
}

function drawMap() {
  const phone = innerWidth < 860, labelled = /^(label|mine)/.test(at("colour").value);
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
    config: { scrollZoom: !phone, displayModeBar: true, modeBarButtons: [["zoom2d", "pan2d", "lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] },
  });
}

function setUpMap() {
  if (!CLIPS) return;
  const clusterings = CLIPS.clusters.map((_, i) => [`clustering:${i}`, RUN ? `clusters: ${DATA.explorer[i].name}` : "cluster"]).reverse();
  const labels = DATA.labels.map((name) => [`label:${name}`, name]);
  choices(at("colour"), [...(RUN ? [...labels, ...clusterings] : [...clusterings, ...labels]), ["mine:", "the labels given here"], ...(DATA.labels.length || clusterings.length ? [] : [["none:", "nothing"]])]);
  const n = CLIPS.name.length;
  at("map-hint").textContent = `Each point is a clip${n < DATA.n_clips ? `: a sample of ${n.toLocaleString("en")} out of ${DATA.n_clips.toLocaleString("en")}, drawn evenly at random` : ""}; t-SNE of the half-standardised embeddings, where near means alike and far means little. Lasso and box, above the map, select clips to list, label and save. ` +
    `${SERVED ? "Every clip plays in full." : `${DATA.n_sounds.toLocaleString("en")} clips can be heard, their first ${SEEN} s made equally loud: those nearest to and farthest from the middle of the clusters first, then a random choice.`}${DATA.labels.length ? "" : " The manifest has no label columns."}`;
  drawMap().then(() => {
    at("map-chart").on("plotly_click", (event) => { const i = event.points[0].customdata; if (i !== undefined) showClip(i); });
    at("map-chart").on("plotly_selected", (event) => { if (event) selected(event.points.map((point) => point.customdata).filter((i) => i !== undefined)); });
  });
  listeners.push(() => { if (at("colour").value === "mine:") drawMap(); });
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

// --- a selection in the map ---
let unpick = () => {}, pickCluster = () => {};

function selected(rows) {
  const button = (text, act) => { const made = make("button", { type: "button", textContent: text }); made.addEventListener("click", act); return made; };
  const chosen = [...new Set(rows)].sort((a, b) => a - b);
  if (!chosen.length) { at("selection").replaceChildren(); return; }
  at("selection").replaceChildren(make("span", { className: "hint", textContent: `${chosen.length.toLocaleString("en")} selected` }),
    button("List them", () => { unpick(); list(`Selection: ${chosen.length.toLocaleString("en")} clips`, chosen, "selection"); at("explorer").scrollIntoView(); }),
    button("Save as CSV", () => save("selection.csv", clipsCsv(chosen))), button("Save as playlist", () => save("selection.m3u8", playlist(chosen), "audio/x-mpegurl")));
}

function clipsCsv(rows) {
  const last = CLIPS.clusters.length - 1;
  const own = ["path", "start", "duration", "cluster", "label"];
  return toCsv([...own.slice(0, 4), ...DATA.labels.map((name) => (own.includes(name) ? `table_${name}` : name)), "label"],
    rows.map((i) => [pathOf(i), CLIPS.at[i], CLIPS.for[i], CLIPS.clusters[last][i], ...DATA.labels.map((name) => labelOf(name, i)), textOf(i)]));
}

// VLC plays the stretches; other players the whole files.
function playlist(rows) {
  const stretch = (i) => (CLIPS.for[i] === null && !CLIPS.at[i] ? [] : [`#EXTVLCOPT:start-time=${CLIPS.at[i]}`, `#EXTVLCOPT:stop-time=${CLIPS.at[i] + CLIPS.seconds[i]}`]);
  return ["#EXTM3U", ...rows.flatMap((i) => [`#EXTINF:${Math.ceil(CLIPS.seconds[i])},${CLIPS.name[i].replace(/[\r\n]/g, " ")}`, ...stretch(i), pathOf(i)])].join("\n") + "\n";
}

// --- the cluster explorer ---
function card(i) {
  const name = make("button", { type: "button", className: "name", title: `${CLIPS.name[i]}: show on the map`, textContent: short(CLIPS.name[i].split("/").pop(), 60) });
  name.addEventListener("click", () => { showClip(i); at("map").scrollIntoView(); });
  const label = [order === "alike" && CLIPS.alike[i] >= 0 ? `group ${CLIPS.alike[i] + 1}` : "", DATA.labels.length ? labelOf(at("against").value, i) : ""].filter(Boolean).join(" · ");
  const made = make("div", { className: "card", tabIndex: 0, role: "group", "aria-label": CLIPS.name[i] }, ...sight(i), name, label ? make("div", { className: "silent", textContent: label }) : null, chips(i));
  made.dataset.clip = i;
  return made;
}

const ORDERS = {
  near: ["nearest to the middle first", (which) => (i) => -CLIPS.middle[which][i]], far: ["farthest from the middle first", (which) => (i) => CLIPS.middle[which][i]],
  novel: ["most novel first", () => (i) => -CLIPS.novelty[i]], alike: ["near duplicates only", () => (i) => CLIPS.alike[i]], given: ["as listed", () => (i) => i],
};
let order = DATA.suggested ? "given" : "near";

// Shows clips in the panel of the explorer: those that play, and those whose files cannot be read.
function list(title, rows, by, above = []) {
  const which = Number(at("explored").value), value = ORDERS[order][1](which);
  const among = order === "alike" ? rows.filter((i) => CLIPS.alike[i] >= 0) : rows;
  const sorted = [...among].sort((a, b) => value(a) - value(b) || a - b), there = sorted.filter((i) => plays(i) || damaged(i)), silent = among.length - there.length;
  const select = make("select"), cards = make("div", { className: "cards" }), name = make("input", { autocomplete: "off", placeholder: "dog, or dog,rain" });
  name.setAttribute("list", "label-words");
  name.id = "name-all";
  choices(select, Object.entries(ORDERS).filter(([key]) => key !== "alike" || rows.some((i) => CLIPS.alike[i] >= 0)).map(([key, [text]]) => [key, text]), order);
  select.id = "order";
  select.addEventListener("change", () => { order = select.value; list(title, rows, by, above); });
  name.value = by === "cluster" ? nameOf(rows) : "";
  name.addEventListener("change", () => giveAll(rows, name.value, by));
  const more = make("button", { type: "button", id: "cluster-more" });
  let shown = 0;
  const add = () => {
    cards.append(...there.slice(shown, shown + EACH).map(card));
    shown = Math.min(shown + EACH, there.length);
    more.textContent = there.length - shown > EACH ? `Show ${EACH} more (${(there.length - shown).toLocaleString("en")} are left)` : `Show ${there.length - shown} more`;
    if (shown >= there.length) more.remove();
  };
  const missing = silent ? `${silent.toLocaleString("en")} more on this page have no sound in it: decar page FOLDER --serve plays them all.` : "";
  at("cluster").replaceChildren(make("h3", { textContent: title }), ...above, ...(rows.length ? [make("div", { className: "controls" },
    by ? make("label", {}, by === "cluster" ? "Name " : "Label all ", name) : null, make("label", {}, "Order ", select)), cards, more] : []),
    missing ? make("p", { className: "silent", textContent: missing }) : "");
  add();
  more.addEventListener("click", add);
}

function showCluster(c) {
  if (order === "alike") order = "near"; // else a cluster without near duplicates would look empty
  const which = Number(at("explored").value), final = which === CLIPS.clusters.length - 1, rows = CLIPS.name.map((_, i) => i).filter((i) => CLIPS.clusters[which][i] === c.id);
  const purities = Object.entries(c.purity).map(([name, [value, top, n]]) => [name, value === null ? "no labelled clip" : `${percent(value)} ${short(top, 40)} (of ${n} with a label)`]);
  const button = make("button", { type: "button", textContent: "Show on the map" });
  button.addEventListener("click", () => { kept = new Set(rows); drawMap(); at("map").scrollIntoView(); });
  const clips = `${c.size.toLocaleString("en")} clip${c.size === 1 ? "" : "s"}`;
  list(DATA.suggested ? clips : `${c.id < 0 ? "Noise" : `Cluster ${c.id}`}: ${clips}`, rows, final ? (DATA.suggested ? "" : "cluster") : "",
    [make("dl", { className: "values" }, ...purities.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })])),
      rows.length ? make("p", {}, button) : make("p", { className: "silent", textContent: "None of its clips is in the sample." })]);
}

// --- the clusters ---
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
  const members = (which) => { const found = new Map(); CLIPS.clusters[which].forEach((id, i) => { if (!found.has(id)) found.set(id, []); found.get(id).push(i); }); return found; };
  const show = () => {
    const found = all[at("explored").value], name = at("against").value, overall = found.overall[name], of_ = members(Number(at("explored").value));
    at("explorer-hint").textContent = (RUN && Number(at("explored").value) < all.length - 1 ? "The last assignment of this clustering. " : "") + (DATA.suggested ? "Clips whose labels would teach a classifier most, the most useful first. " : "Nearest and farthest: by cosine to the mean of the cluster's half-standardised embeddings") +
      (CLIPS.name.length < DATA.n_clips ? ", among the sampled clips; sizes and purity are of all clips." : DATA.suggested ? "" : ".") +
      (overall ? ` Against ${name}: purity ${percent(overall.purity)}, NMI ${overall.nmi.toFixed(3)}. Purity is the share of the commonest label; many small clusters are purer by chance.` : RUN ? " The manifest has no label columns to compare with." : "");
    const of = (c) => c.purity[name] || [null, "", 0];
    shown = table(at("cluster-table"), [
      { title: "Cluster", value: (c) => c.id, number: true, show: (c) => [clusterName(c.id)] },
      ...(Number(at("explored").value) === all.length - 1 && !DATA.suggested ? [{ title: "Name", value: (c) => nameOf(of_.get(c.id) || []), show: (c) => [nameOf(of_.get(c.id) || []) || "–"] }] : []), { title: "Clips", value: (c) => c.size, number: true },
      ...(columns.length ? [{ title: "Purity", value: (c) => of(c)[0], number: true, show: (c) => bar(of(c)[0]) }, { title: "Commonest", value: (c) => of(c)[1], show: (c) => [short(of(c)[1], 40) || "–"] }] : []),
    ], found.clusters, showCluster);
    shown.filter(at("cluster-filter").value);
    shown.pick(found.clusters[0]);
  };
  pickCluster = (id) => {
    if (Number(at("explored").value) !== all.length - 1 || at("cluster-filter").value) { at("explored").value = all.length - 1; at("cluster-filter").value = ""; show(); }
    shown.pick(all[all.length - 1].clusters.find((c) => c.id === id));
  };
  const twins = CLIPS.name.map((_, i) => i).filter((i) => CLIPS.alike[i] >= 0), groups = new Set(twins.map((i) => CLIPS.alike[i])).size;
  at("alike").hidden = !twins.length || DATA.suggested; // there the order of the only list does it
  at("alike").textContent = `Near duplicates: ${number(twins.length)} clips in ${count(groups, "group").join(" ")}`;
  at("alike").addEventListener("click", () => { unpick(); order = "alike"; list(`${number(twins.length)} near duplicates, group by group`, twins, "selection"); });
  unpick = () => shown.unpick();
  listeners.push(() => shown.show());
  at("explored").addEventListener("change", show);
  at("against").addEventListener("change", show);
  at("cluster-filter").addEventListener("input", () => shown.filter(at("cluster-filter").value));
  show();
}
