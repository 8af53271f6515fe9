import { BUILD, EXISTS, WAYS } from "./link.js";
import { order } from "./ring.js";

const DEFAULTS = {
  since: null,
  types: [],
  credentials: "same-origin",
  openTimeout: 10_000,
  maxDelay: 30_000,
  share: "auto",
};
const PREFIX = "/api/v1/events";
const OURS = /\/client(\.classic)?\.js(\?|$)/;
const BEAT = 1_000;
const MISSED = 2;
const PAGE = Math.random();

/** Return `connect` for a script, which is also the worker's. */
export const connector = (script) => (options) => new Client(script, { ...DEFAULTS, ...options });

/** What one page has of a stream: its handlers, and its cursor in the order of events. */
class Client {
  #options;
  #shared;
  #ways = ["own"];
  #link = null;
  #joined = false;
  #proven = false;
  #missed = 0;
  #token = null;
  #handlers = new Map();
  #listeners = new Set();
  #state = { name: "connecting", attempt: 0, reason: null, since: Date.now() };
  #cursor;
  #tabs = 1;
  #heardAt = null;
  #lastEventAt = null;
  #delivered = 0;
  #gaps = 0;
  #beat = null;
  #listening = new AbortController();

  constructor(script, options) {
    const prefix = OURS.test(script.url) ? new URL(".", script.url).href.slice(0, -1) : PREFIX;
    const url = new URL(options.url ?? prefix, globalThis.location).href.replace(/\/$/, "");
    const { token, ticket, types, credentials, openTimeout, maxDelay } = options;
    this.#options = options;
    this.#cursor = options.since;
    this.#shared = {
      // A bundle of the page is no script for a worker; and ?v= would part those that are one.
      script: url === prefix
        ? { ...script, url: script.url.replace(/\?.*/, "") }
        : { url: `${url}/client.js`, type: "module" },
      options: {
        url,
        types: [types].flat().sort().join(","),
        token: typeof token === "function" || (token ?? null),
        ticket: Boolean(ticket),
        credentials,
        openTimeout,
        maxDelay,
      },
    };
    this.#begin();
  }

  /** Call handler(data, event) for a type, a pattern such as "incident.*", or "*". */
  on(type, handler) {
    const handlers = this.#handlers.get(type) ?? new Set();
    this.#handlers.set(type, handlers.add(handler));
    return () => handlers.delete(handler);
  }

  /** Call listener() at the first position, and whenever the state, gaps or tabs have changed. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Everything a footer or a test wants to know. */
  snapshot() {
    return {
      ...this.#state,
      position: this.#cursor,
      delivered: this.#delivered,
      gaps: this.#gaps,
      heardAt: this.#heardAt,
      lastEventAt: this.#lastEventAt,
      lastEventAge: this.#lastEventAt && Date.now() - this.#lastEventAt,
      tabs: this.#tabs,
      streams: Number(this.#state.name === "live"),
      way: this.#ways[0],
      leads: Boolean(this.#link?.leads?.()),
    };
  }

  /** End the connection, as a network might, and connect anew; of all tabs that share it. */
  reconnect() {
    this.#post("reconnect");
  }

  /** End it for good. */
  close() {
    this.#listening.abort();
    this.#leave();
    this.#show({ name: "closed", attempt: 0, reason: null, since: Date.now() });
  }

  // The way to a hub.

  async #begin() {
    const { openTimeout } = this.#shared.options;
    const late = new Promise((resolve) => setTimeout(resolve, openTimeout, null));
    const who = await Promise.race([this.#who().catch(() => null), late]);
    if (who !== null) {
      const key = JSON.stringify([this.#shared.options, who]);
      const name = `noc-realtime-${BUILD}-${await digest(key)}`;
      Object.assign(this.#shared, { key, name });
      this.#ways = Object.keys(WAYS).filter((way) => EXISTS[way]());
    }
    if (this.#listening.signal.aborted) return;
    this.#listen();
    this.#join();
  }

  /** Return whose stream it is, so that no two users ever share one; null to share it with nobody. */
  async #who() {
    const { share, token, ticket } = this.#options;
    if (!share) return null;
    if (typeof share === "string" && share !== "auto") return share;
    if (typeof token === "function") {
      this.#token = await token({ refresh: false, signal: this.#listening.signal });
      return subject(this.#token);
    }
    // Tickets do not tell whose they are; the page does, with `share: true`.
    return ticket && share === "auto" ? null : "";
  }

  #listen() {
    const { signal } = this.#listening;
    const on = (target, name, react) => target?.addEventListener?.(name, react, { signal });
    const leave = () => this.#leave();
    const join = () => this.#link || this.#join();
    on(globalThis, "pagehide", leave);
    on(globalThis, "pageshow", join);
    on(globalThis.document, "freeze", leave);
    on(globalThis.document, "resume", join);
    const wake = () => this.#post("wake");
    on(globalThis, "online", wake);
    // Who looks at it again may have logged in elsewhere, or mended what was broken.
    on(globalThis.document, "visibilitychange", () => document.hidden || wake());
    on(globalThis, "offline", () => this.#post("offline"));
  }

  #join(steal = false) {
    let link = null;
    const mine = (react) => (message) => this.#link === link && react(message);
    const receive = mine((message) => this.#receive(message));
    const broken = mine(() => this.#broken());
    try {
      link = WAYS[this.#ways[0]](this.#shared, receive, broken, steal);
    } catch {
      return this.#turn();
    }
    this.#link = link;
    this.#joined = false;
    this.#missed = 0;
    clearTimeout(this.#beat);
    this.#beat = setInterval(() => this.#check(), BEAT);
    this.#enter();
  }

  #enter() {
    const { key, options } = this.#shared;
    const token = this.#token;
    const wire = Boolean(this.#options.onWire);
    this.#token = null;
    this.#post("join", { build: BUILD, key, options, page: PAGE, since: this.#cursor, token, wire });
  }

  #leave() {
    this.#post("bye");
    // Clears either kind of timer: WHATWG HTML, section 8.7.
    clearTimeout(this.#beat);
    this.#link?.close();
    this.#link = null;
  }

  /** Find out whether the hub is still there, or there at last: its script may be on the way. */
  #check() {
    const { openTimeout } = this.#shared.options;
    const most = this.#joined ? MISSED : Math.max(MISSED, openTimeout / BEAT);
    if (this.#missed >= most) return this.#broken();
    this.#missed += 1;
    this.#post("here");
  }

  #broken() {
    // A way that worked will again: the script of a new worker may be as far away as the stream.
    if (!this.#proven) return this.#turn();
    const wait = this.#joined ? 0 : BEAT * (1 + Math.random());
    this.#leave();
    this.#lose();
    this.#beat = setTimeout(() => this.#join(true), wait);
  }

  /** Take the next way. */
  #turn() {
    this.#leave();
    this.#ways.shift();
    this.#proven = false;
    this.#join();
  }

  #post(kind, body) {
    this.#link?.post({ kind, ...body });
  }

  #receive({ kind, ...body }) {
    this.#missed = 0;
    if (kind === "check") this.#post("here");
    else if (kind === "unknown") this.#enter();
    else if (kind === "refused") this.#turn();
    else if (kind === "joined") this.#entered(body);
    else if (kind === "state") this.#show(body.state);
    else if (kind === "tabs") this.#count(body.tabs);
    else if (kind === "event") this.#deliver(body.event);
    else if (kind === "mark") this.#advance(body.position);
    else if (kind === "gap") this.#gap(body);
    else if (kind === "ask") this.#give(body);
    else if (kind === "wire") this.#tell(() => this.#options.onWire?.(body.text));
  }

  #entered({ state, heardAt }) {
    this.#joined = this.#proven = true;
    this.#heardAt = heardAt ?? this.#heardAt;
    this.#show(state);
  }

  async #give({ number, what, refresh }) {
    const { signal } = this.#listening;
    const answer = { number };
    try {
      const given = await this.#options[what]({ refresh, signal });
      answer.value = given && String(given.url ?? given);
    } catch (error) {
      answer.error = String(error?.message ?? error);
    }
    this.#post("given", answer);
  }

  // What the page is told.

  #advance(position) {
    this.#heardAt = Date.now();
    const begins = this.#cursor === null;
    // A cursor may be ahead of a hub, never go back.
    if (begins || !(order(position, this.#cursor) < 0)) this.#cursor = position;
    if (begins) this.#changed();
  }

  #count(tabs) {
    this.#tabs = tabs;
    this.#changed();
  }

  #gap(gap) {
    this.#heardAt = Date.now();
    this.#cursor = gap.position;
    this.#gaps += 1;
    this.#tell(() => this.#options.onGap?.(gap));
    this.#dispatch("gap", gap);
    this.#changed();
  }

  #deliver(event) {
    if (this.#cursor !== null && order(event.id, this.#cursor) <= 0) return;
    this.#cursor = event.id;
    this.#delivered += 1;
    this.#heardAt = this.#lastEventAt = Date.now();
    const parts = event.type.split(".");
    const patterns = parts.slice(0, -1).map((_, i) => `${parts.slice(0, i + 1).join(".")}.*`);
    for (const pattern of [event.type, ...patterns.reverse(), "*"]) {
      for (const handler of this.#handlers.get(pattern) ?? []) {
        this.#tell(() => handler(event.data, event));
      }
    }
    this.#dispatch(event.type, event);
  }

  #lose() {
    this.#show({ name: "reconnecting", attempt: 0, reason: "handover", since: Date.now() });
  }

  #show(state) {
    const before = this.#state;
    if (before.name === "closed") return;
    // To this page the first try of another hub is not the first.
    if (state.name === "connecting" && before.name !== "connecting") return this.#lose();
    const same = ["name", "attempt", "reason"].every((key) => before[key] === state[key]);
    if (same) return;
    if (state.name === "live") this.#heardAt = Date.now();
    this.#state = state;
    this.#tell(() => this.#options.onState?.(state));
    this.#dispatch("state", state);
    this.#changed();
  }

  #changed() {
    for (const listener of this.#listeners) this.#tell(listener);
  }

  #dispatch(name, detail) {
    const { dom } = this.#options;
    if (!dom) return;
    const event = new CustomEvent(`noc:${name}`, { detail, bubbles: true });
    (dom === true ? document : dom).dispatchEvent(event);
  }

  /** Run the page's code; what it throws is its own, and no reason to stop. */
  #tell(call) {
    try {
      call();
    } catch (error) {
      setTimeout(() => {
        throw error;
      });
    }
  }
}

/** Return whom a JWT is for, which stays when it is renewed; any other token names itself. */
function subject(token) {
  try {
    const [, payload] = token.split(".");
    const { sub } = JSON.parse(atob(payload.replace(/-/g, "+").replace(/_/g, "/")));
    if (sub !== undefined) return `sub ${sub}`;
  } catch {
    // No JWT.
  }
  return token ?? null;
}

/** Return what stands for a text that may hold a token; on plain http there is nobody to name it to. */
async function digest(text) {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) return "";
  const bytes = new Uint8Array(await subtle.digest("SHA-256", new TextEncoder().encode(text)));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
