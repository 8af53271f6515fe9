/**
 * Live events of a flask_noc_realtime app, in any browser, without dependencies.
 *
 *     import { connect } from "/api/v1/events/client.js";
 *     const stream = connect({ since: position, types: ["incident.*"] });
 *     stream.on("incident.created", (incident) => show(incident));
 */

const DEFAULTS = {
  url: "/api/v1/events",
  since: null,
  types: [],
  credentials: "same-origin",
  openTimeout: 10_000,
  maxDelay: 30_000,
};
const FIRST_DELAY = 1_000;
const STABLE = 5_000;
const EVICTED_DELAY = 60_000;
const FAILURES_BEFORE_POLLING = 3;
const REMEMBERED = 4096;
const HEARTBEAT = 15_000;
const TICK = 500;

/** Open the stream of an app; see noc-realtime.d.ts for the options. */
export function connect(options = {}) {
  return new Stream(options);
}

/** Reads a text/event-stream: WHATWG HTML, section 9.2.6. */
export class EventParser {
  #rest = "";
  #begun = false;
  #data = [];
  #type = "";
  #id = "";
  #emit;
  #retry;

  constructor(emit, retry = () => {}) {
    this.#emit = emit;
    this.#retry = retry;
  }

  /** Take text, in whatever pieces it comes. */
  feed(text) {
    let rest = this.#rest + text;
    if (!this.#begun && rest) {
      this.#begun = true;
      if (rest[0] === "\ufeff") rest = rest.slice(1);
    }
    let at = 0;
    for (const { 0: end, index } of rest.matchAll(/\r\n|\r|\n/g)) {
      // The LF of a CRLF may be on the way.
      if (end === "\r" && index + 1 === rest.length) break;
      this.#line(rest.slice(at, index));
      at = index + end.length;
    }
    this.#rest = rest.slice(at);
  }

  #line(line) {
    if (!line) return this.#dispatch();
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.#retry(Number(value));
  }

  #dispatch() {
    const event = { type: this.#type || "message", data: this.#data.join("\n"), id: this.#id };
    const empty = !this.#data.length;
    this.#data = [];
    this.#type = "";
    if (!empty) this.#emit(event);
  }
}

/** Why a connection ended: `kind` is closed, lost, refused, unauthorized or offline. */
class Ended extends Error {
  constructor(kind, reason, delay = null) {
    super(reason);
    Object.assign(this, { kind, reason, delay });
  }
}

/** One position in the order of events, kept live by whatever way there is. */
class Stream {
  #options;
  #handlers = new Map();
  #listeners = new Set();
  #state = { name: "connecting", attempt: 0, reason: null, since: Date.now() };
  #position;
  #seen = new Set();
  #retry = FIRST_DELAY;
  #heartbeat = HEARTBEAT;
  #failures = 0;
  #openedAt = null;
  #heardAt = null;
  #lastEventAt = null;
  #delivered = 0;
  #gaps = 0;
  #closed = false;
  #refused = false;
  #connection = null;
  #poller = null;
  #wake = () => {};
  #listening = new AbortController();

  constructor(options) {
    this.#options = { ...DEFAULTS, ...options };
    this.#position = this.#options.since;
    this.#listen();
    this.#run();
  }

  /** Call handler(data, event) for a type, a pattern such as "incident.*", or "*". */
  on(type, handler) {
    const handlers = this.#handlers.get(type) ?? new Set();
    this.#handlers.set(type, handlers.add(handler));
    return () => handlers.delete(handler);
  }

  /** Call listener() whenever the state or the number of gaps has changed. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Everything a footer or a test wants to know. */
  snapshot() {
    return {
      ...this.#state,
      position: this.#position,
      delivered: this.#delivered,
      gaps: this.#gaps,
      heardAt: this.#heardAt,
      lastEventAt: this.#lastEventAt,
    };
  }

  /** End it for good. */
  close() {
    this.#closed = true;
    this.#listening.abort();
    this.#stopPolling();
    this.#connection?.abort(new Ended("closed", "close"));
    this.#wake();
    this.#show("closed", null);
  }

  // The way to stay live.

  async #run() {
    while (!this.#closed) {
      const ended = await this.#attempt();
      if (this.#closed) return;
      await this.#sleep(this.#after(ended));
    }
  }

  /** Be connected for as long as it goes; return how it ended. */
  async #attempt() {
    const connection = (this.#connection = new AbortController());
    this.#openedAt = null;
    this.#heardAt = Date.now();
    const watch = setInterval(() => this.#watch(connection), TICK);
    try {
      return await this.#stream(connection.signal);
    } catch (error) {
      const why = connection.signal.reason ?? error;
      return why instanceof Ended ? why : new Ended("lost", String(why.message ?? why));
    } finally {
      clearInterval(watch);
      connection.abort();
    }
  }

  async #stream(signal) {
    const url = await this.#streamUrl(signal);
    const response = await this.#fetch(url, "text/event-stream", signal);
    const kind = response.headers.get("Content-Type") ?? "";
    if (!kind.startsWith("text/event-stream")) throw new Ended("refused", "not a stream");
    let last = null;
    const parser = new EventParser(
      (event) => (last = this.#take(event) ?? last),
      (retry) => (this.#retry = retry),
    );
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (signal.aborted) throw signal.reason;
      if (done) return last ?? new Ended("lost", "ended");
      this.#heardAt = Date.now();
      parser.feed(decoder.decode(value, { stream: true }));
    }
  }

  /** Take what the stream says; return how it ended when it says that. */
  #take({ type, data, id }) {
    const body = JSON.parse(data);
    if (type === "stream.open") {
      this.#heartbeat = body.heartbeat ?? HEARTBEAT;
      this.#position = id;
      this.#openedAt = Date.now();
      this.#refused = false;
      this.#stopPolling();
      this.#show("live", null);
    } else if (type === "stream.reset") {
      this.#gap(body.reason, id);
    } else if (type === "stream.close") {
      return new Ended("closed", body.reason, body.retry);
    } else if (type === "heartbeat") {
      this.#position = id;
    } else {
      this.#deliver({ id, type: body.type, data: body.data, timestamp: body.timestamp });
    }
    return null;
  }

  /** Decide what follows the end of a connection; return the milliseconds until the next. */
  #after(ended) {
    const stable = this.#openedAt !== null && Date.now() - this.#openedAt >= STABLE;
    const parted = ended.kind === "closed" && this.#openedAt !== null;
    this.#failures = stable || parted ? 0 : this.#failures + 1;
    if (ended.kind === "offline") {
      this.#stopPolling();
      this.#show("offline", ended.reason);
      return this.#options.maxDelay;
    }
    if (ended.kind === "unauthorized") {
      this.#stopPolling();
      this.#show("unauthorized", ended.reason);
      // Once at once: the provider may have a newer token.
      const first = !this.#refused && this.#hasCredentials;
      this.#refused = true;
      return first ? 0 : ended.delay ?? this.#options.maxDelay * (0.5 + Math.random() / 2);
    }
    if (ended.reason === "evicted") {
      // To return at once would evict the stream that took its place, and so on for ever.
      this.#startPolling(ended.reason);
      return EVICTED_DELAY * (1 + Math.random());
    }
    if (this.#failures >= FAILURES_BEFORE_POLLING) this.#startPolling(ended.reason);
    if (!this.#poller?.working) this.#show("reconnecting", ended.reason);
    if (parted) return ended.delay ?? this.#retry;
    const most = Math.min(this.#options.maxDelay, this.#retry * 2 ** Math.min(this.#failures, 10));
    return Math.max(Math.random() * most, ended.delay ?? 0);
  }

  /** End a connection on which nothing was heard: neither events, nor heartbeats. */
  #watch(connection) {
    const limit = this.#openedAt === null ? this.#options.openTimeout : this.#heartbeat * 1.5 + 2 * TICK;
    if (Date.now() - this.#heardAt > limit) connection.abort(new Ended("lost", "silence"));
  }

  #sleep(delay) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, delay);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #listen() {
    const signal = this.#listening.signal;
    const on = (name, react) => globalThis.addEventListener?.(name, react, { signal });
    on("online", () => this.#wake());
    on("offline", () => this.#connection?.abort(new Ended("offline", "offline")));
    on("pageshow", (event) => event.persisted && this.#wake());
  }

  // Requests.

  get #hasCredentials() {
    return Boolean(this.#options.token || this.#options.ticket);
  }

  /** Return the URL of a stream from the position on; a ticket is asked for each time anew. */
  async #streamUrl(signal) {
    const query = this.#query("last_event_id");
    if (!this.#options.ticket) return `${this.#options.url}/stream${query}`;
    const given = await this.#options.ticket({ signal, refresh: this.#refused });
    return (given.url ?? given) + query;
  }

  #query(name) {
    const query = new URLSearchParams();
    const types = [this.#options.types].flat().join(",");
    if (types) query.set("types", types);
    if (this.#position !== null) query.set(name, this.#position);
    return query.size || String(query) ? `?${query}` : "";
  }

  async #fetch(url, accept, signal) {
    const headers = { Accept: accept };
    const { token } = this.#options;
    if (token) {
      const given = typeof token === "function" ? await token({ refresh: this.#refused }) : token;
      if (given) headers.Authorization = `Bearer ${given}`;
    }
    const response = await fetch(url, {
      headers,
      signal,
      cache: "no-store",
      credentials: this.#options.credentials,
      // A redirect leads to a page for people, such as a login.
      redirect: "manual",
    });
    if (response.ok) return response;
    const wait = Number(response.headers.get("Retry-After")) * 1000 || null;
    const delay = wait && wait * (1 + Math.random() / 4);
    const login = response.type === "opaqueredirect" || [401, 403].includes(response.status);
    throw new Ended(login ? "unauthorized" : "refused", String(response.status || "login"), delay);
  }

  // Polling, when there is no stream to be had.

  #startPolling(reason) {
    if (this.#poller) return;
    const poller = (this.#poller = new AbortController());
    poller.working = false;
    this.#poll(poller, reason);
  }

  #stopPolling() {
    this.#poller?.abort();
    this.#poller = null;
  }

  async #poll(poller, reason) {
    while (!poller.signal.aborted) {
      let delay = this.#retry;
      try {
        delay = await this.#pollOnce(poller);
        if (!poller.working && !poller.signal.aborted) this.#show("polling", reason);
        poller.working = true;
      } catch (error) {
        if (poller.signal.aborted) return;
        if (poller.working) this.#show("reconnecting", String(error.reason ?? error.message));
        poller.working = false;
        delay = Math.max(error.delay ?? 0, this.#retry * (1 + Math.random()));
      }
      await new Promise((resolve) => setTimeout(resolve, delay));
    }
  }

  async #pollOnce(poller) {
    const signal = AbortSignal.any
      ? AbortSignal.any([poller.signal, AbortSignal.timeout(this.#options.openTimeout)])
      : poller.signal;
    const url = `${this.#options.url}/poll${this.#query("after")}`;
    const response = await this.#fetch(url, "application/json", signal);
    const answer = await response.json();
    if (poller.signal.aborted) return 0;
    this.#heardAt = Date.now();
    if (answer.reset) this.#gap(answer.reset, answer.position);
    for (const event of answer.events) this.#deliver(event);
    this.#position = answer.position;
    return answer.retry_after * 1000 * (0.75 + Math.random() / 2);
  }

  // What the page is told.

  #gap(reason, position) {
    this.#position = position;
    this.#seen.clear();
    this.#gaps += 1;
    this.#tell(() => this.#options.onGap?.({ reason, position }));
    this.#listeners.forEach((listener) => this.#tell(listener));
  }

  #deliver(event) {
    // A probe that opens repeats what polling has given out meanwhile.
    if (this.#seen.has(event.id)) return;
    this.#seen.add(event.id);
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value);
    this.#position = event.id;
    this.#delivered += 1;
    this.#lastEventAt = Date.now();
    const parts = event.type.split(".");
    const patterns = parts.slice(0, -1).map((_, i) => `${parts.slice(0, i + 1).join(".")}.*`);
    for (const pattern of [event.type, ...patterns.reverse(), "*"]) {
      for (const handler of this.#handlers.get(pattern) ?? []) {
        this.#tell(() => handler(event.data, event));
      }
    }
  }

  #show(name, reason) {
    const before = this.#state;
    if (before.name === "closed") return;
    const since = before.name === name ? before.since : Date.now();
    this.#state = { name, attempt: this.#failures, reason, since };
    this.#tell(() => this.#options.onState?.(this.#state));
    this.#listeners.forEach((listener) => this.#tell(listener));
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
