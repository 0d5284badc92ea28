// The images and their captions as cards: filtered, sorted, moved through with keys. Only cards near the window exist.

const BLOCK_ROWS = 100; // as pipeline/pages/gallery.py writes them
const LEAST_WIDTH = 200, GAP = 14, OVERSCAN = 600; // pixels
const MOST_PRINTED = 600, MOST_LISTED = 200;
const MOST_LINES = 5; // of a caption and of a note, as the style sheet cuts them

const find = (selector, within = document) => within.querySelector(selector);
const page = find("main").dataset, cards = find("#cards"), large = find("#large");
const query = find("#query"), shows = find("#shows"), sort = find("#sort");
const rows = JSON.parse(find("#rows").textContent).map(
  ([path, caption, confidence, flags, alternatives, error, link, right = null, truth = "", status = ""], index) =>
    ({ path, caption, confidence, flags: flags.filter(flag => flag !== "later"), alternatives, error, link, right, truth,
      status: status || (flags.includes("later") ? "later" : ""), index, words: null, room: 0, high: 0 }));
for (const row of rows) if (isSettled(row)) decisions.settle(row.path, decisions.get(row.path));

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function spellNumber(number) {
  return number.toLocaleString("en");
}

function spellCount(count, noun) {
  return `${spellNumber(count)} ${noun}${count === 1 ? "" : "s"}`;
}

// ---- thumbnails: blocks of lines, taken apart when one of their images is near

const blocks = new Map();

/** The image of a row as a data URL; "" if it has none, null while the page is still loading. */
function thumbnail(row) {
  if (page.served) return row.error === null && row.link ? `${row.link}?small` : "";
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

const kinds = new Map([["all", () => true], ["unreviewed", row => !stateOf(row) && !isFailed(row)],
  ["corrected", row => stateOf(row) === "corrected"], ["accepted", row => stateOf(row) === "accepted"],
  ["later", row => stateOf(row) === "later"], ["outdated", isOutdated], ["captioned", row => !isFailed(row)],
  ["wrong", row => row.right === false], ["right", row => row.right === true],
  ["failed", isFailed], ["flagged", row => flagsOf(row).length > 0]]);
for (const flag of new Set(rows.flatMap(row => row.flags))) kinds.set(flag, row => flagsOf(row).includes(flag));
const members = new Map([...kinds.keys()].map(kind => [kind, 0]));

/** Count the row where it belongs (by 1), or no longer (by -1). */
function tally(row, by) {
  for (const [kind, belongs] of kinds) if (belongs(row)) members.set(kind, members.get(kind) + by);
}

rows.forEach(row => tally(row, 1));

const sureness = row => row.confidence ?? (row.status === "corrected" ? 1 : 0);
const byConfidence = (sign, left, right) =>
  left.error === null && right.error === null ? sign * (sureness(left) - sureness(right)) || left.index - right.index
    : (left.error !== null) - (right.error !== null) || left.index - right.index;
const byDoubt = byConfidence.bind(null, 1);
const canReview = "id" in page; // else the page only shows what was found
const byPathOnly = (left, right) => left.path < right.path ? -1 : 1;
const orders = { given: rows, path: canReview ? rows : rows.toSorted(byPathOnly),
  confidence: rows.toSorted(byConfidence.bind(null, -1)), doubt: rows.toSorted(byDoubt),
  wrong: rows.toSorted((left, right) => (right.right === false) - (left.right === false) || byDoubt(left, right)) };
const usual = sort.options[0].value; // the order unless another is chosen

const state = { show: "all", sort: usual, query: "" };
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
    row.words ??= normalize(captionOf(row)) + normalize(row.path);
    return terms.every(term => row.words.includes(term.text) !== term.without);
  });
}

// ---- the cards: only those near the window are in the document

const shown = new Map(); // position in view -> li
let room = 0, width = LEAST_WIDTH, columns = 1; // pixels of the window and of a card
let tops = [], heights = []; // of each line of cards, pixels
let current = 0; // position that the keys start from
let opened = 0; // position in the large view

const SIGNS = { corrected: "✎", accepted: "✓", later: "◷" };

function fill(card, row) {
  const source = thumbnail(row);
  card.dataset.waiting = source === null ? "1" : "";
  const frame = find(".frame", card);
  if (source) {
    const image = make("img");
    image.alt = "";
    image.decoding = "async";
    image.src = source;
    frame.prepend(image);
  } else if (source === "") {
    frame.prepend(make("span", "missing", "no image"));
  }
}

function makeFlags(row) {
  const flags = make("span", "flags");
  flags.append(...flagsOf(row).map(flag => make("span", "flag", flag.replaceAll("-", " "))));
  return flags;
}

/** What a card shows in words: the caption or why there is none, and what the image shows where the caption is wrong. */
function spellCaption(row) {
  return captionOf(row) || (row.error ?? "(no words)");
}

function spellTruth(row) {
  return row.right === false ? `shows: ${row.truth}` : "";
}

function spellVerdict(row) {
  return isFailed(row) ? "failed" : row.right === null ? "" : row.right ? "right" : "wrong";
}

function makeCard(row) {
  const verdict = spellVerdict(row), state = stateOf(row), card = make("button", `card ${verdict}`.trim());
  const frame = make("span", "frame"), name = make("span", "name"), facts = make("span", "facts");
  card.type = "button";
  card.tabIndex = -1;
  card.title = row.path;
  if (state) card.dataset.review = state;
  if (row.error === null && state !== "corrected") {
    const bar = make("span", "bar");
    bar.style.width = `${100 * (row.confidence ?? 0)}%`;
    frame.append(bar);
  }
  if (flagsOf(row).length) frame.append(makeFlags(row));
  const path = make("bdi", "", row.path); // of a long path the beginning is cut, in the style sheet
  path.dir = "ltr";
  name.append(path);
  const judged = state ? `${SIGNS[state]} ${state}` : row.confidence?.toFixed(2);
  facts.append(name, make("span", "", [verdict, judged].filter(Boolean).join(" ")));
  card.append(frame, make("span", "caption", spellCaption(row)));
  if (spellTruth(row)) card.append(make("span", "note", spellTruth(row)));
  card.append(facts);
  return card;
}

function buildItem(position) {
  const row = view[position], item = make("li"), card = makeCard(row);
  card.dataset.position = position;
  item.append(card);
  item.setAttribute("aria-setsize", view.length);
  item.setAttribute("aria-posinset", position + 1);
  fill(card, row);
  return item;
}

function place(item, position) {
  const line = Math.floor(position / columns);
  item.style.transform = `translate(${position % columns * (width + GAP)}px, ${tops[line]}px)`;
  item.style.height = `${heights[line]}px`;
}

// A card is as high as its words need, and a line of cards as high as its highest. How the words of 10,000 captions
// break is worked out from the widths of the words, each of which is measured once, without the document.

const canvas = document.createElement("canvas").getContext("2d");

/** What counts the lines of a text in the style of `element`, when it is `room` pixels wide, and how high one is. */
function makeRuler(element) {
  const style = getComputedStyle(element), { font } = style, widths = new Map();
  const widthOf = word => {
    if (!widths.has(word)) {
      canvas.font = font;
      widths.set(word, canvas.measureText(word).width);
    }
    return widths.get(word);
  };
  const space = widthOf(" ");
  return { high: parseFloat(style.lineHeight), count(text, room) {
    let lines = 1, x = 0;
    for (const word of text.split(" ")) {
      const wide = widthOf(word);
      if (x > 0 && x + wide > room) { lines += 1; x = 0; }
      lines += Math.max(0, Math.ceil((x + wide) / room) - 1); // longer than a line: broken anywhere
      x = (x + wide) % room + space;
      if (lines >= MOST_LINES) return MOST_LINES;
    }
    return lines;
  } };
}

let rulers = null; // of captions, of notes; and the height of a card without either

function makeRulers() {
  const item = make("li"), empty = { path: "x", caption: "x", confidence: 0.5, flags: [], error: null, right: false, truth: "x", status: "" };
  const card = makeCard(empty);
  item.append(card);
  cards.append(item);
  const [caption, note] = [find(".caption", card), find(".note", card)].map(makeRuler);
  const padding = parseFloat(getComputedStyle(find(".caption", card)).marginLeft) + 1; // and the border
  const gap = parseFloat(getComputedStyle(find(".note", card)).marginBottom);
  rulers = { caption, note, padding, gap, base: card.offsetHeight - width * 0.75 - caption.high - note.high - gap };
  item.remove();
}

function heightOf(row) {
  if (row.room !== width) {
    const free = width - 2 * rulers.padding - 1, truth = spellTruth(row);
    row.high = rulers.caption.high * rulers.caption.count(spellCaption(row), free);
    if (truth) row.high += rulers.note.high * rulers.note.count(truth, free) + rulers.gap;
    row.room = width;
  }
  return row.high;
}

/** Fit columns to the window's width, and lines to their words. */
function measure() {
  room = cards.clientWidth;
  const least = Math.min(LEAST_WIDTH, (room - GAP) / 2);
  columns = Math.max(1, Math.floor((room + GAP) / (least + GAP)));
  width = (room - (columns - 1) * GAP) / columns;
  cards.style.setProperty("--width", `${width}px`);
  if (!rulers) makeRulers();
  tops = [];
  heights = [];
  let y = 0;
  for (let first = 0; first < view.length; first += columns) {
    let high = 0;
    for (let position = first; position < Math.min(first + columns, view.length); position++) {
      high = Math.max(high, heightOf(view[position]));
    }
    tops.push(y);
    heights.push(width * 0.75 + rulers.base + high);
    y += heights.at(-1) + GAP;
  }
  cards.style.height = `${Math.max(0, y - GAP)}px`;
}

/** The line of cards at `y` pixels below the first, or the nearest one. */
function lineAt(y) {
  let low = 0, high = tops.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (tops[middle] <= y) low = middle; else high = middle - 1;
  }
  return Math.max(0, low);
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
      item = buildItem(position);
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
  const top = -cards.getBoundingClientRect().top;
  const first = lineAt(top - OVERSCAN) * columns, end = (lineAt(top + innerHeight + OVERSCAN) + 1) * columns;
  render(first, Math.min(end, view.length));
}

/** Show what changed of these rows, without moving any to another place. */
function refresh(changed) {
  for (const row of changed) {
    row.words = null;
    row.room = 0;
  }
  measure();
  for (const [position, item] of shown) {
    if (changed.includes(view[position])) {
      const hadFocus = item.contains(document.activeElement), next = buildItem(position);
      item.replaceWith(next);
      shown.set(position, next);
      if (hadFocus) find(".card", next).focus({ preventScroll: true });
    }
    place(shown.get(position), position);
  }
  renderWindow();
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
  const line = Math.floor(current / columns), y = tops[line], height = heights[line];
  const above = find("#controls").offsetHeight + GAP, box = cards.getBoundingClientRect();
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
  state.sort = Object.hasOwn(orders, parameters.get("sort")) ? parameters.get("sort") : usual;
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
  if (state.sort !== usual) parameters.set("sort", state.sort);
  if (large.open) parameters.set("image", view[opened].path);
  const hash = parameters.size ? `#${parameters}` : " ";
  if (hash.trim() !== location.hash) history.replaceState(null, "", hash === " " ? location.pathname + location.search : hash);
}

function showStatus(more = "") {
  const all = spellCount(rows.length, "image"), gone = view.filter(row => !kinds.get(state.show)(row)).length;
  if (gone) more = `, ${spellNumber(gone)} no longer ${state.show}${more}`;
  find("#status").textContent = (view.length === rows.length ? all : `${spellNumber(view.length)} of ${all}`) + more;
}

function apply() {
  select();
  current = 0;
  showKinds();
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

const chips = new Map([...kinds.keys()].map(kind => {
  const button = make("button", "", kind.replaceAll("-", " "));
  button.type = "button";
  button.dataset.show = kind;
  button.append(make("span"));
  button.addEventListener("click", () => change({ show: kind }));
  return [kind, button];
}));

/** The kinds among which there is something to choose, with their counts. */
function showKinds() {
  const offered = [...chips].filter(([kind]) =>
    kind === "all" || kind === state.show || (members.get(kind) > 0 && members.get(kind) < rows.length));
  const buttons = offered.map(([, button]) => button);
  shows.hidden = buttons.length < 2;
  if (buttons.length !== shows.children.length || buttons.some((button, place) => button !== shows.children[place])) {
    const focused = document.activeElement;
    shows.replaceChildren(...buttons);
    if (shows.contains(focused)) focused.focus();
  }
  for (const [kind, button] of offered) {
    find("span", button).textContent = spellNumber(members.get(kind));
    const isChosen = kind === state.show;
    if (isChosen && button.getAttribute("aria-pressed") !== "true") {
      shows.scrollLeft = button.offsetLeft - (shows.clientWidth - button.offsetWidth) / 2;
    }
    button.setAttribute("aria-pressed", isChosen);
  }
}

/** Where chips lie beyond an end of their row, it fades there. */
function fadeShows() {
  const hidden = shows.scrollWidth - shows.clientWidth - shows.scrollLeft;
  shows.classList.toggle("before", shows.scrollLeft > 1);
  shows.classList.toggle("after", hidden > 1);
}

shows.addEventListener("scroll", fadeShows, { passive: true });
new ResizeObserver(fadeShows).observe(shows);

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
      line.append(make("td", "", `and ${spellNumber(failures.length - MOST_LISTED)} more: choose "failed" below`));
      body.append(line);
    }
  });
}

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
