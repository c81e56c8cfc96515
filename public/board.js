/** The page: what people see and do. The connection is stream.js, the messages timeline.js. */

import * as rooms from "./rooms.js";
import { Refusal, Session, call, recall, remember, unguessable } from "./session.js";
import { Stream } from "./stream.js";
import { Timeline, parse, portray } from "./timeline.js";

const LOOK_EVERY = 5_000;
const NEAR_BOTTOM = 60;
const QUIET = 300;
const HISTORY_TAKES_AT_MOST = 2_000;
const NOTICE_STAYS = 6_000;
const LONGEST = 4_000;

const at = (id) => document.getElementById(id);
const copy = (template) => at(template).content.firstElementChild.cloneNode(true);
const scroller = at("scroller");
const composer = at("text");

const session = new Session();
const drafts = []; // Written but not confirmed, of every room.
let sending = Promise.resolve(); // The last attempt to send one.
const unsent = new Map(); // Half-written text per room, while another room is open.

let room = "";
let stream = null;
let timeline = null;

/* ---- Rooms ---------------------------------------------------------------------------------------------- */

function enter(next) {
  if (next === room) return;
  unsent.set(room, composer.value);
  room = next;
  stream?.close();
  at("title").textContent = room;
  at("people").textContent = "";
  composer.value = unsent.get(room) ?? "";
  grow();
  composer.placeholder = `Message #${room}`;
  document.querySelector("label[for=text]").textContent = `Message to ${room}`;
  notify("");
  showState("connecting");
  forgetUnread();
  listRooms();
  timeline = new Timeline(at("messages"));
  listDrafts();
  arrive();
  stream = new Stream(room, { message: receive, gap: receiveGap, state: showState, unauthorised: signInAgain });
  lookAround();
}

function listRooms() {
  at("room-list").replaceChildren(
    ...rooms.visited(room).map((name) => {
      const item = copy("room-template");
      const link = item.querySelector("a");
      link.href = rooms.fragment(name);
      link.querySelector("bdi").textContent = name;
      if (name === room) link.setAttribute("aria-current", "page");
      link.addEventListener("click", leaveDrawer);
      item.dataset.room = name;
      return item;
    }),
  );
}

function leaveDrawer() {
  if (at("rooms").matches(":popover-open")) at("rooms").hidePopover();
  goOnTyping();
}

/** Where there is a real keyboard; on a phone one would jump up unasked. */
function goOnTyping() {
  if (!matchMedia("(pointer: fine)").matches) return;
  (at("join").hidden ? composer : at(at("with-token").open ? "token" : "name")).focus();
}

at("new-room").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = at("room-name");
  const name = rooms.normal(field.value);
  if (!name) return;
  field.setCustomValidity(rooms.objection(name));
  if (!field.reportValidity()) return;
  field.value = "";
  location.hash = rooms.fragment(name);
  leaveDrawer();
});
at("room-name").addEventListener("input", (event) => event.target.setCustomValidity(""));
addEventListener("hashchange", () => enter(rooms.current()));

/* ---- How many are here ---------------------------------------------------------------------------------- */

const barred = new Set(); // Rooms the hub keeps us out of: no use in asking about them again and again.
const newest = recall("newest", {}); // The newest event seen per room: a later one elsewhere is news.
let turn = 0;

addEventListener("pagehide", () => remember("newest", newest));

async function look(name) {
  if (barred.has(name)) return;
  const answer = await call("GET", rooms.path(name)).catch((refusal) => {
    if (refusal.status === 403) barred.add(name);
    return null;
  });
  if (name === room && answer) stream.begin(answer.floor);
  const item = [...at("room-list").children].find((one) => one.dataset.room === name);
  if (!item) return;
  const people = answer?.subscribers ?? 0;
  const count = item.querySelector(".count");
  count.textContent = people || "";
  count.setAttribute("aria-label", people ? `${people} here` : "");
  item.classList.toggle("news", name !== room && Boolean(answer?.last_event_id) && answer.last_event_id !== newest[name]);
  if (name === room) at("people").textContent = people === 1 ? "only you here" : people ? `${people} here` : "";
}

/** At the other rooms; at this one as soon as its stream is live. */
function lookAround() {
  for (const name of rooms.visited(room)) if (name !== room) look(name);
}

// This room every time and the others by turns: the cost does not grow with the list of rooms.
setInterval(() => {
  if (document.hidden) return;
  timeline.relabel();
  remember("newest", newest);
  look(room);
  const others = rooms.visited(room).filter((name) => name !== room);
  turn += 1;
  if (others.length) look(others[turn % others.length]);
  session.refresh();
}, LOOK_EVERY);

/* ---- Messages arrive ------------------------------------------------------------------------------------ */

let settled = false; // Is what comes now news, rather than history?
let arrival = 0;
let quiet = 0;

function arrive() {
  settled = false;
  following = true;
  at("log").setAttribute("aria-live", "off");
  at("beginning").lastElementChild.textContent = "";
  scroller.classList.remove("empty");
  clearTimeout(arrival);
  clearTimeout(quiet);
}

function settle() {
  settled = true;
  clearTimeout(arrival);
  clearTimeout(quiet);
  at("log").setAttribute("aria-live", "polite");
  showBeginning();
}

function showBeginning() {
  at("beginning").lastElementChild.textContent = timeline.empty
    ? "Nobody has said anything here yet. Break the ice!"
    : "As far back as this room remembers.";
  scroller.classList.toggle("empty", timeline.empty);
}

function receive(id, data) {
  newest[room] = id;
  show(id, parse(data));
}

function show(id, message) {
  const own = session.isOwn(message.author);
  const draft = own && drafts.find((one) => one.message.nonce === message.nonce && one.room === room);
  if (draft) discard(draft);
  if (!timeline.add(id, message, own)) return;
  if (own && settled) following = true;
  if (!settled) {
    clearTimeout(quiet);
    quiet = setTimeout(settle, QUIET);
    return;
  }
  showBeginning();
  if (own) return;
  if (!following) showNewer(newer + 1);
  if (document.hidden) showUnread(unread + 1);
}

function receiveGap(id, before) {
  timeline.addGap(id, before);
  const lost = at("notice").dataset.tone === "lost";
  notify(lost ? "Connected again, but some messages were missed." : "Some messages were missed.", "gap");
}

/* ---- Staying at the end, unless someone reads further up ------------------------------------------------- */

let following = true;
let newer = 0;
let lastTop = 0;

function follow() {
  scroller.classList.toggle("following", following);
  if (following) scroller.scrollTop = scroller.scrollHeight;
}

// Once per frame, however many messages came in it; also when the keyboard of a phone or a growing composer
// takes its space from the messages.
const sizes = new ResizeObserver(follow);
for (const element of [scroller, ...scroller.children]) sizes.observe(element);

function showNewer(count) {
  newer = count;
  at("newer").hidden = count === 0;
  at("newer").firstElementChild.textContent = count === 1 ? "1 new message" : `${count} new messages`;
}

scroller.addEventListener("scroll", () => {
  const below = scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;
  if (below < NEAR_BOTTOM) {
    following = true;
    showNewer(0);
  } else if (scroller.scrollTop < lastTop) {
    // Only a move upwards is a person's; growing content also leaves the end behind.
    following = false;
  }
  lastTop = scroller.scrollTop;
  scroller.classList.toggle("following", following);
}, { passive: true });

at("newer").addEventListener("click", () => {
  following = true;
  showNewer(0);
  follow();
  scroller.focus({ preventScroll: true });
});

/* ---- The title counts what was said while nobody looked -------------------------------------------------- */

let unread = 0;

function showUnread(count) {
  unread = count;
  document.title = `${count ? `(${count}) ` : ""}${room} · trio_sse`;
}

const forgetUnread = () => showUnread(0);

/* ---- The connection -------------------------------------------------------------------------------------- */

const WORDS = { live: "live", lost: "reconnecting", refused: "not connected", connecting: "connecting" };
let wasLost = false;
let wasLive = false;
let noticeTimer = 0;

/** A line under the heading, read out politely; `tone` is "lost", "gap", "good" or nothing. */
function notify(text, tone = "") {
  clearTimeout(noticeTimer);
  if (at("status").textContent !== text) at("status").textContent = text;
  at("notice").dataset.tone = text && tone;
  at("try-now").hidden = tone !== "lost" || at("link").dataset.state !== "lost";
  if (tone === "good" || tone === "gap") noticeTimer = setTimeout(notify, NOTICE_STAYS, "");
}

function showState(state, refusal) {
  at("link").dataset.state = state;
  at("link").firstElementChild.textContent = WORDS[state];
  if (state === "lost") {
    notify(wasLive ? "Connection lost. Reconnecting…" : "Cannot reach the server. Trying again…", "lost");
    at("people").textContent = "";
    wasLost = true;
  } else if (state === "refused") {
    wasLost = false;
    barred.add(room);
    // The hub's own words are for those who write programs.
    const words = { 401: "This room is not open to everybody.", 403: "This room is private: you are not allowed in." };
    notify(words[refusal.status] ?? refusal.message, "lost");
    if (refusal.status === 401) {
      if (session.sub) askAgain("Please sign in again.");
      else ask({ problem: "Please sign in to read it." });
    }
  } else if (state === "live") {
    if (!settled) arrival = setTimeout(settle, HISTORY_TAKES_AT_MOST);
    if (!settled) quiet = setTimeout(settle, QUIET);
    // The hub tells of a gap first thing: a moment's silence means that there is none.
    const words = wasLive ? "Connected again. Nothing was missed." : "Connected.";
    if (wasLost) noticeTimer = setTimeout(notify, QUIET, words, "good");
    else notify("");
    wasLost = false;
    wasLive = true;
    barred.delete(room);
    look(room);
    checkSession();
  }
}

at("try-now").addEventListener("click", () => {
  stream.open();
  (at("composer").hidden ? scroller : composer).focus();
});
addEventListener("online", () => stream.open());
addEventListener("offline", () => showState("lost"));
addEventListener("pageshow", (event) => {
  if (event.persisted) stream.open();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  forgetUnread();
  stream.hurry();
  look(room);
  lookAround();
});

/* ---- Writing --------------------------------------------------------------------------------------------- */

function send() {
  const text = composer.value.replace(/^\s*\n|\s+$/g, "");
  if (!text.trim() || composer.value.length > LONGEST) return;
  composer.value = "";
  grow();
  // The nonce tells its echo, and a second attempt at what had arrived after all, from another message.
  const message = { name: session.name, author: session.sub, text, nonce: unguessable() };
  const draft = { room, message, element: copy("draft-template") };
  draft.element.querySelector(".text").textContent = text;
  draft.element.querySelector(".retry").addEventListener("click", () => deliver(draft));
  draft.element.querySelector(".edit").addEventListener("click", () => {
    discard(draft);
    composer.value = [text, composer.value].filter(Boolean).join("\n");
    grow();
    composer.focus();
  });
  drafts.push(draft);
  listDrafts();
  following = true;
  deliver(draft);
}

/** One after another: requests at the same time may overtake each other, and what is said first shall stand first. */
function deliver(draft) {
  setFate(draft, "");
  const attempt = () => publish(draft);
  sending = sending.then(attempt, attempt);
}

function setFate(draft, text) {
  draft.element.classList.toggle("failed", Boolean(text));
  draft.element.querySelector("[role=status]").textContent = text;
  for (const button of draft.element.querySelectorAll("button")) button.hidden = !text;
}

async function publish(draft) {
  const post = () => call("POST", rooms.path(draft.room), { json: draft.message, nonce: draft.message.nonce });
  try {
    const { id } = await post().catch(async (refusal) => {
      if (refusal.status !== 401 || !(await session.renew())) throw refusal;
      Object.assign(draft.message, { name: session.name, author: session.sub });
      return post();
    });
    discard(draft);
    if (draft.room === room) show(id, draft.message);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    setFate(draft, `Not sent: ${error.message}`);
    if (error.status === 401) askAgain(error.message, session.withToken);
  }
}

function discard(draft) {
  const index = drafts.indexOf(draft);
  if (index >= 0) drafts.splice(index, 1);
  draft.element.remove();
}

function listDrafts() {
  at("outbox").replaceChildren(...drafts.filter((draft) => draft.room === room).map((draft) => draft.element));
}

function grow() {
  // Rather than cut off what was pasted, say how much of it is too much.
  const over = composer.value.length - LONGEST;
  at("too-long").textContent = over > 0 ? `Too long by ${over} characters.` : "";
  if (CSS.supports("field-sizing", "content")) return;
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight}px`;
}

composer.addEventListener("input", grow);
composer.addEventListener("keydown", (event) => {
  // While composing (Japanese, accents …) Enter accepts the suggestion. 229 is how Safari says so.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
  composer.focus();
});

/* ---- Who we are ------------------------------------------------------------------------------------------ */

function showMe() {
  const name = session.sub ? session.name : "";
  at("me-name").textContent = name || "Not signed in";
  const kind = session.withToken ? (session.expired ? "session ended" : "with a token") : "guest";
  at("me-kind").textContent = name ? kind : "reading along";
  at("rename").hidden = !name;
  portray(at("me-avatar"), name, session.sub);
}

/** Ask for a name (or a token) in place of the composer, so that the room stays readable meanwhile. */
function ask({ problem = "", wantsToken = false, optional = false } = {}) {
  at("composer").hidden = true;
  at("join").hidden = false;
  at("join-title").textContent = optional ? "Change your name" : "What shall we call you?";
  at("join-button").textContent = optional ? "Save" : "Join";
  at("cancel").hidden = at("sign-out").hidden = !optional;
  at("join-problem").textContent = problem;
  at("name").value ||= session.name;
  at("with-token").open ||= wantsToken;
  goOnTyping();
}

/** A room that is open to everybody opens also for somebody whose session is gone, who should know. */
async function checkSession() {
  if (!session.sub || (await session.holds()) || !session.sub) return;
  if (await signInAgain().catch(() => true)) return;
  askAgain("Your session has ended. Please sign in again.");
}

/** Somebody whom the hub no longer knows. */
function askAgain(problem, wantsToken = true) {
  if (session.withToken) session.end();
  showMe();
  ask({ problem, wantsToken });
}

function stopAsking() {
  barred.clear();
  at("join").hidden = true;
  at("composer").hidden = false;
  at("token").value = "";
  at("with-token").open = false;
  at("join-problem").textContent = "";
  showMe();
}

async function signInAgain() {
  const again = await session.renew();
  if (again) stopAsking();
  return again;
}

at("join").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = at("name").value.normalize("NFC").trim();
  const token = at("token").value.trim();
  const complain = (text, field) => {
    at("join-problem").textContent = text;
    field.focus();
  };
  if (!name && !token) return complain("Please type a name first.", at("name"));
  if (!/^[\x21-\x7E]*$/.test(token)) return complain("An access token has no spaces or accents.", at("token"));
  at("join-button").disabled = true;
  try {
    await session.signIn(name, token);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status !== 401 && !token) return complain(error.message, at("name"));
    at("with-token").open = true;
    return complain(token ? error.message : "Guests are not let in here. Please paste an access token.", at("token"));
  } finally {
    at("join-button").disabled = false;
  }
  stopAsking();
  composer.focus();
  if (at("link").dataset.state !== "live") stream.open();
});

at("rename").addEventListener("click", () => {
  if (at("rooms").matches(":popover-open")) at("rooms").hidePopover();
  at("name").value = session.name;
  ask({ optional: true });
  at("name").select();
});
at("cancel").addEventListener("click", () => {
  stopAsking();
  composer.focus();
});
at("join").addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("cancel").hidden) at("cancel").click();
});
at("sign-out").addEventListener("click", async () => {
  try {
    await session.signOut();
  } catch (error) {
    at("join-problem").textContent = error.message;
    return;
  }
  showMe();
  ask();
  stream.open();
});
at("skip").addEventListener("click", () => (at("composer").hidden ? at("name") : composer).focus());

/* ---- Here we go ------------------------------------------------------------------------------------------ */

showMe();
if (session.sub && !(session.withToken && session.expired)) stopAsking();
else ask({ problem: session.sub ? "Your session has ended." : "", wantsToken: session.withToken });
enter(rooms.current());
goOnTyping();
