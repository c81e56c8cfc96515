/**
 * Rooms and their names. A room is a topic of the hub under the same name; the fragment of the page's
 * address says which one is open, so that a room can be shared as a link.
 */

import { recall, remember } from "./session.js";

export const LOBBY = "lobby";
const FIRST_VISIT = [LOBBY, "random", "help"];
const MOST = 12;

/** What is wrong with a name, in words for the person who typed it; "" when nothing is. */
export function objection(room) {
  if (new TextEncoder().encode(room).length > 256) return "This name is too long.";
  if (/[\p{Cc}\p{Cf}\p{Cs}]/u.test(room)) return "A room's name cannot have invisible characters.";
  if (room.split("/").some((part) => ["", ".", "..", "*", "**"].includes(part))) {
    return "Please choose another name: each part between slashes needs a word.";
  }
  return "";
}

/** The name as the hub wants it; people type `#help`, and the same ü can be typed in two ways. */
export function normal(typed) {
  return typed.normalize("NFC").trim().replace(/^#/, "");
}

const encoded = (room) => room.split("/").map(encodeURIComponent).join("/");

export const path = (room) => `/topics/${encoded(room)}`;
export const fragment = (room) => `#${encoded(room)}`;

/** The room in the address, or the lobby for an address that names none (or nothing sensible). */
export function current() {
  let room = LOBBY;
  try {
    room = normal(decodeURIComponent(location.hash)) || LOBBY;
  } catch {
    // A stray % in a link typed by hand.
  }
  return objection(room) ? LOBBY : room;
}

/** The rooms this person visits, in a steady order; the one visited longest ago makes way for a new one. */
export function visited(room) {
  const rooms = recall("rooms", FIRST_VISIT).filter((name) => typeof name === "string" && !objection(name));
  if (!rooms.includes(room)) rooms.push(room);
  while (rooms.length > MOST) rooms.splice(rooms[0] === LOBBY ? 1 : 0, 1);
  remember("rooms", rooms);
  return rooms;
}
