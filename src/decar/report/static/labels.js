// Labels that the reader gives to clips: one by one, to a cluster, to a selection. They are kept in labels.csv, which
// `decar fit` reads, and as a draft in the browser. A label of a clip is not overwritten by one of a selection or cluster,
// nor one of a selection by that of a cluster.
const COLUMNS = ["path", "start", "duration", "label", "by"];
const HAND = "clip", RANKS = ["cluster", "selection", HAND];
const LABELS = new Map(); // clip → { words, by, more }: `more` are the other columns of a row that was read
const SERVED = DATA.served; // by `decar page --serve`: its token, and the version of labels.csv; else null
let words = [...DATA.words]; // in the order of their keys
let elsewhere = []; // rows of a labels.csv whose clips are not on this page: they are written again as they are
let current = null; // the clip that the keys and the buttons label

const absolute = (path) => (/^([/\\]|[A-Za-z]:)/.test(path) ? path : `${DATA.root.replace(/[/\\]$/, "")}/${path}`);
const pathOf = (i) => absolute(CLIPS.path.values[CLIPS.path.codes[i]]);
const placeOf = (path, start) => `${Number(start || 0).toFixed(3)} ${path}`;
const HERE = new Map(); // the clips that begin at a place: stretches of several lengths may
for (let i = 0; CLIPS && i < CLIPS.name.length; i++) HERE.set(placeOf(pathOf(i), CLIPS.at[i]), [...(HERE.get(placeOf(pathOf(i), CLIPS.at[i])) || []), i]);
const isWhole = (i) => CLIPS.for[i] === null || (!DATA.suggested && CLIPS.name[i] === CLIPS.path.values[CLIPS.path.codes[i]]);

// The clip of a stretch; without a length it is what goes on to the end of its file, as `decar fit` reads it.
function clipAt(path, start, seconds) {
  const long = (i) => Math.abs((CLIPS.for[i] ?? CLIPS.seconds[i]) - seconds) < 0.006; // `seconds` of a clip is rounded
  return (HERE.get(placeOf(path, start)) || []).find((i) => (seconds === "" ? isWhole(i) : long(i)));
}
const textOf = (i) => (LABELS.has(i) ? LABELS.get(i).words.join(",") : "");
const split = (text) => [...new Set(text.split(",").map((word) => word.trim()).filter((word) => word && word !== "-"))];

function give(i, given, by) {
  const more = LABELS.has(i) ? LABELS.get(i).more : {};
  if (given.length) LABELS.set(i, { words: given, by, more });
  else {
    LABELS.delete(i);
    if (Object.values(more).some(Boolean)) elsewhere.push({ ...more, path: pathOf(i), start: CLIPS.at[i], duration: CLIPS.for[i], label: "" }); // notes in other columns stay
  }
  for (const word of given) { const bare = word.replace(/^-/, ""); if (!words.includes(bare)) words.push(bare); }
}

function toggle(i, word) {
  const now = LABELS.get(i), own = now && now.by === HAND ? now.words : [];
  const other = word.startsWith("-") ? word.slice(1) : `-${word}`;
  give(i, own.includes(word) ? own.filter((w) => w !== word) : [...own.filter((w) => w !== other), word], HAND);
  changed();
}

function giveAll(rows, text, by) {
  const given = split(text);
  const rank = (name) => (RANKS.includes(name) ? RANKS.indexOf(name) : RANKS.length);
  for (const i of rows) if (!LABELS.has(i) || rank(LABELS.get(i).by) <= rank(by)) give(i, given, by);
  changed();
}

// The name of a cluster: the commonest label that its clips have from it.
function nameOf(rows) {
  const counts = new Map();
  for (const i of rows) if (LABELS.has(i) && LABELS.get(i).by === "cluster") counts.set(textOf(i), (counts.get(textOf(i)) || 0) + 1);
  return [...counts].reduce((best, one) => (one[1] > best[1] ? one : best), ["", 0])[0];
}

// --- labels.csv ---
const cell = (value) => { const text = String(value ?? ""); return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text; };
const toCsv = (head, rows) => [head, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";

function fromCsv(text) {
  const rows = [[""]];
  for (let p = 0, quoted = false; p < text.length; p++) {
    const row = rows[rows.length - 1], sign = text[p], last = row.length - 1;
    if (quoted && sign === '"' && text[p + 1] === '"') { row[last] += sign; p++; }
    else if (sign === '"' && (quoted || !row[last])) quoted = !quoted;
    else if (quoted) row[last] += sign;
    else if (sign === ",") row.push("");
    else if (sign === "\n" || (sign === "\r" && text[p + 1] !== "\n")) rows.push([""]);
    else if (sign !== "\r") row[last] += sign;
  }
  const [head, ...others] = rows.filter((row) => row.length > 1 || row[0]);
  return [(head || []).map((name) => name.replace(/^\ufeff/, "").trim()), others];
}

function labelsCsv() {
  const rows = [...LABELS].sort(([a], [b]) => a - b)
    .map(([i, one]) => ({ ...one.more, path: pathOf(i), start: CLIPS.for[i] === null && !CLIPS.at[i] ? "" : CLIPS.at[i], duration: CLIPS.for[i], label: textOf(i), by: one.by }));
  const all = [...elsewhere, ...rows], head = [...new Set([...COLUMNS, ...all.flatMap(Object.keys)])];
  return toCsv(head, all.map((row) => head.map((name) => row[name])));
}

// Adds the rows of a labels.csv to what is on the page; returns how many are of clips that are here.
function takeCsv(text) {
  const [head, rows] = fromCsv(text);
  if (!head.length) return 0;
  for (const name of ["path", "label"]) if (!head.includes(name)) throw new Error(`no column ${name}: ${head.join(", ")}`);
  const seen = new Set(); // a clip may have several rows, of one label each
  for (const row of rows) {
    const found = Object.fromEntries(head.map((name, k) => [name, row[k] ?? ""]));
    const i = clipAt(found.path, found.start, found.duration || (found.end ? found.end - (found.start || 0) : "")), given = split(found.label);
    if (i === undefined || !given.length) { if (!elsewhere.some((one) => head.every((name) => one[name] === found[name]))) elsewhere.push(found); continue; }
    const { path, start, duration, label, by, ...more } = found;
    give(i, seen.has(i) ? [...new Set([...LABELS.get(i).words, ...given])] : given, by || HAND);
    LABELS.get(i).more = more;
    seen.add(i);
  }
  return seen.size;
}

// What the page says of rows whose clips it does not show.
const others = () => (elsewhere.length ? `, and ${elsewhere.length} rows of other clips, such as ${elsewhere[0].path}` : "");

function save(name, text, kind = "text/csv") {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// --- the draft, and the server's file ---
const draftKey = () => { let sum = 0; for (const sign of DATA.root + CLIPS.name.join()) sum = (sum * 31 + sign.codePointAt(0)) | 0; return `decar-labels-${DATA.title}-${sum}`; };
let draftFails = false, waiting = null, unsent = false, unread = "", sending = Promise.resolve();

function keep() {
  if (SERVED) { unsent = true; clearTimeout(waiting); waiting = setTimeout(() => { sending = sending.then(send); }, 300); return; }
  try { if (LABELS.size || elsewhere.length) localStorage.setItem(draftKey(), labelsCsv()); else localStorage.removeItem(draftKey()); draftFails = false; } catch { draftFails = true; }
}

async function send() {
  const state = (text, wrong) => { at("label-state").textContent = text; at("label-state").classList.toggle("wrong", Boolean(wrong)); };
  try {
    unsent = false;
    if (unread) throw new Error(`${unread}; correct that file and load the page anew`); // it would be lost
    const reply = await fetch("labels", { method: "PUT", body: labelsCsv(), headers: { "X-Token": SERVED.token, "If-Match": SERVED.version } });
    const text = await reply.text();
    if (!reply.ok) throw new Error(text);
    SERVED.version = text;
    state(`saved to ${SERVED.file} at ${new Date().toLocaleTimeString()}`);
  } catch (error) {
    unsent = true;
    state(`NOT saved: ${error instanceof TypeError ? "decar page --serve does not answer; start it again, or download the labels" : error.message}`, true);
  }
}

// --- what is shown of it ---
const listeners = []; // called after each change

function chips(i) {
  const box = make("div", { className: "words" }), one = LABELS.get(i);
  for (const word of one ? one.words : []) {
    const chip = make("button", { type: "button", className: `chip${one.by === HAND ? "" : " given"}`, textContent: word, title: `${one.by === HAND ? "by hand" : `from the ${one.by}`}; click to remove` });
    chip.addEventListener("click", () => { give(i, one.words.filter((w) => w !== word), HAND); changed(); });
    box.append(chip);
  }
  const more = make("button", { type: "button", className: "chip add", textContent: "+ label", title: "Type a label (Enter)" });
  more.addEventListener("click", () => typeFor(i));
  box.append(more);
  return box;
}

function changed(quiet) {
  for (const holder of document.querySelectorAll("[data-clip]")) { const old = holder.querySelector(".words"); if (old) old.replaceWith(chips(Number(holder.dataset.clip))); }
  showBar();
  for (const listener of listeners) listener();
  if (!quiet) keep();
}

function showBar() {
  const counts = new Map();
  for (const { words: given } of LABELS.values()) for (const word of given) counts.set(word, (counts.get(word) || 0) + 1);
  at("label-keys").replaceChildren(...words.map((word, k) => {
    const button = make("button", { type: "button", className: "chip", title: "Label the clip that was picked last; with Shift: it is not that" },
      k < 9 ? make("kbd", { textContent: String(k + 1) }) : "", ` ${word} `, make("span", { className: "count", textContent: (counts.get(word) || 0) + (counts.has(`-${word}`) ? ` / −${counts.get(`-${word}`)}` : "") }));
    button.addEventListener("click", (event) => { if (current !== null) toggle(current, (event.shiftKey ? "-" : "") + word); });
    return button;
  }));
  at("label-words").replaceChildren(...words.map((word) => make("option", { value: word })));
  at("label-count").textContent = LABELS.size ? `${LABELS.size.toLocaleString("en")} of ${CLIPS.name.length.toLocaleString("en")} clips labelled${others()}` : `No labels yet${others()}`;
  at("label-save").disabled = !LABELS.size && !elsewhere.length;
}

function typeFor(i) {
  setCurrent(i);
  at("label-entry").value = textOf(i);
  at("label-entry").focus();
  at("label-entry").select();
}

function setCurrent(i) {
  current = i;
  at("label-of").textContent = short(CLIPS.name[i].split("/").pop(), 40);
  for (const holder of document.querySelectorAll("[data-clip]")) holder.classList.toggle("current", Number(holder.dataset.clip) === i);
}

const holderOf = (i) => document.querySelector(`#cluster [data-clip="${i}"]`) || document.querySelector(`[data-clip="${i}"]`);

function step(holder, by) {
  const cards = [...document.querySelectorAll("#cluster [data-clip]")], place = cards.indexOf(holder) + by;
  if (place >= cards.length && at("cluster-more")) { at("cluster-more").click(); return step(holder, by); }
  if (cards[place]) cards[place].focus();
}

function keys(event) {
  const holder = event.target.closest("[data-clip]");
  if (!holder || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const i = Number(holder.dataset.clip), digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code), bare = event.target === holder;
  const player = holder.querySelector("audio");
  if (digit && words[digit[1] - 1]) toggle(i, (event.shiftKey ? "-" : "") + words[digit[1] - 1]);
  else if (event.key === "j" || (bare && event.key === "ArrowRight")) step(holder, 1);
  else if (event.key === "k" || (bare && event.key === "ArrowLeft")) step(holder, -1);
  else if (event.key === "Backspace") { give(i, [], HAND); changed(); }
  else if (bare && event.key === "Enter") typeFor(i);
  else if (bare && event.key === " ") { if (player) player.paused ? player.play() : player.pause(); }
  else return;
  event.preventDefault();
}

function setUpLabels() {
  if (!CLIPS) return;
  at("labels-bar").hidden = false;
  document.addEventListener("keydown", keys);
  document.addEventListener("focusin", (event) => { const holder = event.target.closest("[data-clip]"); if (holder) setCurrent(Number(holder.dataset.clip)); });
  document.addEventListener("play", (event) => { for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause(); }, true);
  at("label-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (current === null) return;
    give(current, split(at("label-entry").value), HAND);
    at("label-entry").value = "";
    changed();
    const holder = holderOf(current);
    if (holder) holder.focus();
  });
  at("label-entry").addEventListener("keydown", (event) => { if (event.key === "Escape") { at("label-entry").value = ""; const holder = current === null ? null : holderOf(current); if (holder) holder.focus(); } });
  at("label-save").addEventListener("click", () => { save("labels.csv", labelsCsv()); at("label-state").textContent = "labels.csv is with your downloads; then: decar fit labels.csv"; });
  at("label-load").addEventListener("change", async () => {
    const file = at("label-load").files[0];
    if (!file) return;
    try { const here = takeCsv(await file.text()); changed(); at("label-state").textContent = `${here} labels of clips on this page read from ${file.name}`; } catch (error) { at("label-state").textContent = `${file.name}: ${error.message}`; }
    at("label-load").value = "";
  });
  addEventListener("beforeunload", (event) => { if ((draftFails && LABELS.size) || unsent) event.preventDefault(); });
  let draft = null;
  if (SERVED) draft = SERVED.labels;
  else try { draft = localStorage.getItem(draftKey()); } catch { draftFails = true; }
  try { if (draft && takeCsv(draft) + elsewhere.length) at("label-state").textContent = SERVED ? `read from ${SERVED.file}` : "the labels of your last visit, kept by this browser"; }
  catch (error) { at("label-state").textContent = unread = `${SERVED ? SERVED.file : "draft"}: ${error.message}`; }
  if (!SERVED) addEventListener("storage", (event) => { // another window of this page has written the draft
    if (event.key !== draftKey() || draftFails) return;
    LABELS.clear();
    elsewhere = [];
    takeCsv(event.newValue || "");
    changed(true);
  });
  changed(true);
}
