// The large view, in which captions are reviewed; the keys; how decisions are saved and loaded; the start of the page.

const bar = find("#review"), notice = find("#notice"), field = find("textarea", large), picker = find("#file");
const byPath = new Map(rows.map(row => [row.path, row]));
const tableName = page.table || "captions.csv", fileName = `${tableName.replace(/\.\w+$/, "")}.decisions.csv`;
let edited = null; // the row whose caption is in the field

let saying = 0;
function say(text) {
  for (const line of document.querySelectorAll(".said")) line.textContent = text;
  const overCards = find("#foot .said"); // for as long as it is read
  clearTimeout(saying);
  overCards.classList.remove("old");
  saying = setTimeout(() => overCards.classList.add("old"), 5000);
}

function notify(text, command = "") {
  find("span", notice).textContent = text;
  find("code", notice).textContent = command;
  find("code", notice).hidden = !command;
  notice.hidden = false;
}

// ---- the large view

function openLarge(position) {
  leaveEdit();
  opened = position;
  const row = view[position];
  showImage(row);
  showWords(row);
  find(".place", large).textContent = `${spellNumber(position + 1)} of ${spellNumber(view.length)}`;
  find(".previous", large).disabled = position === 0;
  find(".next", large).disabled = position === view.length - 1;
  if (!large.open) {
    large.showModal();
    find(".edit", large).focus();
  }
  writeAddress();
}

function showImage(row) {
  const image = find("img", large), source = thumbnail(row);
  const show = address => {
    image.hidden = !address;
    find(".missing", large).hidden = !image.hidden;
    image.src = address;
  };
  image.alt = captionOf(row);
  show(source || (row.error === null && row.link ? row.link : ""));
  if (row.link && (source || row.error !== null)) { // the whole image, or one that only a browser can read
    const whole = new Image();
    whole.onload = () => { if (large.open && view[opened] === row) show(row.link); };
    whole.src = row.link;
  }
}

function showWords(row) {
  const failed = isFailed(row), state = stateOf(row);
  find(".caption", large).textContent = failed ? "" : spellCaption(row);
  find(".verdict", large).className = `verdict ${spellVerdict(row)}`;
  find(".verdict", large).textContent = row.right === null ? "" : row.right ? "right" : `wrong: the image shows ${row.truth}`;
  find(".error", large).textContent = row.error ?? "";
  find(".flags", large).replaceChildren(makeFlags(row));
  find(".original", large).hidden = captionOf(row) === row.caption;
  find(".original q", large).textContent = row.caption || "no caption";
  showOutdated(row);
  for (const [name, pressed] of [["accept", "accepted"], ["edit", "corrected"], ["later", "later"]]) {
    find(`.${name}`, large).setAttribute("aria-pressed", state === pressed);
  }
  find(".accept", large).setAttribute("aria-disabled", !row.caption || state === "corrected");
  find(".later", large).setAttribute("aria-disabled", state === "corrected");
  for (const part of large.querySelectorAll(".sure")) part.hidden = row.confidence === null;
  for (const part of large.querySelectorAll(".others")) part.hidden = !row.alternatives.length;
  find(".number", large).textContent = row.confidence?.toFixed(4) ?? "";
  find(".rail span", large).style.width = `${100 * (row.confidence ?? 0)}%`;
  find("ol", large).replaceChildren(...row.alternatives.map(text => make("li", "", text)));
  const path = make(row.link ? "a" : "span", "", row.path);
  if (row.link) {
    path.href = row.link;
    path.target = "_blank";
    path.rel = "noopener";
  }
  find(".path", large).replaceChildren(path);
}

/** What was decided about a caption that the image no longer has. */
function showOutdated(row) {
  const made = decisions.get(row.path), line = find(".outdated", large);
  line.hidden = !isOutdated(row);
  if (line.hidden) return;
  const done = { corrected: `was corrected to “${made.caption}”`, accepted: "was accepted", later: "was left for later",
    undecided: "was taken back" };
  find("span", line).textContent = `Before, “${made.shown}” ${done[made.decision]}.`;
  find(".again", line).hidden = made.decision !== "corrected";
}

function step(by) {
  if (view[opened + by]) openLarge(opened + by); else leaveEdit();
}

// ---- decisions

/** Do what changes the state of these rows, and show it. */
function revise(changed, action) {
  for (const row of changed) tally(row, -1);
  action();
  for (const row of changed) tally(row, 1);
  refresh(changed);
  if (large.open && changed.includes(view[opened])) showWords(view[opened]);
  showProgress();
}

/** How many decisions the next save would save: none about a caption that the table no longer has. */
function countUnsaved() {
  return decisions.countUnsaved(path => byPath.has(path) && !isOutdated(byPath.get(path)));
}

function showProgress() {
  const total = members.get("captioned"), reviewed = members.get("corrected") + members.get("accepted");
  const unsaved = countUnsaved();
  for (const line of document.querySelectorAll(".progress")) {
    line.textContent = canReview ? `${spellNumber(reviewed)} of ${spellNumber(total)} reviewed` : "";
  }
  find(".rail span", bar).style.width = `${total ? 100 * reviewed / total : 0}%`;
  for (const button of document.querySelectorAll(".undo")) button.setAttribute("aria-disabled", !decisions.nextPaths(false).length);
  find("#save span").textContent = unsaved ? spellNumber(unsaved) : "";
  find("#save").classList.toggle("unsaved", unsaved > 0);
  find("#lost").hidden = decisions.isKept || Boolean(page.served);
  showKinds();
  showStatus();
}

function decide(row, decision, caption = "") {
  revise([row], () => decisions.decide([[row.path, decision && { decision, caption, shown: row.caption }]]));
  say(decision ? `${SIGNS[decision]} ${decision}: ${row.path}` : `No decision: ${row.path}`);
}

/** The row that the keys are about. */
function looked() {
  return large.open ? view[opened] : view[current];
}

function goOn(row) {
  if (large.open) step(1); else focusCard(current + 1);
  if (looked() === row) say("That was the last image shown.");
}

/** Decide, unless somebody wrote the caption, and show the next image. */
function mark(row, decision) {
  const state = stateOf(row);
  if (decision === "accepted" && !row.caption) return say("There is no caption to accept: write one (e).");
  if (state !== "corrected" && state !== decision) decide(row, decision);
  goOn(row);
}

function takeBack(row) {
  if (decisions.has(row.path)) decide(row, null);
}

function undo(isRedo) {
  const paths = decisions.nextPaths(isRedo);
  if (!paths.length) return say(`There is nothing to ${isRedo ? "redo" : "undo"}.`);
  revise(paths.map(path => byPath.get(path)), () => decisions.undo(isRedo));
  say(`${isRedo ? "Redone" : "Undone"}: ${paths.length === 1 ? paths[0] : spellCount(paths.length, "decision")}`);
  const position = paths.length === 1 ? view.indexOf(byPath.get(paths[0])) : -1;
  if (position >= 0 && large.open) openLarge(position); else if (position >= 0) focusCard(position);
}

function goToUnreviewed() {
  const from = (large.open ? opened : current) + 1, isOpen = row => kinds.get("unreviewed")(row);
  const later = view.findIndex((row, position) => position >= from && isOpen(row));
  const position = later < 0 ? view.findIndex(isOpen) : later;
  if (position < 0) say("No image shown is unreviewed.");
  else if (large.open) openLarge(position);
  else focusCard(position);
}

// ---- editing a caption

function showEditing() {
  field.hidden = find(".editing", large).hidden = !edited;
  find(".caption", large).hidden = Boolean(edited);
  find(".decide", large).hidden = !canReview || Boolean(edited);
}

function beginEdit(text = captionOf(looked())) {
  if (!canReview) return;
  if (!large.open) openLarge(current);
  edited = view[opened];
  field.value = text;
  showEditing();
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

function cancelEdit() {
  edited = null;
  showEditing();
  find(".edit", large).focus();
}

/** Another of the model's captions is nearer: edit that. */
function pickAlternative(number) {
  const text = looked().alternatives[number];
  if (text) beginEdit(text); else say(`There is no other caption ${number + 1}.`);
}

/** Another image is shown, or the view is closed: what was typed is a correction. */
function leaveEdit() {
  if (!edited) return;
  const row = edited, text = tidy(field.value);
  edited = null;
  showEditing();
  if (text && text !== captionOf(row)) correct(row, text);
}

function correct(row, text) {
  if (text !== row.caption) decide(row, "corrected", text);
  else decide(row, row.status === "corrected" || row.status === "accepted" ? null : "accepted"); // the table's again
}

/** What was typed is right, also if nothing was changed. */
function finishEdit() {
  const row = edited, text = tidy(field.value);
  if (!text) return say("A caption needs a word.");
  cancelEdit();
  if (text !== captionOf(row)) correct(row, text); else if (!isReviewed(row)) decide(row, "accepted");
  goOn(row);
}

// ---- saving and loading

function spellDue(due) {
  const counts = { corrected: 0, accepted: 0, later: 0, undecided: 0 };
  for (const row of due) counts[decisionOf(row).decision] += 1;
  return `${spellNumber(counts.corrected)} corrected, ${spellNumber(counts.accepted)} accepted, ` +
    `${spellNumber(counts.later)} for later` + (counts.undecided ? `, ${spellNumber(counts.undecided)} taken back` : "");
}

async function save() {
  leaveEdit();
  const due = rows.filter(row => decisionOf(row));
  if (!due.length) return say("There are no decisions to save.");
  if (page.served) return saveInTable(due);
  const quote = name => /^[\w.@+=:][\w.@+=:-]*$/.test(name) ? name : `"${name.replace(/[$`"\\]/g, "\\$&")}"`;
  const link = make("a"), address = URL.createObjectURL(new Blob([spellDecisions(due)], { type: "text/csv" }));
  link.href = address;
  link.download = fileName;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  decisions.markSaved();
  showProgress();
  say(`Saved: ${spellDue(due)}`);
  notify(`Saved as ${fileName}: ${spellDue(due)}. Merge it into the table of captions:`,
    `captionmill apply ${quote(fileName)} --to ${quote(tableName)}`);
}

/** The program that serves this page merges the decisions, as `captionmill apply` does. */
async function saveInTable(due) {
  const saved = new Map(due.map(row => [row, decisionOf(row)]));
  say("Saving ...");
  let answer;
  try {
    const response = await fetch("decisions", { method: "POST", headers: { "Content-Type": "text/csv" }, body: spellDecisions(due) });
    answer = await response.json();
  } catch {
    answer = { error: "captionmill review does not answer; is it still running?" };
  }
  if (answer.error) {
    say("Not saved");
    return notify(`Not saved: ${answer.error}`);
  }
  const conflicts = new Map(answer.conflicts.map(conflict => [conflict.path, conflict]));
  revise(due, () => {
    const against = new Map(); // path -> the decision that undoes the one that was saved
    decisions.markSaved();
    for (const [row, made] of saved) {
      const conflict = conflicts.get(row.path);
      if (conflict) Object.assign(row, conflict.row);
      else {
        const { status, caption } = row;
        keepInRow(row, made);
        const isSame = status === "accepted" && caption === row.caption;
        const decision = isSame ? "accepted" : status === "corrected" || status === "accepted" ? "corrected" : "undecided";
        against.set(row.path, { decision, caption, shown: row.caption });
        decisions.settle(row.path, made, row.caption);
      }
    }
    decisions.rebase(against);
  });
  say(`Saved in ${tableName}: ${answer.summary}`);
  if (!conflicts.size) return;
  const reasons = [...conflicts.values()].slice(0, 3).map(conflict => `${conflict.path}: ${conflict.reason}`);
  notify(`Not saved: ${spellCount(conflicts.size, "conflict")}. ${reasons.join("; ")}${conflicts.size > 3 ? "; ..." : ""}`);
}

/** The table has the decision now; `row.made` is what the model made, which an undone decision shows again. */
function keepInRow(row, made) {
  const { caption, confidence, flags, error, alternatives } = row;
  if (!row.status || row.status === "later") row.made = { caption, confidence, flags, error, alternatives };
  if (made.decision === "undecided") Object.assign(row, row.made, { status: "" });
  else Object.assign(row, { status: made.decision });
  if (made.decision === "corrected") Object.assign(row, { caption: made.caption, confidence: null, error: null, alternatives: [] });
  if (made.decision === "corrected" || made.decision === "accepted") row.flags = [];
}

async function load(file) {
  let read;
  try {
    read = parseDecisions(await file.text());
  } catch (error) {
    return notify(`${file.name} is not loaded: ${error.message}`);
  }
  const counts = { loaded: 0, unknown: 0, kept: 0, outdated: 0 }, changes = [], wasSaved = !decisions.countUnsaved();
  for (const { path, ...decision } of read) {
    const row = byPath.get(path);
    if (!row) counts.unknown += 1;
    else if (decisionOf(row)) counts.kept += 1;
    else if (row.status !== decision.decision || row.caption !== (decision.caption || decision.shown)) {
      changes.push([path, decision]);
      if (decision.shown === row.caption) counts.loaded += 1; else counts.outdated += 1;
    }
  }
  if (changes.length) revise(changes.map(([path]) => byPath.get(path)), () => decisions.decide(changes));
  if (wasSaved) decisions.markSaved();
  showProgress();
  notify([`Loaded from ${file.name}: ${spellCount(counts.loaded, "decision")}`,
    counts.kept && `${spellCount(counts.kept, "image")} had one here, which stays`,
    counts.outdated && `${spellNumber(counts.outdated)} about captions that have changed since, which do not count`,
    counts.unknown && `${spellNumber(counts.unknown)} about images that are not on this page`].filter(Boolean).join("; ") + ".");
}

/** What the browser kept since the page was closed. */
function greet() {
  const count = rows.filter(row => decisionOf(row)).length, outdated = members.get("outdated");
  const unknown = decisions.paths().filter(path => !byPath.has(path)).length;
  if (count) say(`${spellCount(count, "decision")} from before`);
  const others = [outdated && `${spellCount(outdated, "decision")} from before ${outdated === 1 ? "is" : "are"} about captions ` +
    "that have changed since; they do not count, choose “outdated” to see them.",
    unknown && `${spellCount(unknown, "decision")} from before ${unknown === 1 ? "is" : "are"} about images that are not on this page.`];
  if (others.some(Boolean)) notify(others.filter(Boolean).join(" "));
}

// ---- what is clicked

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
const clicks = { previous: () => step(-1), next: () => step(1), edit: () => beginEdit(), caption: () => beginEdit(), done: finishEdit,
  cancel: cancelEdit, take: () => takeBack(view[opened]), forget: () => takeBack(view[opened]),
  again: () => decide(view[opened], "corrected", decisions.get(view[opened].path).caption),
  accept: () => markOrNot(view[opened], "accepted"), later: () => markOrNot(view[opened], "later") };
for (const [name, action] of Object.entries(clicks)) find(`.${name}`, large).addEventListener("click", action);
find("ol", large).addEventListener("click", event => {
  const item = event.target.closest("li");
  if (item) beginEdit(item.textContent);
});
for (const button of document.querySelectorAll(".undo")) button.addEventListener("click", () => undo(false));

/** Mark; a second click takes it back. */
function markOrNot(row, decision) {
  if (decisionOf(row)?.decision === decision) takeBack(row); else mark(row, decision);
}

large.addEventListener("cancel", event => {
  if (!edited) return;
  event.preventDefault();
  cancelEdit();
});
large.addEventListener("close", () => {
  leaveEdit();
  writeAddress();
  focusCard(opened); // the browser has given it to the card that was opened first
});
for (const dialog of document.querySelectorAll("dialog")) {
  find(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
}
find("#help").addEventListener("click", () => find("#keys").showModal());
find("#save").addEventListener("click", save);
find("#load").addEventListener("click", () => picker.click());
find("button", notice).addEventListener("click", () => { notice.hidden = true; });
picker.addEventListener("change", () => {
  if (picker.files.length) load(picker.files[0]);
  picker.value = ""; // the same file may be chosen again
});
addEventListener("dragover", event => { if (canReview && event.dataTransfer.types.includes("Files")) event.preventDefault(); });
addEventListener("drop", event => {
  if (!canReview || !event.dataTransfer.files.length) return;
  event.preventDefault();
  load(event.dataTransfer.files[0]);
});
addEventListener("storage", event => {
  const row = byPath.get(decisions.pathOf(event.key));
  revise(row ? [row] : [], () => decisions.follow(event.key));
});
addEventListener("beforeunload", event => {
  leaveEdit();
  if (countUnsaved()) event.preventDefault();
});

// ---- keys

const moves = { ArrowLeft: () => -1, ArrowRight: () => 1, k: () => -1, j: () => 1, ArrowUp: () => -columns,
  ArrowDown: () => columns, Home: () => -Infinity, End: () => Infinity,
  PageUp: () => -columns * pageLines(), PageDown: () => columns * pageLines() };
const deeds = canReview ? { a: () => mark(looked(), "accepted"), l: () => mark(looked(), "later"), e: () => beginEdit(),
  F2: () => beginEdit(), n: goToUnreviewed, u: () => undo(false), U: () => undo(true), Delete: () => takeBack(looked()),
  Backspace: () => takeBack(looked()) } : {};
for (let number = 0; canReview && number < 9; number++) deeds[number + 1] = () => pickAlternative(number);

function pageLines() {
  return Math.max(1, Math.floor((innerHeight - find("#controls").offsetHeight) / (heights[Math.floor(current / columns)] + GAP)));
}

/** Ctrl+S, Ctrl+Z and their like; whether it is one. */
function withControl(event) {
  if (!canReview) return false;
  const key = event.key.toLowerCase();
  if (key === "s") save();
  else if (event.target.closest("input, textarea")) return false;
  else if (key === "z" || key === "y") undo(key === "y" || event.shiftKey);
  else return false;
  return true;
}

function inField(event) {
  if (event.key === "Escape") cancelEdit();
  else if (event.key === "Enter" && !event.isComposing) finishEdit();
  else return;
  event.preventDefault(); // Esc would close the large view
}

addEventListener("keydown", event => {
  if (event.altKey) return;
  if (event.ctrlKey || event.metaKey) {
    if (withControl(event)) event.preventDefault();
    return;
  }
  if (find("#keys").open) return;
  if (event.target === field) return inField(event);
  const onCard = event.target.closest(".card");
  if (event.key in deeds && !event.target.closest("select, input") && view.length) {
    event.preventDefault();
    if (large.open || onCard || "nuU".includes(event.key)) deeds[event.key](); else focusCard(current); // to be seen first
    return;
  }
  if (large.open) {
    const by = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 }[event.key];
    if (by) step(by);
    return;
  }
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

// ---- the start

showEditing();
readAddress();
showProgress();
greet();
if (document.readyState === "loading") {
  const timer = setInterval(fillWaiting, 150);
  document.addEventListener("DOMContentLoaded", () => { clearInterval(timer); fillWaiting(); });
}
