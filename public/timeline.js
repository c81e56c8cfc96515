/**
 * The messages of a room on the page: in the order of their ids, each once, the newest thousand.
 * Whatever came over the network becomes a text node, never markup.
 */

const MOST = 1_000;
const LONGEST_NAME = 60;
const LONGEST_TEXT = 10_000;
const GROUP_MS = 5 * 60_000;
const DAY_MS = 86_400_000;

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const calendar = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
const graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** What an event says: JSON of this board, or anything else (a `curl -d hello`) as plain text. */
export function parse(data) {
  try {
    const { name, author, text, nonce } = JSON.parse(data);
    if (typeof text === "string") return { name: string(name), author: string(author), text, nonce: string(nonce) };
  } catch {
    // Not JSON, or null.
  }
  return { name: "", author: "", text: data, nonce: "" };
}

const string = (value) => (typeof value === "string" ? value : "");

/** A person's initial, in a colour that goes with who they are rather than with what they call themselves. */
export function portray(avatar, name, author) {
  const [first] = graphemes.segment(name.trim());
  avatar.textContent = first?.segment.toLocaleUpperCase() ?? "";
  let hash = 0;
  for (const unit of author) hash = (Math.imul(hash, 31) + unit.codePointAt(0)) >>> 0;
  // Steps of the golden angle keep neighbours apart on the colour wheel.
  avatar.style.setProperty("--hue", String(Math.round((hash * 137.508) % 360)));
  avatar.classList.toggle("nobody", !author);
}

/** Milliseconds and sequence number of `1700000000000-3`. */
function position(id) {
  const [time, sequence] = id.split("-").map(Number);
  return Number.isFinite(time) ? [time, sequence || 0] : [0, 0];
}

const midnight = (time) => new Date(time).setHours(0, 0, 0, 0);

function dayName(time) {
  const days = Math.round((midnight(time) - midnight(Date.now())) / DAY_MS);
  return days > -2 ? relative.format(days, "day") : calendar.format(time);
}

export class Timeline {
  #list;
  #message = document.getElementById("message-template");
  #gap = document.getElementById("gap-template");
  #rows = [];
  #seen = new Set();
  #labelled = 0;

  constructor(list) {
    this.#list = list;
    list.replaceChildren();
  }

  get empty() {
    return this.#rows.length === 0;
  }

  /** Show a message; false when it is here already, as the same event or as another attempt to send it. */
  add(id, { name, author, text, nonce }, own) {
    const attempt = nonce && `${author} ${nonce}`;
    if (this.#seen.has(id) || this.#seen.has(attempt)) return false;
    const element = this.#message.content.firstElementChild.cloneNode(true);
    const [time, sequence] = position(id);
    const shown = (own ? "You" : name.trim().slice(0, LONGEST_NAME)) || "someone";
    element.classList.toggle("own", own);
    element.dataset.id = id;
    element.querySelector(".name").textContent = shown;
    element.querySelector(".text").textContent = text.slice(0, LONGEST_TEXT);
    portray(element.querySelector(".avatar"), shown, author);
    const stamp = element.querySelector("time");
    stamp.dateTime = new Date(time).toISOString();
    stamp.textContent = clock.format(time);
    stamp.title = exact.format(time);
    this.#insert({ element, time, sequence, keys: [id, attempt], voice: `${author} ${shown}`, since: time });
    return true;
  }

  /** Say that messages are missing between one id and another. */
  addGap(id, before) {
    const key = `gap ${before} ${id}`;
    if (this.#seen.has(key)) return;
    // A hub that lost its memory resumes from long ago, yet what is on the page came first.
    const [time, sequence] = position(before)[0] > position(id)[0] ? position(before) : position(id);
    const element = this.#gap.content.firstElementChild.cloneNode(true);
    this.#insert({ element, time, sequence, keys: [key], voice: null, since: time });
  }

  /** A page left open overnight: what was today is yesterday. */
  relabel() {
    if (this.#labelled !== midnight(Date.now())) this.#rows.forEach((_, index) => this.#label(index));
    this.#labelled = midnight(Date.now());
  }

  #insert(row) {
    let index = this.#rows.length;
    while (index > 0 && later(this.#rows[index - 1], row)) index -= 1;
    this.#list.insertBefore(row.element, this.#rows[index]?.element ?? null);
    this.#rows.splice(index, 0, row);
    for (const key of row.keys) if (key) this.#seen.add(key);
    this.#label(index);
    this.#label(index + 1);
    while (this.#rows.length > MOST) {
      const oldest = this.#rows.shift();
      oldest.element.remove();
      for (const key of oldest.keys) this.#seen.delete(key);
      this.#label(0);
    }
  }

  /** A row's heading depends on the row above: a new day, or a new voice, or the same one after a while. */
  #label(index) {
    const row = this.#rows[index];
    const day = row?.element.querySelector(".day");
    if (!day) return;
    const above = this.#rows[index - 1];
    const newDay = !above || midnight(above.time) !== midnight(row.time);
    const follows = !newDay && above.voice === row.voice && row.time - above.since < GROUP_MS;
    row.since = follows ? above.since : row.time;
    row.element.classList.toggle("follows", follows);
    day.hidden = !newDay;
    day.firstElementChild.textContent = newDay ? dayName(row.time) : "";
  }
}

const later = (a, b) => a.time > b.time || (a.time === b.time && a.sequence > b.sequence);
