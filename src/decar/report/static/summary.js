// The first section: what there is, in numbers, sentences and pictures.
const MOST = 6; // clusters that are pictured
const number = (value) => value.toLocaleString("en");
const count = (n, one) => [number(n), one + (n === 1 ? "" : "s")];
const clockOf = (seconds) => { // minutes and seconds, with hours where there are some
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60], two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
};
const span = (s) => (s >= 36000 ? [number(Math.round(s / 3600)), "hours"] : s >= 3600 ? [(s / 3600).toFixed(1), "hours"] : s >= 60 ? count(Math.round(s / 60), "minute") : count(Math.round(s), "second"));

function setUpSummary() {
  const { recordings, seconds, clips } = DATA.summary, explored = DATA.explorer || [], last = explored.length ? explored[explored.length - 1].clusters : [];
  const real = last.filter((c) => c.id >= 0), all = last.reduce((sum, c) => sum + c.size, 0), noise = last.filter((c) => c.id < 0).reduce((sum, c) => sum + c.size, 0);
  const n = clips ?? DATA.n_clips, parts = recordings && recordings < n;
  const facts = [
    parts ? count(recordings, "recording") : null, seconds ? ((value) => [value[0], `${value[1]} of sound`])(span(seconds)) : null, n ? count(n, parts ? "segment" : "clip") : null,
    real.length && !DATA.suggested ? count(real.length, "cluster") : null, noise ? [`${Math.round((100 * noise) / all)} %`, "in no cluster (noise)"] : null,
  ];
  at("facts").append(...facts.filter(Boolean).map(([value, name]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
  at("sentences").append(...sentences().map((text) => make("li", { textContent: text })));
  if (!CLIPS || DATA.suggested || !real.length) return;
  const shown = real.slice(0, MOST), show = () => at("typical").replaceChildren(...shown.map((c) => typical(c, all)));
  at("typical-hint").textContent = "The largest clusters. A click on a picture plays the most typical clip, one on a name lists the cluster.";
  show();
  let names = "";
  listeners.push(() => { const now = shown.map((c) => nameOf(membersOf(c.id))).join("\n"); if (now !== names) { names = now; show(); } });
}

const membersOf = (id) => CLIPS.name.map((_, i) => i).filter((i) => CLIPS.clusters[CLIPS.clusters.length - 1][i] === id);
const titleOf = (id) => nameOf(membersOf(id)) || (id < 0 ? "Noise" : `Cluster ${id}`);

// One cluster: the clip nearest to its middle, among those that can be heard if there are some.
function typical(cluster, all) {
  const middle = CLIPS.middle[CLIPS.middle.length - 1], rows = membersOf(cluster.id), heard = rows.filter(plays);
  const i = (heard.length ? heard : rows).reduce((a, b) => (a === null || middle[b] > middle[a] ? b : a), null), title = titleOf(cluster.id);
  const name = make("button", { type: "button", className: "name", textContent: title, title: "Show its clips" });
  name.addEventListener("click", () => { pickCluster(cluster.id); at("explorer").scrollIntoView(); });
  const share = make("span", { className: "hint", textContent: `${percent(cluster.size / all)}, ${count(cluster.size, "clip").join(" ")}` });
  if (i === null) return make("div", { className: "card" }, name, share);
  const player = make("audio", { preload: "none", src: soundOf(i) || "" });
  const play = make("button", { type: "button", className: "play", disabled: !plays(i), "aria-label": `Play the most typical clip of ${title}: ${CLIPS.name[i]}` }, picture(i) || "▶");
  play.addEventListener("click", () => { if (player.paused) { player.currentTime = 0; player.play(); } else player.pause(); });
  for (const event of ["play", "pause", "ended"]) player.addEventListener(event, () => play.classList.toggle("playing", !player.paused));
  return make("div", { className: "card" }, play, name, share, plays(i) ? player : null);
}

function sentences() {
  const { epochs, trained, figures = {}, best } = DATA.summary, found = [];
  if (epochs) found.push(`Trained for ${count(epochs, "epoch").join(" ")}${trained === null ? "" : trained ? ` in ${span(trained).join(" ")}` : " in less than a second"}.`);
  if (figures.nmi !== undefined) found.push(`NMI ${figures.nmi.toFixed(2)} between the last two clusterings: at 1 nothing moves any more.`);
  if (figures.probe_accuracy !== undefined) found.push(`Online probe ${percent(figures.probe_accuracy)} of labels, unseen by the training, are read off the embedding correctly.`);
  if (best) {
    const others = Object.entries(best.encoders).filter(([name]) => name !== "this encoder").map(([name, value]) => `${name} ${percent(value)}`);
    if (best.chance !== null) others.push(`commonest class ${percent(best.chance)}`);
    found.push(`${best.tasks.length === 1 ? `Task ${best.tasks[0]}` : `Mean of ${best.tasks.length} tasks`}: ${best.metric} ${percent(best.encoders["this encoder"])}${others.length ? ` (${others.join(", ")})` : ""}.`);
  }
  return found;
}
