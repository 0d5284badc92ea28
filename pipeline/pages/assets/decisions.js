// What a person decided about captions: kept by the browser, undone step by step, written as a file and read from one.

const COLUMNS = ["path", "decision", "caption", "shown"]; // as data/captions reads them
const DECISIONS = ["corrected", "accepted", "later", "undecided"];

/** A caption as `captionmill apply` reads it: one line, one space between words. */
function tidy(text) {
  return text.replace(/[\s\p{Cc}]+/gu, " ").trim();
}

class Decisions {
  #made = new Map(); // path -> { decision, caption, shown, at }
  #undone = [];
  #done = []; // steps: arrays of [path, decision before, decision after]
  #taken = new Set(); // paths of decisions that were taken back since they were saved
  #savedAt = 0;
  #prefix;
  #mark;
  isKept = true; // by the browser, when the page is closed

  /** Those that the browser keeps for the table `id`; none without a table. */
  constructor(id) {
    if (!id) return;
    this.#prefix = `captionmill-decision:${id}:`;
    this.#mark = `captionmill-saved:${id}`;
    this.#store(() => {
      localStorage.setItem(this.#mark, localStorage.getItem(this.#mark) ?? "0"); // fails where nothing can be kept
      this.#savedAt = Number(localStorage.getItem(this.#mark)) || 0;
      for (let number = 0; number < localStorage.length; number++) this.#read(localStorage.key(number));
    });
  }

  /** The path that the browser keeps a decision about under `key`; null if it is none of these. */
  pathOf(key) {
    return key?.startsWith(this.#prefix) ? key.slice(this.#prefix.length) : null;
  }

  /** Take over what another window of this browser changed under `key`. */
  follow(key) {
    if (key === this.#mark) this.#savedAt = Number(localStorage.getItem(key)) || 0;
    this.#read(key);
  }

  get(path) { return this.#made.get(path); }
  has(path) { return this.#made.has(path); }
  paths() { return [...this.#made.keys()]; }

  /** The paths that the next undo, or redo, is about. */
  nextPaths(isRedo) {
    return ((isRedo ? this.#undone : this.#done).at(-1) ?? []).map(([path]) => path);
  }

  /** Make the changes, [path, decision or null] each, as one step. */
  decide(changes) {
    const step = changes.map(([path, after]) => [path, this.#made.get(path) ?? null, after]);
    this.#done.push(step);
    this.#undone.length = 0;
    for (const [path, , after] of step) this.#put(path, after);
  }

  /** Take back the last step, or make the one again that was taken back last. */
  undo(isRedo) {
    const step = (isRedo ? this.#undone : this.#done).pop();
    (isRedo ? this.#done : this.#undone).push(step);
    for (const [path, before, after] of step) this.#put(path, isRedo ? after : before);
  }

  /** The decision `saved` is in the table, which has the caption `shown` now; a newer one is about that caption. */
  settle(path, saved, shown) {
    const made = this.#made.get(path);
    if (made && made !== saved) return this.#put(path, { ...made, shown });
    this.#made.delete(path);
    this.#store(() => localStorage.removeItem(this.#prefix + path));
  }

  /** What was decided until now is in a file or in the table. */
  markSaved() {
    this.#savedAt = Math.max(Date.now(), this.#savedAt);
    for (const made of this.#made.values()) this.#savedAt = Math.max(made.at, this.#savedAt);
    this.#taken.clear();
    this.#store(() => localStorage.setItem(this.#mark, String(this.#savedAt)));
  }

  /** The steps until now are in the table: to undo one is to decide against it, as `against` (path -> decision) has it,
   * and to redo one that was undone is to decide again. */
  rebase(against) {
    const seen = new Set(), isLast = ([path]) => !seen.has(path) && seen.add(path);
    const turn = change => against.has(change[0]) ? [change[0], against.get(change[0]), null] : change;
    this.#done = this.#done.toReversed().map(step => step.filter(isLast).map(turn)).filter(step => step.length).toReversed();
    seen.clear();
    const again = ([path, before, after]) => { // null stood for what the table had before
      const made = against.get(path);
      return made ? [path, null, after ? { ...after, shown: made.shown } : made] : [path, before, after];
    };
    this.#undone = this.#undone.toReversed().map(step => step.filter(isLast).map(again)).filter(step => step.length).toReversed();
  }

  /** How many decisions were made, or taken back, since they were saved; of those made, the ones that count. */
  countUnsaved(counts = () => true) {
    let count = this.#taken.size;
    for (const [path, made] of this.#made) if (made.at > this.#savedAt && counts(path)) count += 1;
    return count;
  }

  #put(path, decision) {
    const before = this.#made.get(path);
    this.#made.delete(path); // so that the last one is the newest
    if (decision === null) {
      if (before && before.at <= this.#savedAt) this.#taken.add(path);
      this.#store(() => localStorage.removeItem(this.#prefix + path));
      return;
    }
    this.#taken.delete(path);
    const made = { ...decision, at: Math.max(Date.now(), this.#savedAt + 1) };
    this.#made.set(path, made);
    this.#store(() => localStorage.setItem(this.#prefix + path, JSON.stringify(made)));
  }

  #read(key) {
    const path = this.pathOf(key);
    if (path === null) return;
    this.#made.delete(path);
    try {
      const { decision, caption, shown, at } = JSON.parse(localStorage.getItem(key));
      if (DECISIONS.includes(decision)) {
        this.#made.set(path, { decision, caption: String(caption), shown: String(shown), at: Number(at) || 0 });
      }
    } catch { /* none: it was taken back, or is not ours */ }
  }

  #store(action) { // a page that lies on a disk may have no storage, or a full one
    try { action(); } catch { this.isKept = false; }
  }
}

const decisions = new Decisions(document.querySelector("main").dataset.id);

// ---- what they mean for a row of the table

/** The decision about the caption that the table has; one about an earlier caption does not count. */
function decisionOf(row) {
  const made = decisions.get(row.path);
  return made?.shown === row.caption ? made : null;
}

function isOutdated(row) {
  return decisions.has(row.path) && decisionOf(row) === null;
}

/** "corrected", "accepted", "later", or "" if nobody has decided. */
function stateOf(row) {
  const made = decisionOf(row);
  return made?.decision === "undecided" ? "" : made?.decision ?? row.status;
}

function isReviewed(row) {
  const state = stateOf(row);
  return state === "corrected" || state === "accepted";
}

/** What is suspicious about the caption; a caption that a person wrote or accepted is not. */
function flagsOf(row) {
  return isReviewed(row) ? [] : row.flags;
}

function captionOf(row) {
  const made = decisionOf(row);
  return made?.decision === "corrected" ? made.caption : made?.decision === "undecided" ? row.made?.caption ?? row.caption : row.caption;
}

function isFailed(row) {
  return row.error !== null && !captionOf(row);
}

/** Whether the table shows what was decided. */
function isSettled(row) {
  const made = decisions.get(row.path);
  return made?.decision === row.status && row.caption === (made.decision === "corrected" ? made.caption : made.shown);
}

// ---- as a file

/** The decisions about `rows` as CSV (RFC 4180, with a byte order mark); no cell of it is a formula. */
function spellDecisions(rows) {
  const spell = cell => {
    const guarded = /^[=+\-@\t\r\n']/.test(cell) ? `'${cell}` : cell;
    return /[",;\t\r\n]|^ | $/.test(guarded) ? `"${guarded.replaceAll('"', '""')}"` : guarded;
  };
  const lines = rows.map(row => {
    const made = decisionOf(row);
    return [row.path, made.decision, made.decision === "corrected" ? made.caption : "", made.shown].map(spell).join(",");
  });
  return `\ufeff${[COLUMNS.join(","), ...lines].join("\n")}\n`;
}

/** The decisions in a file that `spellDecisions` wrote, also as a spreadsheet saves it; an Error if it is another one. */
function parseDecisions(text) {
  const content = text.replace(/^\ufeff/, ""), separator = /^[^\r\n]*?([,;\t])/.exec(content)?.[1] ?? ",";
  const cells = new RegExp(`(?:"((?:[^"]|"")*)"|([^"${separator}\\r\\n]*))(${separator}|\\r\\n|\\n|\\r|$)`, "gy");
  const lines = [[]];
  let end = 0;
  for (const [whole, quoted, plain, mark] of content.matchAll(cells)) {
    if (!whole) break;
    end += whole.length;
    lines.at(-1).push((quoted?.replaceAll('""', '"') ?? plain).replace(/^'(?=[=+\-@\t\r\n'])/, ""));
    if (mark !== separator) lines.push([]);
  }
  const [header, ...others] = lines, places = COLUMNS.map(name => header.indexOf(name));
  if (places.includes(-1)) throw new Error(`it is no file of decisions: it needs the columns ${COLUMNS.join(", ")}`);
  if (end < content.length) throw new Error(`line ${lines.length} is not CSV`);
  return others.filter(line => line.length > 1).map((line, number) => {
    const [path, decision, caption, shown] = places.map(place => line[place] ?? "");
    if (!DECISIONS.includes(decision) || (decision === "corrected" && !tidy(caption))) {
      throw new Error(`row ${number + 1}: ${decision} “${caption}” is no decision`);
    }
    return { path, decision, caption: decision === "corrected" ? tidy(caption) : "", shown };
  });
}
