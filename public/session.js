/**
 * Requests to the hub, and who we are to it. The session itself is a cookie no script can read; what is kept
 * here is only what the page needs to say "you" and to sign in again when the cookie has expired.
 */

const PATIENCE = 15_000;
const TRY_AGAIN = 60_000; // When a session could not be renewed.

/** A request that did not work out; `status` is 0 when there was no answer at all. */
export class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }

  /** Would waiting help? */
  get passing() {
    return [0, 408, 429].includes(this.status) || this.status >= 500;
  }
}

/** With a `nonce` the hub publishes what it is sent again, because the answer got lost, only once. */
export async function call(method, path, { json, token, nonce } = {}) {
  const headers = {};
  if (json !== undefined) headers["content-type"] = "application/json";
  if (token) headers.authorization = `Bearer ${token}`;
  if (nonce) headers["idempotency-key"] = nonce;
  const signal = AbortSignal.timeout(PATIENCE);
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: JSON.stringify(json), cache: "no-store" });
    if (response.ok) return response.status === 204 ? null : await response.json();
  } catch {
    throw new Refusal(0, "The server did not answer.");
  }
  const problem = await response.json().catch(() => null);
  throw new Refusal(response.status, problem?.detail || problem?.title || `The server answered ${response.status}.`);
}

/** Not randomUUID(), which a page on plain http: in a local network does not have. */
export function unguessable() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Storage can be switched off, full, or edited by hand; the board works without it. */
export function recall(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`board.${key}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(key, value) {
  try {
    localStorage.setItem(`board.${key}`, JSON.stringify(value));
  } catch {
    // Then it is forgotten with the page.
  }
}

export class Session {
  #kept = { name: "", sub: "", withToken: false, expires: 0, renewFrom: 0, ...recall("session", {}) };
  // Every guest session has a `sub` of its own: one's own messages of yesterday carry yesterday's.
  #own = new Set(recall("own", []));
  #renewal = null;

  get name() {
    return this.#kept.name;
  }

  get sub() {
    return this.#kept.sub;
  }

  get withToken() {
    return this.#kept.withToken;
  }

  get expired() {
    return this.#kept.expires * 1000 < Date.now();
  }

  isOwn(author) {
    return this.#own.has(author);
  }

  /** Sign in as a guest or, with a token, as whoever the token says. The token is not kept. */
  async signIn(name, token = "") {
    const answer = await call("POST", "/session", { json: name ? { name } : {}, token });
    this.#keep(answer, name, Boolean(token));
  }

  #keep(answer, name, withToken) {
    // A token need not say whose it is; this page still wants to know its own messages again.
    const sub = answer.sub || this.#kept.sub || `bearer-${unguessable()}`;
    const expires = answer.expires_at;
    const renewFrom = (Date.now() + expires * 1000) / 2; // Half of its life.
    this.#kept = { name: answer.name || name || sub, sub, withToken, expires, renewFrom };
    this.#own.delete(sub);
    this.#own.add(sub);
    remember("session", this.#kept);
    remember("own", [...this.#own].slice(-50));
  }

  async signOut() {
    await call("DELETE", "/session");
    this.#kept = { ...this.#kept, sub: "", withToken: false, expires: 0 };
    remember("session", this.#kept);
  }

  /** Whether the hub still takes the sender of this page's requests for somebody; not after a new key, for instance. */
  async holds() {
    try {
      return (await call("GET", "/session")).expires_at !== null;
    } catch (refusal) {
      return refusal.status !== 401;
    }
  }

  /** The hub no longer takes the token for anybody's; its bearer may have another. */
  end() {
    this.#kept = { ...this.#kept, expires: 0 };
    remember("session", this.#kept);
  }

  /** Let a guest's cookie be renewed, in time. It need not be this page's: others of this browser share it. */
  async refresh() {
    if (!this.sub || this.withToken || this.expired || Date.now() < this.#kept.renewFrom) return;
    this.#kept.renewFrom = Date.now() + TRY_AGAIN;
    const answer = await call("POST", "/session", { json: {} }).catch(() => null);
    if (answer) this.#keep(answer, this.name, false);
  }

  /**
   * Sign in again under the remembered name; false when a person has to be asked. Someone who came with a
   * token is always asked, rather than turned into a guest behind their back.
   */
  renew() {
    if (!this.sub || this.withToken) return Promise.resolve(false);
    this.#renewal ??= this.signIn(this.name)
      .then(() => true, (refusal) => {
        // An outage is no reason to ask for the name again.
        if (refusal.passing) throw refusal;
        return false;
      })
      .finally(() => { this.#renewal = null; });
    return this.#renewal;
  }
}
