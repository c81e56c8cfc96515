/**
 * One topic, listened to for as long as the page wants, whatever happens to the connection.
 *
 * EventSource reconnects by itself after a dropped connection, but any answer other than 200 (an expired
 * session, a proxy's 502) closes it for good. Then this class opens a new one, from its own cursor.
 */

import { call } from "./session.js";
import { path } from "./rooms.js";

const FIRST_WAIT = 1_000;
const LONGEST_WAIT = 30_000;
const EARLIEST = "earliest";

export class Stream {
  #topic;
  #on;
  #source = null;
  #cursor = EARLIEST;
  #failures = 0;
  #renewed = false;
  #timer = 0;

  /**
   * `on.message(id, data)`, `on.gap(id, before)` and `on.state(name, detail)`, where name is "live", "lost" or
   * "refused" (asking again will not help; a person has to do something). `on.unauthorised()` promises
   * whether it could sign in again.
   */
  constructor(topic, on) {
    this.#topic = topic;
    this.#on = on;
    this.open();
  }

  /** Open a connection now, in place of whatever there is. */
  open() {
    this.close();
    const query = new URLSearchParams({ topic: this.#topic, last_event_id: this.#cursor });
    const source = new EventSource(`/events?${query}`);
    this.#source = source;
    source.onopen = () => {
      this.#failures = 0;
      this.#renewed = false;
      this.#on.state("live");
    };
    source.onmessage = (event) => {
      this.#advance(event);
      this.#on.message(event.lastEventId, event.data);
    };
    source.addEventListener("trio-sse.gap", (event) => {
      const before = this.#cursor;
      this.#advance(event);
      this.#on.gap(event.lastEventId, before);
    });
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) this.#revive(source);
      else this.#on.state("lost");
    };
  }

  /**
   * The hub keeps what came after `floor`. A page that has had no event yet goes on from there rather than from
   * whatever is the earliest by then, and so is told when something was removed meanwhile.
   */
  begin(floor) {
    if (this.#cursor === EARLIEST && this.#source?.readyState === EventSource.OPEN) this.#cursor = floor;
  }

  /** Open a connection now unless one is open; for when there is reason to hope. */
  hurry() {
    if (this.#source && this.#source.readyState !== EventSource.OPEN) this.open();
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #advance(event) {
    if (event.lastEventId) this.#cursor = event.lastEventId;
  }

  /** An EventSource does not tell why it closed, so ask where the answer can be read. */
  async #revive(source) {
    const current = () => source === this.#source;
    try {
      await call("GET", path(this.#topic));
    } catch (refusal) {
      if (!current()) return;
      if (refusal.status === 401) {
        const again = !this.#renewed && (await this.#on.unauthorised().catch(() => null));
        if (!current()) return;
        if (again) {
          // Once per loss: a session that is refused again at once is not worth a loop.
          this.#renewed = true;
          return this.open();
        }
        if (again === false) return this.#on.state("refused", refusal);
      } else if (!refusal.passing) {
        return this.#on.state("refused", refusal);
      }
    }
    if (!current()) return;
    this.#on.state("lost");
    // Jitter, so that all the pages of a restarted server do not come back in the same instant.
    const wait = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#failures);
    this.#failures += 1;
    this.#timer = setTimeout(() => this.open(), wait * (0.5 + Math.random() / 2));
  }
}
