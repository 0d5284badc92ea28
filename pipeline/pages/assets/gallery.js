"use strict";
(() => {
const BLOCK_ROWS = 100; // as pipeline/pages/gallery.py writes them
const LEAST_WIDTH = 200, GAP = 14, OVERSCAN = 600; // pixels
const MOST_PRINTED = 600, MOST_LISTED = 200;

const find = (selector, within = document) => within.querySelector(selector);
const cards = find("#cards"), large = find("#large");
const query = find("#query"), shows = find("#shows"), sort = find("#sort");
const rows = JSON.parse(find("#rows").textContent).map(
  ([path, caption, confidence, flags, alternatives, error, link], index) =>
    ({ path, caption, confidence, flags, alternatives, error, link, index, words: null }));

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function spellCount(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

// ---- thumbnails: blocks of lines, taken apart when one of their pictures is near

const blocks = new Map();

/** The picture of a row as a data URL; "" if it has none, null while the page is still loading. */
function thumbnail(row) {
  const number = Math.floor(row.index / BLOCK_ROWS);
  if (!blocks.has(number)) {
    const element = document.getElementById(`thumbnails-${number}`);
    if (document.readyState === "loading" && !element?.nextElementSibling) return null;
    blocks.set(number, element ? element.textContent.split("\n") : []);
  }
  const line = blocks.get(number)[row.index % BLOCK_ROWS];
  return line ? `data:image/webp;base64,${line}` : "";
}

// ---- which rows, in which order

const kinds = new Map([["all", () => true], ["captioned", row => row.error === null],
  ["failed", row => row.error !== null], ["flagged", row => row.flags.length > 0]]);
for (const flag of new Set(rows.flatMap(row => row.flags))) kinds.set(flag, row => row.flags.includes(flag));
const members = new Map([...kinds].map(([kind, belongs]) => [kind, rows.filter(belongs).length]));

const byConfidence = (sign, left, right) =>
  left.error === null && right.error === null ? sign * ((left.confidence ?? 0) - (right.confidence ?? 0)) || left.index - right.index
    : (left.error !== null) - (right.error !== null) || left.index - right.index;
const orders = { path: rows, confidence: rows.toSorted(byConfidence.bind(null, -1)),
  doubt: rows.toSorted(byConfidence.bind(null, 1)) };

const state = { show: "all", sort: "confidence", query: "" };
let view = []; // rows shown, in order

/** Lower case, one space for whatever is no letter, accent, vowel sign or digit: what "from a word's start" is looked up in. */
function normalize(text) {
  return ` ${text.toLowerCase().normalize("NFKC").replace(/[^\p{L}\p{M}\p{N}]+/gu, " ").trim()} `;
}

function parse(text) {
  return [...text.matchAll(/(-?)(?:"([^"]*)"?|(\S+))/g)].map(([, minus, phrase, word]) => ({
    without: minus === "-", text: phrase === undefined ? normalize(word).trimEnd() : normalize(phrase) }))
    .filter(term => term.text.trim() !== "");
}

function select() {
  const terms = parse(state.query), belongs = kinds.get(state.show);
  view = orders[state.sort].filter(row => {
    if (!belongs(row)) return false;
    if (!terms.length) return true;
    row.words ??= normalize(row.caption) + normalize(row.path);
    return terms.every(term => row.words.includes(term.text) !== term.without);
  });
}

// ---- the cards: only those near the window are in the document

const shown = new Map(); // position in view -> li
let room = 0, width = LEAST_WIDTH, height = 0, columns = 1; // pixels of the window and of a card
let current = 0; // position that the keys start from
let opened = 0; // position in the large view

function fill(card, row) {
  const source = thumbnail(row);
  card.dataset.waiting = source === null ? "1" : "";
  const picture = find(".picture", card);
  if (source) {
    const image = make("img");
    image.alt = "";
    image.decoding = "async";
    image.src = source;
    picture.prepend(image);
  } else if (source === "") {
    picture.prepend(make("span", "missing", "no picture"));
  }
}

function makeFlags(row) {
  const flags = make("span", "flags");
  flags.append(...row.flags.map(flag => make("span", "flag", flag.replaceAll("-", " "))));
  return flags;
}

function buildCard(position) {
  const row = view[position], item = make("li"), failed = row.error !== null;
  const card = make("button", failed ? "card failed" : "card");
  const picture = make("span", "picture"), facts = make("span", "facts");
  card.type = "button";
  card.tabIndex = -1;
  card.title = row.path;
  card.dataset.position = position;
  if (!failed) {
    const bar = make("span", "bar");
    bar.style.width = `${100 * (row.confidence ?? 0)}%`;
    picture.append(bar);
  }
  if (row.flags.length) picture.append(makeFlags(row));
  facts.append(make("span", "name", row.path), make("span", "", failed ? "failed" : row.confidence?.toFixed(2) ?? ""));
  card.append(picture, make("span", "caption", failed ? row.error : row.caption || "(no words)"), facts);
  item.append(card);
  item.setAttribute("aria-setsize", view.length);
  item.setAttribute("aria-posinset", position + 1);
  fill(card, row);
  return item;
}

function place(item, position) {
  const x = position % columns * (width + GAP), y = Math.floor(position / columns) * (height + GAP);
  item.style.transform = `translate(${x}px, ${y}px)`;
}

/** Fit columns to the window's width. */
function measure() {
  room = cards.clientWidth;
  const least = Math.min(LEAST_WIDTH, (room - GAP) / 2);
  columns = Math.max(1, Math.floor((room + GAP) / (least + GAP)));
  width = (room - (columns - 1) * GAP) / columns;
  cards.style.setProperty("--width", `${width}px`);
  const probe = make("li");
  probe.append(make("div", "card"));
  cards.append(probe);
  height = probe.offsetHeight;
  probe.remove();
  const lines = Math.ceil(view.length / columns);
  cards.style.height = `${Math.max(0, lines * (height + GAP) - GAP)}px`;
}

function render(first, end) {
  const focused = document.activeElement?.closest?.("#cards li");
  for (const [position, item] of shown) {
    if ((position < first || position >= end) && item !== focused) {
      item.remove();
      shown.delete(position);
    }
  }
  let before = null;
  for (let position = first; position < end; position++) {
    let item = shown.get(position);
    if (!item) {
      item = buildCard(position);
      shown.set(position, item);
      place(item, position);
      if (before) before.after(item); else cards.prepend(item);
    }
    before = item;
  }
  setEntry(shown.get(current) ?? shown.get(first));
}

let entry = null; // the one card that Tab comes to

function setEntry(item) {
  const card = item ? find(".card", item) : null;
  if (card === entry) return;
  if (entry) entry.tabIndex = -1;
  if (card) card.tabIndex = 0;
  entry = card;
}

function renderWindow() {
  const top = -cards.getBoundingClientRect().top, line = height + GAP;
  const first = Math.max(0, Math.floor((top - OVERSCAN) / line)) * columns;
  const end = Math.max(0, Math.ceil((top + innerHeight + OVERSCAN) / line)) * columns;
  render(Math.min(first, view.length), Math.min(end, view.length));
}

function rebuild() {
  shown.clear();
  cards.replaceChildren();
  measure();
  renderWindow();
}

let asked = false;
function renderSoon() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; renderWindow(); });
}

function focusCard(position) {
  if (!view.length) return;
  current = Math.max(0, Math.min(view.length - 1, position));
  const y = Math.floor(current / columns) * (height + GAP), box = cards.getBoundingClientRect();
  const above = find("#controls").offsetHeight + GAP;
  if (box.top + y < above) scrollBy(0, box.top + y - above);
  else if (box.top + y + height > innerHeight - GAP) scrollBy(0, box.top + y + height - innerHeight + GAP);
  renderWindow();
  find(".card", shown.get(current)).focus({ preventScroll: true });
}

// ---- state: the controls, the address and the view say the same

function readAddress() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  state.query = parameters.get("q") ?? "";
  state.show = kinds.has(parameters.get("show")) ? parameters.get("show") : "all";
  state.sort = Object.hasOwn(orders, parameters.get("sort")) ? parameters.get("sort") : "confidence";
  query.value = state.query;
  sort.value = state.sort;
  apply();
  const position = parameters.has("image") ? view.findIndex(row => row.path === parameters.get("image")) : -1;
  if (position >= 0) openLarge(position); else large.close();
}

function writeAddress() {
  const parameters = new URLSearchParams();
  if (state.query) parameters.set("q", state.query);
  if (state.show !== "all") parameters.set("show", state.show);
  if (state.sort !== "confidence") parameters.set("sort", state.sort);
  if (large.open) parameters.set("image", view[opened].path);
  const hash = parameters.size ? `#${parameters}` : " ";
  if (hash.trim() !== location.hash) history.replaceState(null, "", hash === " " ? location.pathname + location.search : hash);
}

function showStatus(more = "") {
  const all = spellCount(rows.length, "image");
  find("#status").textContent = (view.length === rows.length ? all : `${view.length.toLocaleString("en")} of ${all}`) + more;
}

function apply() {
  select();
  current = 0;
  for (const button of shows.children) button.setAttribute("aria-pressed", button.dataset.show === state.show);
  showStatus();
  find("#nothing").hidden = view.length > 0;
  const start = find("#status").getBoundingClientRect().top + scrollY - find("#controls").offsetHeight;
  if (scrollY > start) scrollTo(0, start);
  rebuild();
}

function change(changes) {
  Object.assign(state, changes);
  apply();
  writeAddress();
}

for (const [kind, count] of members) {
  if (!count && kind !== "all") continue;
  const button = make("button", "", kind.replaceAll("-", " "));
  button.type = "button";
  button.dataset.show = kind;
  button.append(make("span", "", count.toLocaleString("en")));
  button.addEventListener("click", () => change({ show: kind }));
  shows.append(button);
}

let typing = 0;
query.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => change({ query: query.value }), 80);
});
sort.addEventListener("change", () => change({ sort: sort.value }));
find("#clear").addEventListener("click", () => {
  query.value = "";
  change({ query: "", show: "all" });
  query.focus();
});
addEventListener("hashchange", readAddress);
addEventListener("scroll", renderSoon, { passive: true });
new ResizeObserver(() => requestAnimationFrame(() => {
  if (cards.clientWidth === room) return;
  const before = columns;
  measure();
  if (columns !== before) return rebuild();
  for (const [position, item] of shown) place(item, position);
  renderWindow();
})).observe(cards.parentElement);

// ---- failures, in words

const failures = rows.filter(row => row.error !== null);
if (failures.length) {
  const list = find("#failures"), body = find("tbody", list);
  list.hidden = false;
  find("summary", list).textContent = `${spellCount(failures.length, "image")} could not be captioned`;
  list.addEventListener("toggle", () => {
    if (!list.open || body.children.length) return;
    for (const row of failures.slice(0, MOST_LISTED)) {
      const line = make("tr");
      line.append(make("td", "", row.path), make("td", "", row.error));
      body.append(line);
    }
    if (failures.length > MOST_LISTED) {
      const line = make("tr");
      line.append(make("td", "", `and ${(failures.length - MOST_LISTED).toLocaleString("en")} more: choose "failed" below`));
      body.append(line);
    }
  });
}

// ---- the large view

function openLarge(position) {
  opened = position;
  const row = view[position], image = find("img", large), failed = row.error !== null, source = thumbnail(row);
  image.hidden = !source && (failed || !row.link);
  find(".missing", large).hidden = !image.hidden;
  image.alt = row.caption;
  image.src = source || (failed || !row.link ? "" : row.link);
  if (row.link && source) {
    const whole = new Image();
    whole.onload = () => { if (large.open && view[opened] === row) image.src = row.link; };
    whole.src = row.link;
  }
  find(".caption", large).textContent = failed ? "" : row.caption || "(no words)";
  find(".error", large).textContent = failed ? row.error : "";
  find(".flags", large).replaceChildren(makeFlags(row));
  for (const part of large.querySelectorAll(".sure")) part.hidden = failed;
  for (const part of large.querySelectorAll(".others")) part.hidden = !row.alternatives.length;
  find(".number", large).textContent = row.confidence?.toFixed(4) ?? "";
  find(".bar span", large).style.width = `${100 * (row.confidence ?? 0)}%`;
  find("ol", large).replaceChildren(...row.alternatives.map(text => make("li", "", text)));
  const path = make(row.link ? "a" : "span", "", row.path);
  if (row.link) {
    path.href = row.link;
    path.target = "_blank";
    path.rel = "noopener";
  }
  find(".path", large).replaceChildren(path);
  find(".place", large).textContent = `${(position + 1).toLocaleString("en")} of ${view.length.toLocaleString("en")}`;
  find(".previous", large).disabled = position === 0;
  find(".next", large).disabled = position === view.length - 1;
  if (!large.open) {
    large.showModal();
    find(".close", large).focus();
  }
  writeAddress();
}

function step(by) {
  if (view[opened + by]) openLarge(opened + by);
}

cards.addEventListener("click", event => {
  const card = event.target.closest(".card");
  if (card) openLarge(Number(card.dataset.position));
});
cards.addEventListener("focusin", event => {
  const card = event.target.closest(".card");
  if (!card) return;
  current = Number(card.dataset.position);
  setEntry(shown.get(current));
});
find(".previous", large).addEventListener("click", () => step(-1));
find(".next", large).addEventListener("click", () => step(1));
large.addEventListener("close", () => {
  writeAddress();
  focusCard(opened); // the browser has given it to the card that was opened first
});
for (const dialog of document.querySelectorAll("dialog")) {
  find(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
}
find("#help").addEventListener("click", () => find("#keys").showModal());

// ---- keys

const moves = { ArrowLeft: () => -1, ArrowRight: () => 1, k: () => -1, j: () => 1, ArrowUp: () => -columns,
  ArrowDown: () => columns, Home: () => -Infinity, End: () => Infinity,
  PageUp: () => -columns * pageLines(), PageDown: () => columns * pageLines() };

function pageLines() {
  return Math.max(1, Math.floor((innerHeight - find("#controls").offsetHeight) / (height + GAP)));
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (large.open) {
    const by = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 }[event.key];
    if (by) step(by);
    return;
  }
  if (find("#keys").open) return;
  const onCard = event.target.closest(".card");
  if (event.target === query) {
    if (event.key !== "Escape" && event.key !== "ArrowDown") return;
    event.preventDefault();
    focusCard(current);
  } else if (event.target.closest("select, input")) {
    return;
  } else if (event.key === "/") {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "?") {
    find("#keys").showModal();
  } else if (event.key in moves && (onCard || event.target === document.body)) {
    if (!onCard && event.key.length > 1 && !event.key.startsWith("Arrow")) return; // Home, PageDown: the window scrolls
    event.preventDefault();
    focusCard(onCard ? current + moves[event.key]() : current);
  }
});

// ---- light and dark

const themes = { "": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme;
  const [sign, name] = themes[theme], button = find("#theme");
  button.textContent = sign;
  button.title = `Colours: ${name}`;
  button.setAttribute("aria-label", button.title);
  button.dataset.theme = theme;
}

function kept(read) { // a page that lies on a disk may have no storage
  try { return read(); } catch { return null; }
}

const chosen = kept(() => localStorage.getItem("theme")) ?? "";
setTheme(Object.hasOwn(themes, chosen) ? chosen : "");
find("#theme").addEventListener("click", event => {
  const names = Object.keys(themes), next = names[(names.indexOf(event.currentTarget.dataset.theme) + 1) % names.length];
  setTheme(next);
  kept(() => localStorage.setItem("theme", next));
});

// ---- paper

addEventListener("beforeprint", () => {
  render(0, Math.min(view.length, MOST_PRINTED));
  if (view.length > MOST_PRINTED) showStatus(`; the first ${MOST_PRINTED} are printed`);
});
addEventListener("afterprint", () => { showStatus(); rebuild(); });

// ---- while the thumbnails still load

function fillWaiting() {
  for (const item of shown.values()) {
    const card = find(".card", item);
    if (card.dataset.waiting) fill(card, view[card.dataset.position]);
  }
}

readAddress();
if (document.readyState === "loading") {
  const timer = setInterval(fillWaiting, 150);
  document.addEventListener("DOMContentLoaded", () => { clearInterval(timer); fillWaiting(); });
}
})();
