// When and where: clusters along a recording, by hour, by site.
const LINES = 12; // clusters that have a row of their own
const unrun = (runs) => runs.flatMap(([value, n]) => Array(n).fill(value));

// The segments of a recording, and the place of the first among all that the server knows.
function decoded(line, first) {
  let start = 0;
  return { ...line, first, starts: unrun(line.starts).map((step) => (start += step) / 1000), lengths: unrun(line.lengths).map((ms) => ms / 1000) };
}

function setUpRecordings() {
  const { recordings, n } = (DATA.when || {}).lines || { recordings: [] };
  if (!recordings.length || DATA.suggested) return;
  const last = DATA.explorer[DATA.explorer.length - 1], clustered = last.clusters.reduce((sum, c) => sum + c.size, 0);
  at("recordings-hint").textContent = "Which cluster each part of a recording is in: all of them in the first row, each cluster in one of its own below. A click plays that part. " +
    `${n > recordings.length ? `The ${number(recordings.length)} most varied of ${number(n)} recordings are here.` : "The most varied recording comes first."}` +
    (clustered < DATA.n_clips ? ` ${number(clustered)} of ${number(DATA.n_clips)} segments, drawn evenly, were clustered; the others are gaps.` : "");
  choices(at("recording"), recordings.map((line, r) => [r, `${short(line.path, 70)} (${line.clusters.length} segments, ${new Set(line.clusters).size} clusters)`]), 0);
  let line = null, cells = [], picked = 0;
  const moment = (i) => (line.begun ? `, ${new Date(Date.parse(`${line.begun}Z`) + 1000 * line.starts[i]).toISOString().slice(11, 19)} by the recorder's clock` : "");
  const place = (i) => `${line.path} · ${clockOf(line.starts[i])}`;

  const drawLine = () => {
    const total = new Map();
    line.clusters.forEach((id, i) => total.set(id, (total.get(id) || 0) + line.lengths[i]));
    const rows = [null, ...[...total.keys()].sort((a, b) => total.get(b) - total.get(a)).slice(0, LINES)];
    const end = Math.max(...line.starts.map((start, i) => start + line.lengths[i])), [unit, per] = end > 10800 ? ["h", 3600] : end > 180 ? ["min", 60] : ["s", 1];
    const x = (seconds) => (line.begun ? Date.parse(`${line.begun}Z`) + 1000 * seconds : seconds / per);
    const edges = [line.starts[0]];
    cells = []; // the segment of each stretch between two edges; null for a gap
    line.starts.forEach((start, i) => {
      if (start > edges[edges.length - 1] + 0.001) { cells.push(null); edges.push(start); }
      cells.push(i);
      edges.push(Math.min(start + line.lengths[i], line.starts[i + 1] ?? Infinity));
    });
    const tone = (id) => (id < 0 ? 20 : id % 20), tones = [...PALETTE, "#9aa3ad"], titles = new Map([...total.keys()].map((id) => [id, titleOf(id)]));
    const texts = cells.map((i) => (i === null ? "" : `${clockOf(line.starts[i])}${moment(i)}<br>${plain(titles.get(line.clusters[i]))}`));
    at("recording-line").style.height = `${70 + 24 * rows.length}px`;
    draw("recording-line", [{
      type: "heatmap", x: edges.map(x), y: rows.map((_, r) => r), hovertext: rows.map(() => texts), hoverinfo: "text", showscale: false, zmin: 0, zmax: 21,
      z: rows.map((id) => cells.map((i) => (i === null || (id !== null && line.clusters[i] !== id) ? null : tone(line.clusters[i]) + 0.5))),
      colorscale: tones.flatMap((one, k) => [[k / 21, one], [(k + 1) / 21, one]]),
    }], () => ({
      margin: { l: 90, r: 8, t: 4, b: 46 }, shapes: [{ type: "rect", x0: x(line.starts[picked]), x1: x(line.starts[picked] + line.lengths[picked]), y0: -0.5, y1: rows.length - 0.5, line: { color: colour("--ink"), width: 2 } }],
      xaxis: { title: { text: line.begun ? "the recorder's clock" : `time in the recording (${unit})`, standoff: 6 }, type: line.begun ? "date" : "linear", showgrid: false },
      yaxis: { tickvals: rows.map((_, r) => r), ticktext: rows.map((id) => (id === null ? "all" : plain(short(titles.get(id), 12)))), autorange: "reversed", showgrid: false, fixedrange: true },
    }));
    at("recording-rest").textContent = total.size > LINES ? `${total.size - LINES} less frequent clusters are in the first row only.` : "";
  };

  const pick = (i, play) => {
    picked = i;
    drawLine();
    const clip = clipAt(absolute(line.path), line.starts[i], line.lengths[i]), step = (name, by) => {
      const button = make("button", { type: "button", textContent: name, disabled: !(i + by in line.starts) });
      button.addEventListener("click", () => { pick(i + by, true); const pair = [...at("part").querySelectorAll("button")].slice(0, 2); (pair.find((one) => one.textContent === name && !one.disabled) || pair.find((one) => !one.disabled)).focus(); });
      return button;
    };
    const beyond = CLIPS.name.length + line.first + i; // its number on the server
    const shown = clip !== undefined ? card(clip) : SERVED ? make("div", { className: "card" }, make("div", { className: "sight" }, make("img", { className: "spectrogram", alt: "", src: ofServer("picture", beyond) })), make("audio", { controls: true, preload: "none", src: ofServer("sound", beyond) })) : null;
    at("part").replaceChildren(make("h3", { textContent: place(i) }), make("p", { className: "hint", textContent: `${titleOf(line.clusters[i])}, ${Number(line.lengths[i].toFixed(1))} s${moment(i)}` }),
      make("p", {}, step("← Earlier", -1), " ", step("Later →", 1)), shown || make("p", { className: "silent", textContent: "Its sound is not on this page: decar page FOLDER --serve plays every part." }));
    const player = at("part").querySelector("audio");
    if (play && player) player.play();
  };

  const show = () => {
    const r = Number(at("recording").value);
    line = decoded(recordings[r], recordings.slice(0, r).reduce((sum, one) => sum + one.clusters.length, 0));
    pick(0, false);
  };
  at("recording").addEventListener("change", show);
  listeners.push(drawLine);
  show();
  at("recording-line").on("plotly_click", (event) => { const i = cells[event.points[0].pointNumber[1]]; if (i !== null && i !== undefined) pick(i, true); });
}

// --- clusters by hour and by site ---
function setUpWhen() {
  const when = DATA.when || {}, last = CLIPS ? CLIPS.clusters.length - 1 : 0;
  const picture = (id, columns, counts, member, unit) => {
    at(`${id}-figure`).hidden = !counts.length || !columns.length;
    if (at(`${id}-figure`).hidden) return;
    const rows = when.clusters.map(clusterName);
    const layout = () => ({ margin: { l: 50, r: 4, t: 4, b: 50 }, xaxis: { tickvals: columns.map((_, i) => i), ticktext: columns.map((name) => plain(short(String(name), 14))), showgrid: false, tickangle: -40 },
      yaxis: { tickvals: rows.map((_, i) => i), ticktext: rows, autorange: "reversed", showgrid: false, title: { text: "cluster" } } });
    draw(id, () => [heat(rows, columns, counts, "cluster", unit, shareOf(counts))], layout).then(() => at(id).on("plotly_click", (event) => {
      const { x, y } = event.points[0], found = CLIPS.name.map((_, i) => i).filter((i) => CLIPS.clusters[last][i] === when.clusters[y] && member(i, x));
      at("explored").value = last;
      unpick();
      list(`Cluster ${rows[y]}, ${unit} ${columns[x]}: ${found.length.toLocaleString("en")} on this page`, found, "selection");
      at("explorer").scrollIntoView();
    }));
  };
  picture("hours", [...Array(24).keys()], when.hours || [], (i, x) => CLIPS.hour[i] === x, "hour");
  picture("sites", when.sites || [], (when.sites || []).length ? when.at_sites : [], (i, x) => labelOf("site", i) === when.sites[x], "site");
}
