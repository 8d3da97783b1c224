"use strict";
// All words from the data go into the page by textContent, never as HTML.
const $ = (id) => document.getElementById(id);
const state = { pairs: [], chosen: -1, page: 0, count: 0, filter: {}, asked: 0, picked: new Set(), other: null };
const first = { label: "risky", of: "cosine", sort: "cosine" };

async function ask(name, body) {
  const answer = await fetch(name, body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const found = await answer.json();
  if (found.error !== undefined) throw new Error(found.error);
  return found;
}

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value; else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children.map((child) => child ?? ""));
  return made;
}

const picture = (pair, size, css) => make("img", {
  src: `image?shard=${encodeURIComponent(pair.shard)}&index=${pair.index}&size=${size}`,
  alt: pair.caption ? `image captioned: ${pair.caption}` : "image without a caption", loading: "lazy", class: css ?? "" });
const number = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value).toFixed(digits));

function tags(pair) {
  const found = pair.unseen ? [] : [make("span", { class: `tag ${pair.label}` }, pair.label)];
  if (pair.review) found.push(make("span", { class: `tag said ${pair.review.verdict}` }, pair.review.verdict));
  return found;
}

function say(text, isError = false) { $("said").textContent = text; $("said").className = isError ? "error" : ""; }
const failed = (error) => say(error.message, true);

function readFilter() {
  const filter = Object.fromEntries([...new FormData($("filter"))].filter(([, value]) => value !== ""));
  if (!filter.like) for (const name of ["sort", "of"]) if (filter[name]?.endsWith("similarity")) delete filter[name];
  return filter;
}

// The address holds the view, so that a link, "back" and "reload" lead to it.
function address(place = 0) {
  const words = new URLSearchParams(state.filter);
  if (state.page) words.set("page", state.page + 1);
  if (place > 0) words.set("at", place + 1);
  return `?${words}`;
}

function fill(words) {
  $("upload").value = "";
  for (const field of $("filter").elements) if (field.name) field.value = words.get(field.name) ?? "";
}

async function restore() {
  const words = new URLSearchParams(location.search || first);
  fill(words);
  if (words.has("area")) $("map").open = true;
  await show(Math.max(0, (Number(words.get("page")) || 1) - 1), Math.max(0, (Number(words.get("at")) || 1) - 1), false);
}

async function show(page = 0, place = 0, isNew = true) {
  state.filter = readFilter();
  state.page = page;
  const mine = ++state.asked;
  let trouble = "";
  if (state.filter.like && !state.filter.like.startsWith("pair:")) say("Compares with all images; for the first words loads the model.");
  $("gallery").setAttribute("aria-busy", "true");
  try {
    const [rows, count] = await Promise.all([
      ask("pairs", { filter: state.filter, page }), ask("count", { filter: state.filter })]);
    if (mine !== state.asked) return;
    state.pairs = rows.pairs; state.count = count.count; state.audit = rows.audit;
    say("");
  } catch (error) {
    if (mine !== state.asked) return;
    [state.pairs, state.count, trouble] = [[], 0, error.message];
    failed(error);
  }
  if (isNew) history.pushState(null, "", address());
  draw(trouble);
  choose(Math.min(place, state.pairs.length - 1), trouble);
  if (!about.sample) { histogram().catch(failed); map().catch(failed); }
  $("gallery").removeAttribute("aria-busy");
}

function draw(trouble = "") {
  $("count").textContent = trouble ? "not counted" : state.audit ?? `${state.count.toLocaleString("en")} ${state.count === 1 ? "pair" : "pairs"}`;
  const pages = Math.max(1, Math.ceil(state.count / about.page_rows));
  $("page").textContent = `page ${state.page + 1} of ${pages.toLocaleString("en")}`;
  $("before").disabled = state.page === 0;
  $("after").disabled = state.pairs.length < about.page_rows;
  $("gallery").replaceChildren(...state.pairs.map((pair, place) => {
    const card = make("button", { type: "button", class: "pair", "aria-pressed": "false", tabindex: "-1",
      "data-why": pair.reason ?? null, title: pair.reason ? `This pair ${about.reasons[pair.reason]}` : null }, picture(pair, 192),
      make("span", { class: "caption" }, pair.caption ?? ""),
      make("span", { class: "facts" }, ...tags(pair), pair.unseen ? "" : `${number(pair.cosine)} ${pair.reason ?? ""}`,
        "similarity" in pair ? `, similarity ${number(pair.similarity)}` : ""));
    card.addEventListener("click", (event) => {
      if (event.shiftKey) pick(place); else if (event.ctrlKey || event.metaKey) pick(place, place); else choose(place);
    });
    return card;
  }));
}

// Shift picks all from the chosen pair to another, Ctrl one more or less; a verdict then is on all that are picked.
function pick(place, from = state.chosen) {
  const picked = new Set(state.picked.size ? state.picked : [state.chosen]);
  if (from === place && picked.has(place)) picked.delete(place);
  else for (let i = Math.min(from, place); i <= Math.max(from, place); i++) picked.add(i);
  choose(place);
  state.picked = picked;
  [...$("gallery").children].forEach((card, i) => {
    card.classList.toggle("picked", picked.has(i));
    if (picked.has(i)) card.setAttribute("aria-description", "picked"); else card.removeAttribute("aria-description");
  });
  say(picked.size > 1 ? `${picked.size} pairs picked` : "");
}

function choose(place, trouble = "") {
  const cards = $("gallery").children;
  for (const i of state.picked) { cards[i]?.classList.remove("picked"); cards[i]?.removeAttribute("aria-description"); }
  state.picked = new Set();
  cards[state.chosen]?.setAttribute("aria-pressed", "false");
  cards[state.chosen]?.setAttribute("tabindex", "-1");
  state.chosen = place;
  if (place < 0) { $("detail").replaceChildren(make("p", {}, trouble || "No pair matches.")); return; }
  history.replaceState(null, "", address(place));
  cards[place].setAttribute("aria-pressed", "true");
  cards[place].setAttribute("tabindex", "0");  // one stop of the tab key for all pairs; the arrows move among them
  cards[place].focus({ preventScroll: false });
  detail(state.pairs[place]).catch(failed);
}

function rowsOf(entries, prefix = "") {
  return make("table", {}, ...entries.map(([name, value]) => make("tr", {},
    make("th", { scope: "row", title: about.columns[prefix + name] ?? null }, name),
    make("td", {}, value === null || value === undefined ? "–" : typeof value === "number" && !Number.isInteger(value) ? number(value, 4) : String(value)))));
}

function button(text, act) {
  const made = make("button", { type: "button" }, text);
  made.addEventListener("click", act);
  return made;
}

function strip(title, pairs, more = []) {
  return pairs.length ? [make("h2", {}, title, ...more), make("div", { class: "strip" }, ...pairs.map((pair) => {
    const made = button("", () => detail(pair).catch(failed));
    made.append(picture(pair, 96), make("span", {}, ...tags(pair), pair.caption ?? ""));
    return made;
  }))] : [];
}

// All pairs of the round, those first whose images are most like some words, an image that was sent, or a pair's.
function showLike(like) {
  fill(new URLSearchParams({ like, sort: "-similarity", of: "similarity" }));
  show();
}

async function upload(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  showLike((await ask("like", { image: url.slice(url.indexOf(",") + 1) })).like);
}

function showWhere(where) {
  fill(new URLSearchParams({ where, sort: "cosine", of: state.filter.of ?? "cosine" }));
  show();
}

// Shows a pair; one that is not the chosen one (a neighbour, a copy) gets the verdicts until another is chosen.
async function detail(pair) {
  const mine = state.pairs[state.chosen];
  const found = await ask("pair", { shard: pair.shard, index: pair.index });
  if (state.pairs[state.chosen] !== mine) return;
  state.spot = found.on_map;
  spot();
  state.other = pair === mine ? null : pair;
  const { signals, review, caption, unseen, source, ...facts } = found.pair;
  const like = `pair:${pair.shard}:${pair.index}`;
  const history = found.history.map((old) => [`round ${old.round}`, `${old.label}${old.reason ? ` (${old.reason})` : ""}, ${number(old.cosine)}`]);
  const why = found.pair.reason;
  $("detail").replaceChildren(...(state.other ? [button("Back to the chosen pair", () => choose(state.chosen))] : []),
    picture(pair, 512, "big"), make("p", { id: "words" }, caption ?? ""), make("p", {}, ...tags(found.pair)),
    ...(why ? [make("p", { id: "why", "data-why": why }, `This pair ${about.reasons[why]}.`)] : []),
    ...(review ? [make("h2", {}, "Verdict"), rowsOf(Object.entries(review))] : []),
    ...(unseen ? [] : [make("h2", {}, "Rounds"), rowsOf(history)]), make("h2", {}, "Row"), rowsOf(Object.entries(facts)),
    ...(source ? [make("h2", {}, "Source", ...(source.domain ? [" ", button("Show its domain", () => showWhere(`source.domain = '${source.domain.replaceAll("'", "''")}'`))] : [])), rowsOf(Object.entries(source))] : []),
    ...(signals ? [make("h2", {}, "Signals"), rowsOf(Object.entries(signals), "signals.")] : []),
    ...strip("Look the same", found.alike, [" ", button("Show all", () => showWhere(found.alike_where))]), ...strip("Nearest images of its shard", found.neighbours, [" ", button("Of all shards", () => showLike(like))]));
}

async function judge(verdict) {
  if (about.read_only) return;
  const note = $("note").value;
  try {
    let done;
    if ($("whole").checked) {
      const { count } = await ask("count", { filter: state.filter });
      $("question").textContent = `Give the verdict "${verdict || "withdraw"}" on all ${count.toLocaleString("en")} pairs of this filter?`;
      $("confirm").showModal();
      await new Promise((resolve) => $("confirm").addEventListener("close", resolve, { once: true }));
      if ($("confirm").returnValue !== "yes") return;
      done = await ask("verdict-all", { filter: state.filter, verdict, note, count });
      $("whole").checked = false;
    } else {
      const pairs = state.other ? [state.other] : state.picked.size ? [...state.picked].map((i) => state.pairs[i]) : [state.pairs[state.chosen]];
      if (!pairs[0]) return;
      done = await ask("verdict", { places: pairs.map((pair) => [pair.shard, pair.index]), verdict, note });
    }
    $("undo").disabled = false;
    const next = state.chosen + (done.num === 1 && !state.other ? 1 : 0);
    await reload(Math.min(next, state.pairs.length - 1));
    say(`${verdict || "withdrawn"}: ${done.num.toLocaleString("en")} ${done.num === 1 ? "pair" : "pairs"}`);
  } catch (error) { failed(error); }
}

async function undo() {
  if ($("undo").disabled) return;
  try {
    const { num, left } = await ask("undo", {});
    $("undo").disabled = !left;
    await reload(state.chosen);
    say(`undone on ${num.toLocaleString("en")} ${num === 1 ? "pair" : "pairs"}`);
  } catch (error) { failed(error); }
}

async function reload(place) {
  const rows = await ask("pairs", { filter: state.filter, page: state.page });
  [state.pairs, state.audit] = [rows.pairs, rows.audit];
  draw();
  choose(Math.min(place, state.pairs.length - 1));
}

// How the values of the column of the range are spread; dragging over it sets the range.
async function histogram() {
  const of = state.filter.of ?? "cosine";
  const { histogram: found } = await ask("histogram", { of, filter: state.filter });
  const svg = $("histogram").querySelector("svg");
  $("histogram").hidden = found === null;
  $("of").title = about.columns[of];
  if (found === null || (state.filter.of ?? "cosine") !== of) return;
  const most = Math.max(1, ...found.bins.map((bin) => Object.values(bin).reduce((a, b) => a + b, 0)));
  const rect = (css, x, y, width, height) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({ class: css, x, y, width, height })) made.setAttribute(name, value);
    return made;
  };
  const step = 400 / found.bins.length, bars = [];
  found.bins.forEach((bin, i) => {
    let top = 60;
    for (const label of ["safe", "risky", "quarantined"]) {
      const height = bin[label] ? Math.max(1, 60 * bin[label] / most) : 0;
      top -= height;
      if (height) bars.push(rect(label, i * step, top, step - 1, height));
    }
  });
  const width = found.high - found.low || 1, form = $("filter").elements;
  const at = (value, otherwise) => value === "" ? otherwise : Math.min(400, Math.max(0, 400 * (value - found.low) / width));
  const low = at(form.low.value, 0), high = at(form.high.value, 400);
  const isSet = form.low.value !== "" || form.high.value !== "";
  const range = rect("range", low, 0, isSet ? Math.max(0, high - low) : 0, 60);
  svg.replaceChildren(...bars, range);
  svg.setAttribute("aria-label", `Histogram of ${of} from ${number(found.low)} to ${number(found.high)}, by label`);
  $("histogram").querySelector("figcaption").textContent =
    `${of}: ${number(found.low)} to ${number(found.high)} (99 % of the pairs), safe and risky; drag to choose a range`;
  const value = (event) => found.low + width * (event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width;
  svg.onpointerdown = (event) => {
    const start = value(event);
    svg.setPointerCapture(event.pointerId);
    svg.onpointermove = (moved) => {
      const ends = [start, value(moved)].sort((a, b) => a - b);
      [form.low.value, form.high.value] = ends.map((end) => end.toPrecision(4));
      range.setAttribute("x", at(form.low.value, 0));
      range.setAttribute("width", Math.max(0, at(form.high.value, 400) - at(form.low.value, 0)));
    };
    svg.onpointerup = () => { svg.onpointermove = svg.onpointerup = null; show(); };
  };
}

// Where the images lie by their vectors; what the filter finds is coloured, dragging over some sets the area.
const colour = (name) => [1, 3, 5].map((at) => parseInt(getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(at, at + 2), 16));

async function map() {
  if (!$("map").open) return;
  $("places").textContent = "Laid out once, by all vectors of the round.";
  const { area, ...filter } = state.filter;
  const answer = await fetch("map", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ filter }) });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const data = await answer.arrayBuffer(), num = new DataView(data).getUint32(0, true);
  const [x, y] = [4, 4 + 2 * num].map((at) => new Uint16Array(data, at, num));
  const [label, found] = [4 + 4 * num, 4 + 5 * num].map((at) => new Uint8Array(data, at, num));
  const canvas = $("map").querySelector("canvas"), { width, height } = canvas, pen = canvas.getContext("2d");
  const drawn = pen.createImageData(width, height), size = num < 2000 ? 4 : num < 20000 ? 3 : num < 200000 ? 2 : 1;
  const colours = ["--safe", "--risky", "--quarantined"].map(colour);
  for (const pass of [0, 1]) {  // what was found lies above the others
    for (let i = 0; i < num; i++) {
      if (found[i] !== pass) continue;
      const left = Math.round(x[i] / 65535 * (width - size)), top = Math.round(y[i] / 65535 * (height - size));
      const [red, green, blue] = pass ? colours[label[i]] : [128, 128, 128];
      for (let down = 0; down < size; down++) for (let right = 0; right < size; right++) {
        drawn.data.set([red, green, blue, pass ? 255 : 70], 4 * ((top + down) * width + left + right));
      }
    }
  }
  state.map = drawn;
  const hits = found.reduce((sum, one) => sum + one, 0);
  $("places").textContent = `${hits.toLocaleString("en")} of ${num.toLocaleString("en")} images, by their first two principal axes; drag to choose an area`;
  canvas.setAttribute("aria-label", `Map of ${num.toLocaleString("en")} images, ${hits.toLocaleString("en")} of this filter`);
  spot();
}

// The map with the area that is chosen and the pair that is.
function spot(dragged) {
  if (!state.map || !$("map").open) return;
  const canvas = $("map").querySelector("canvas"), { width, height } = canvas, pen = canvas.getContext("2d");
  pen.putImageData(state.map, 0, 0);
  const area = dragged ?? ($("area").value ? $("area").value.split(",").map(Number) : null);
  pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--focus");
  pen.strokeStyle = pen.strokeStyle === "#000000" ? "#0b62d6" : pen.strokeStyle;  // light-dark() is no colour of a canvas
  pen.lineWidth = 2;
  if (area) pen.strokeRect(area[0] * width, area[1] * height, (area[2] - area[0]) * width, (area[3] - area[1]) * height);
  if (state.spot) {
    pen.beginPath();
    pen.arc(state.spot[0] * width, state.spot[1] * height, 7, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function dragMap(canvas) {
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    const start = at(event);
    let area = null;
    canvas.setPointerCapture(event.pointerId);
    canvas.onpointermove = (moved) => {
      const end = at(moved);
      area = [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
      spot(area);
    };
    canvas.onpointerup = () => {
      canvas.onpointermove = canvas.onpointerup = null;
      $("area").value = area ? area.map((one) => one.toFixed(4)).join(",") : "";  // a click takes it away
      show();
    };
  });
}

function columns() {
  return getComputedStyle($("gallery")).gridTemplateColumns.split(" ").length;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("confirm").open) return;
  if (["INPUT", "SELECT"].includes(event.target.tagName) && event.target.type !== "checkbox") {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  const verdicts = { s: "safe", r: "risky", d: "drop", w: "" };
  if (event.key in moves) {
    const place = state.chosen + moves[event.key];
    if (place >= 0 && place < state.pairs.length) { if (event.shiftKey) pick(place); else choose(place); }
  } else if (event.key in verdicts) judge(verdicts[event.key]);
  else if (event.key === "u") undo();
  else if (event.key === "n") $("after").click();
  else if (event.key === "p") $("before").click();
  else if (event.key === "/") $("caption").focus();
  else return;
  event.preventDefault();
});

let about;
async function begin() {
  about = await ask("about");
  const labels = about.counts.labels;
  $("about").textContent = `${about.run}, round ${about.round}: ${about.counts.rows.toLocaleString("en")} pairs, ` +
    Object.entries(labels).map(([label, num]) => `${num.toLocaleString("en")} ${label}`).join(", ") +
    (about.cut === null ? "" : `, cut at ${number(about.cut)}`) +
    (about.sample ? ". A random sample, labels hidden: Safe where the caption fits its image, else Risky or Drop." : "");
  const select = (name) => $("filter").elements.namedItem(name);
  select("label").append(...about.labels.map((word) => make("option", {}, word)));
  select("reason").append(...Object.keys(about.reasons).map((word) => make("option", {}, word)));
  select("of").append(...about.numbers.map((name) => make("option", {}, name)));
  for (const column of Object.keys(about.columns)) {
    select("sort").append(make("option", { value: column }, `${column} ↑`), make("option", { value: `-${column}` }, `${column} ↓`));
  }
  if (about.has_vectors) {
    select("of").append(make("option", {}, "similarity"));
    for (const [value, text] of [["-similarity", "similarity ↓"], ["similarity", "similarity ↑"]]) select("sort").append(make("option", { value }, text));
  }
  for (const field of document.querySelectorAll(".vectors")) field.hidden = !about.has_vectors;
  $("upload").addEventListener("change", () => { if ($("upload").files.length) upload($("upload").files[0]).catch(failed); });
  $("like").addEventListener("change", () => {
    if (!$("like").value) return;
    [$("filter").elements.sort.value, $("filter").elements.of.value] = ["-similarity", "similarity"];
    $("filter").elements.low.value = $("filter").elements.high.value = "";
  });
  $("map").addEventListener("toggle", () => { if ($("map").open) map().then(() => detail(state.pairs[state.chosen])).catch(failed); });
  dragMap($("map").querySelector("canvas"));
  $("undo").disabled = !about.undoable;
  $("act").hidden = about.read_only;
  $("filter").hidden = $("whole").parentElement.hidden = about.sample;
  $("filter").addEventListener("submit", (event) => { event.preventDefault(); show(); });
  $("filter").addEventListener("reset", () => setTimeout(() => { fill(new URLSearchParams(first)); show(); }));
  addEventListener("popstate", () => restore());
  $("filter").addEventListener("change", (event) => {
    if (event.target === $("of")) $("filter").elements.low.value = $("filter").elements.high.value = "";
    if (event.target.tagName === "SELECT") show();
  });
  $("before").addEventListener("click", () => show(state.page - 1));
  $("after").addEventListener("click", () => show(state.page + 1));
  $("undo").addEventListener("click", undo);
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.addEventListener("click", () => judge(button.dataset.verdict));
  }
  await restore();
  document.body.dataset.ready = "yes";
}
begin().catch(failed);
