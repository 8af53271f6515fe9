import { EventParser } from "./parser.js";

const FIRST_DELAY = 1_000;
const STABLE = 5_000;
const EVICTED_DELAY = 60_000;
const FAILURES_BEFORE_POLLING = 3;
const REMEMBERED = 4096;
const HEARTBEAT = 15_000;
const TICK = 500;
const CONTROLS = ["stream.open", "stream.reset", "stream.close", "heartbeat"];
const STREAM_TYPE = /^text\/event-stream\s*(;|$)/i;

/** Why a connection ended: closed, lost, suspended, offline, refused, unauthorized or rollout. */
export class Ended extends Error {
  constructor(kind, reason = kind, delay = null) {
    super(reason);
    Object.assign(this, { kind, reason, delay });
  }
}

/**
 * One position in the order of events, kept live by whatever way there is.
 *
 * `told` is told of events, marks, gaps and states, and of what came over the wire, and asked for
 * tokens and tickets.
 */
export class Stream {
  #options;
  #told;
  #state = null;
  #position;
  #seen = new Set();
  #retry = FIRST_DELAY;
  #heartbeat = HEARTBEAT;
  #failures = 0;
  #lostSoon = 0;
  #openedAt = null;
  #heardAt = 0;
  #tickedAt = Date.now();
  #closed = false;
  #refused = false;
  #readable = Boolean(new Response("").body?.getReader);
  #connection = null;
  #poller = null;
  #due = Infinity;
  #rouse = () => {};
  #timer;

  constructor(options, since, told) {
    this.#options = options;
    this.#told = told;
    this.#position = since;
    this.#show("connecting", null);
    this.#timer = setInterval(() => this.tick(), TICK);
    this.#run();
  }

  /** End a silent connection and a wait that is over; the more often this is called, the sooner. */
  tick() {
    const now = Date.now();
    const limit = this.#limit;
    const late = now - this.#tickedAt > limit;
    this.#tickedAt = now;
    // A clock that is set back must not put the watch off.
    if (now < this.#heardAt) this.#heardAt = now;
    if (now - this.#heardAt > limit) {
      this.#connection?.abort(late ? new Ended("suspended") : new Ended("lost", "silence"));
    }
    if (now >= this.#due) this.#rouse();
  }

  /** Try again now: the network is back, or the machine. */
  wake() {
    this.tick();
    if (this.#due < Infinity) this.#rouse();
    this.#poller?.rouse();
  }

  /** The browser says that there is no network. */
  offline() {
    if (this.#connection) return this.#connection.abort(new Ended("offline"));
    if (this.#poller) this.#poller.working = false;
    this.#show("offline", "offline");
  }

  reconnect() {
    this.#connection?.abort(new Ended("lost", "dropped"));
    this.#rouse();
  }

  close() {
    this.#closed = true;
    clearInterval(this.#timer);
    this.#stopPolling();
    this.#connection?.abort(new Ended("closed"));
    this.#rouse();
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
    try {
      return await this.#stream(connection.signal);
    } catch (error) {
      const why = connection.signal.reason ?? error;
      return why instanceof Ended ? why : new Ended("lost", String(why.message ?? why));
    } finally {
      connection.abort();
      this.#connection = null;
    }
  }

  async #stream(signal) {
    const url = await this.#streamUrl(signal);
    if (!this.#readable) return this.#source(url, signal);
    const response = await this.#fetch(url, "text/event-stream", signal);
    if (!STREAM_TYPE.test(response.headers.get("Content-Type"))) {
      throw new Ended("refused", "not a stream");
    }
    let last = null;
    const parser = new EventParser((event) => (last = this.#take(event) ?? last));
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return last ?? new Ended("lost", "ended");
      this.#hear();
      if (signal.aborted) throw signal.reason;
      const text = decoder.decode(value, { stream: true });
      this.#told.wire(text);
      parser.feed(text);
    }
  }

  /** Be connected where a response cannot be read while it comes. */
  async #source(url, signal) {
    // It tells only of events whose types it was given.
    const { types } = await this.#json("GET", "/config", signal);
    const withCredentials = this.#options.credentials === "include";
    const source = new EventSource(url, { withCredentials });
    const ended = await new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason));
      source.onerror = () => resolve(null);
      for (const type of [...CONTROLS, ...types]) {
        source.addEventListener(type, ({ data, lastEventId }) => {
          this.#hear();
          if (signal.aborted) return;
          const ended = this.#take({ type, data, id: lastEventId });
          if (ended) resolve(ended);
        });
      }
    }).finally(() => source.close());
    // It keeps the status of an answer to itself; poll is answered by the same rules.
    if (!ended && this.#openedAt === null) {
      const { stream } = await this.poll(this.#position, signal);
      if (stream === false) throw new Ended("rollout");
    }
    return ended ?? new Ended("lost", "ended");
  }

  /** Take what the stream says; return how it ended when it says that. */
  #take({ type, data, id }) {
    const body = JSON.parse(data);
    if (type === "stream.open") {
      this.#retry = body.retry ?? this.#retry;
      this.#heartbeat = body.heartbeat ?? this.#heartbeat;
      this.#openedAt = Date.now();
      this.#refused = false;
      this.#stopPolling();
      // It repeats the position that was asked for, which polling may have passed.
      if (this.#position === null) this.#mark(id);
      this.#claim("live", null, body);
    } else if (type === "stream.reset") {
      this.#gap(body.reason, id);
    } else if (type === "stream.close") {
      return new Ended("closed", body.reason, body.retry);
    } else if (type === "heartbeat") {
      this.#mark(id);
      this.#claim("live", null, body);
    } else {
      this.#claim("live", null, {});
      this.#deliver({ id, type: body.type, data: body.data, timestamp: body.timestamp }, data.length);
    }
    return null;
  }

  /** Show a state, unless the server says that it has lost its broker: then it brings nothing. */
  #claim(name, reason, { broker }) {
    const [shown, why] = broker === "away" ? ["reconnecting", "broker"] : [name, reason];
    if (this.#state.name !== shown || this.#state.reason !== why) this.#show(shown, why);
  }

  /** Decide what follows the end of a connection; return the milliseconds until the next. */
  #after({ kind, reason, delay }) {
    const opened = this.#openedAt !== null;
    const parted = kind === "closed" && opened;
    const stable = opened && Date.now() - this.#openedAt >= STABLE;
    const blameless = parted || stable || kind === "suspended" || reason === "rollout";
    // What failed before a connection opened is over; that it opened and was lost soon is not.
    if (blameless) this.#lostSoon = this.#failures = 0;
    else if (opened) this.#failures = this.#lostSoon += 1;
    else this.#failures += 1;
    if (kind === "offline") {
      this.#stopPolling();
      this.#show("offline", reason);
      return this.#options.maxDelay;
    }
    if (kind === "unauthorized") {
      this.#stopPolling();
      return this.#unauthorized(reason, delay);
    }
    // A 204, or the goodbye of a stream before there are only those.
    if (reason === "rollout") {
      this.#startPolling(reason);
      return Infinity;
    }
    if (reason === "evicted") {
      // To return at once would evict the stream that took its place, and so on for ever.
      this.#startPolling(reason);
      return EVICTED_DELAY * (1 + Math.random());
    }
    if (this.#failures >= FAILURES_BEFORE_POLLING) this.#startPolling(reason);
    if (!this.#poller?.working) this.#show("reconnecting", reason);
    if (kind === "suspended") return 0;
    if (parted) return delay ?? this.#retry;
    return Math.max(Math.random() * this.#backoff, delay ?? 0);
  }

  /** The most to wait after so many failures. */
  get #backoff() {
    return Math.min(this.#options.maxDelay, this.#retry * 2 ** Math.min(this.#failures, 10));
  }

  #unauthorized(reason, delay) {
    this.#show("unauthorized", reason);
    // Once at once: the provider may have a newer token.
    const first = !this.#refused && Boolean(this.#options.token || this.#options.ticket);
    this.#refused = true;
    return first ? 0 : delay ?? this.#backoff * (0.5 + Math.random() / 2);
  }

  /** How long nothing may be heard, neither events nor heartbeats. */
  get #limit() {
    return this.#openedAt === null ? this.#options.openTimeout : this.#heartbeat * 1.5 + 2 * TICK;
  }

  #hear() {
    const now = Date.now();
    // The watch would have ended it, had it not been asleep, as the whole machine was.
    if (now - this.#heardAt > this.#limit) this.#connection.abort(new Ended("suspended"));
    this.#heardAt = now;
  }

  #sleep(delay) {
    this.#due = Date.now() + delay;
    return new Promise((resolve) => {
      this.#rouse = () => {
        clearTimeout(timer);
        this.#due = Infinity;
        resolve();
      };
      const timer = delay < Infinity ? setTimeout(this.#rouse, delay) : null;
    });
  }

  // Requests.

  /** Return the URL of a stream from the position on; a ticket is asked for each time anew. */
  async #streamUrl(signal) {
    const { url, ticket, token } = this.#options;
    const query = this.#query("last_event_id", this.#position);
    let given = "";
    if (ticket) given = await this.#told.ask("ticket", this.#refused, signal);
    // An EventSource sends no token, and one in its URL would be in every log.
    else if (token && !this.#readable) given = await this.#json("POST", "/connect", signal);
    if (!given) return `${url}/stream${query}`;
    return new URL(given.url ?? given, url) + query;
  }

  #query(name, position) {
    const query = new URLSearchParams();
    if (this.#options.types) query.set("types", this.#options.types);
    if (position !== null) query.set(name, position);
    return String(query) && `?${query}`;
  }

  async #json(method, path, signal) {
    const url = this.#options.url + path;
    return (await this.#fetch(url, "application/json", signal, method)).json();
  }

  async #fetch(url, accept, signal, method = "GET") {
    const headers = { Accept: accept };
    const { token, credentials } = this.#options;
    const given = token === true ? await this.#told.ask("token", this.#refused, signal) : token;
    if (given) headers.Authorization = `Bearer ${given}`;
    // A redirect leads to a page for people, such as a login.
    const how = { cache: "no-store", redirect: "manual" };
    const response = await fetch(url, { method, headers, signal, credentials, ...how });
    if (response.status === 204) throw new Ended("rollout");
    if (response.ok) return response;
    const wait = Number(response.headers.get("Retry-After")) * 1000 || null;
    const delay = wait && wait * (1 + Math.random() / 4);
    const login = response.type === "opaqueredirect" || [401, 403].includes(response.status);
    throw new Ended(login ? "unauthorized" : "refused", String(response.status || "login"), delay);
  }

  /** Ask once what is after a position. */
  async poll(position, signal) {
    const within = new AbortController();
    const end = () => within.abort(signal?.reason ?? new Ended("lost", "silence"));
    const timer = setTimeout(end, this.#options.openTimeout);
    signal?.addEventListener("abort", end);
    try {
      return await this.#json("GET", `/poll${this.#query("after", position)}`, within.signal);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
    }
  }

  // Polling, when there is no stream to be had.

  #startPolling(reason) {
    const poller = this.#poller;
    if (!poller) {
      this.#poller = Object.assign(new AbortController(), { reason, rouse: () => {} });
      return this.#poll(this.#poller);
    }
    poller.reason = reason;
    if (poller.working) this.#show("polling", reason);
  }

  #stopPolling() {
    this.#poller?.abort();
    this.#poller = null;
  }

  async #poll(poller) {
    while (!poller.signal.aborted) {
      let delay;
      try {
        const answer = await this.poll(this.#position, poller.signal);
        if (poller.signal.aborted) return;
        this.#told.wire(`${JSON.stringify(answer)}\n`);
        this.#refused = false;
        delay = this.#answered(answer);
        this.#claim("polling", poller.reason, answer);
        // What kept the stream away may be over as well; it is not when that was the server's wish.
        const wished = answer.stream === false || ["rollout", "evicted"].includes(poller.reason);
        if (!poller.working && !wished) this.#rouse();
        poller.working = true;
      } catch (error) {
        if (poller.signal.aborted) return;
        delay = this.#unanswered(poller, error);
      }
      await new Promise((resolve) => {
        poller.rouse = resolve;
        setTimeout(resolve, delay);
      });
    }
  }

  /** Take what a poll was answered; return the milliseconds until the next. */
  #answered({ events, position, reset, retry_after, stream }) {
    if (reset) {
      this.#gap(reset, position);
      // A stream that was asked for from before it would tell the same gap once more.
      if (this.#openedAt === null) this.#connection?.abort(new Ended("suspended", "gap"));
    }
    for (const event of events) this.#deliver(event, JSON.stringify(event).length);
    this.#mark(position);
    // After a 204 nothing else ends the wait; a server that does not say is tried now and then.
    if (this.#poller.reason === "rollout") this.#failures = 0;
    if (stream === true && this.#due === Infinity) this.#rouse();
    if (stream === undefined && this.#due === Infinity) this.#due = Date.now() + this.#options.maxDelay;
    return retry_after * 1000 * (0.75 + Math.random() / 2);
  }

  #unanswered(poller, error) {
    const wait = this.#retry * (1 + Math.random());
    if (error.kind === "unauthorized" && this.#due === Infinity) {
      // No probe of the stream finds out.
      poller.working = false;
      this.#failures += 1;
      return this.#unauthorized(error.reason, error.delay);
    }
    if (poller.working) this.#show("reconnecting", String(error.reason ?? error.message));
    poller.working = false;
    return Math.max(error.delay ?? 0, wait);
  }

  // What is told.

  #mark(position) {
    this.#position = position;
    this.#told.mark(position);
  }

  #gap(reason, position) {
    this.#position = position;
    this.#seen.clear();
    this.#told.gap(reason, position);
  }

  #deliver(event, characters) {
    // A probe that opens repeats what polling has given out meanwhile.
    if (this.#seen.has(event.id)) return;
    this.#seen.add(event.id);
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value);
    this.#position = event.id;
    this.#told.event(event, characters);
  }

  #show(name, reason) {
    const since = this.#state?.name === name ? this.#state.since : Date.now();
    this.#state = { name, attempt: name === "live" ? 0 : this.#failures, reason, since };
    this.#told.show(this.#state);
  }
}
