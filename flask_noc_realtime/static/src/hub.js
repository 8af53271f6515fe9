import { Ring } from "./ring.js";
import { Ended, Stream } from "./stream.js";

const PATIENCE = 2_000;
const SILENCE = 2_500;
const EXPIRY = 5_000;
const TRIES = 3;

/**
 * One stream for many tabs.
 *
 * A tab joins through a port with the position it has reached, and gets everything after it: from
 * the ring, from a poll of its own when the ring begins later, or as a gap. It drops by itself what
 * it has already.
 */
export class Hub {
  #options;
  #emptied;
  #tellAll;
  #members = new Map();
  #ring = null;
  #stream = null;
  #state = null;
  #heardAt = null;
  #token = null;
  #asked = 0;
  #answers = new Map();

  /**
   * `emptied` is called when the last tab has left, which ends the stream; `tellAll` posts one
   * message to several ports.
   */
  constructor(options, { emptied = () => {}, tellAll = postToEach } = {}) {
    this.#options = options;
    this.#emptied = emptied;
    this.#tellAll = tellAll;
  }

  /** Take what a tab says. */
  receive(port, { kind, ...body }) {
    if (kind === "join") return this.#join(port, body);
    const member = this.#members.get(port);
    if (!member) return port.postMessage({ kind: "unknown" });
    member.heardAt = Date.now();
    if (kind === "here") this.#here(port);
    else if (kind === "wake") this.#stream.wake();
    else if (kind === "offline") this.#stream.offline();
    else if (kind === "reconnect") this.#stream.reconnect();
    else if (kind === "given") this.#answers.get(body.number)?.(body);
    else if (kind === "bye") this.leave(port);
  }

  /** Do without a tab. */
  leave(port) {
    if (!this.#members.delete(port)) return;
    if (!this.#members.size) this.close();
    else this.#count();
  }

  close() {
    this.#members.clear();
    this.#stream?.close();
    this.#stream = null;
    this.#emptied();
  }

  #join(port, { page, since, token, wire }) {
    const member = { port, page, since, wire, heardAt: Date.now(), admitted: false, tries: 0 };
    this.#members.set(port, member);
    if (!this.#stream) {
      this.#token = token;
      this.#ring = new Ring(since);
      this.#stream = new Stream(this.#options, since, this);
    } else if (this.#state.name === "unauthorized") {
      // Who comes may have logged in.
      this.#stream.wake();
    }
    port.postMessage({ kind: "joined", state: this.#state, heardAt: this.#heardAt });
    this.#count();
    this.#admit(member);
  }

  #here(port) {
    // The hub's own timers are slow in a hidden tab; those of one that is seen are not.
    this.#stream.tick();
    port.postMessage({ kind: "here" });
    for (const [other, { heardAt }] of this.#members) {
      const silence = Date.now() - heardAt;
      if (silence > EXPIRY) this.leave(other);
      // A hidden tab seldom speaks by itself, and answers all the same.
      else if (silence > SILENCE) other.postMessage({ kind: "check" });
    }
  }

  #count() {
    const pages = [...this.#members.values()].map(({ page }) => page);
    this.#tell({ kind: "tabs", tabs: new Set(pages).size });
  }

  /** Give a tab what it misses; from then on it gets what comes. */
  #admit(member) {
    if (member.admitted || this.#members.get(member.port) !== member) return;
    if (this.#ring.start === null) return;
    const events = this.#ring.after(member.since ?? this.#ring.end);
    if (!events) return this.#catchUp(member);
    member.admitted = true;
    for (const event of events) member.port.postMessage({ kind: "event", event });
    member.port.postMessage({ kind: "mark", position: this.#ring.end });
  }

  /** Ask the server what a tab misses that the ring does not have. */
  async #catchUp(member) {
    if (member.catching || !["live", "polling"].includes(this.#state.name)) return;
    const { port, since } = member;
    member.catching = true;
    const answer = await this.#stream.poll(since).catch(() => null);
    member.catching = false;
    // A gap meanwhile began anew, or the tab did.
    if (member.admitted || this.#members.get(port) !== member) return;
    for (const event of answer?.events ?? []) port.postMessage({ kind: "event", event });
    if (answer?.reset) port.postMessage({ kind: "gap", reason: answer.reset, position: answer.position });
    member.since = answer?.position ?? since;
    if (member.since !== since) return this.#admit(member);
    member.tries += 1;
    if (member.tries < TRIES) return setTimeout(() => this.#admit(member), member.tries * PATIENCE);
    port.postMessage({ kind: "gap", reason: "unreachable", position: this.#ring.end });
    member.since = this.#ring.end;
    this.#admit(member);
  }

  #tell(message, members = this.#members.values()) {
    this.#tellAll([...members].map(({ port }) => port), message);
  }

  #those(is) {
    return [...this.#members.values()].filter((member) => member[is]);
  }

  #admitAll() {
    for (const member of this.#members.values()) this.#admit(member);
  }

  // What the stream tells and asks.

  show(state) {
    this.#state = state;
    if (state.name === "live") this.#heardAt = Date.now();
    this.#tell({ kind: "state", state });
    if (this.#stream) this.#admitAll();
  }

  event(event, characters) {
    this.#heardAt = Date.now();
    this.#ring.add(event, characters);
    this.#tell({ kind: "event", event }, this.#those("admitted"));
  }

  mark(position) {
    this.#heardAt = Date.now();
    this.#ring.mark(position);
    this.#tell({ kind: "mark", position }, this.#those("admitted"));
    this.#admitAll();
  }

  gap(reason, position) {
    this.#heardAt = Date.now();
    this.#ring.reset(position);
    for (const member of this.#members.values()) member.admitted = true;
    this.#tell({ kind: "gap", reason, position });
  }

  wire(text) {
    const members = this.#those("wire");
    if (members.length) this.#tell({ kind: "wire", text }, members);
  }

  /** Ask the tabs for a token or a ticket: the liveliest first, the next if it says nothing. */
  ask(what, refresh, signal) {
    if (what === "token" && !refresh && this.#token) {
      const token = this.#token;
      this.#token = null;
      return token;
    }
    const number = ++this.#asked;
    const members = [...this.#members.values()].sort((one, other) => other.heardAt - one.heardAt);
    const next = () => members.shift()?.port.postMessage({ kind: "ask", number, what, refresh });
    const timer = setInterval(next, PATIENCE);
    const asked = new Promise((resolve, reject) => {
      this.#answers.set(number, ({ value, error }) => {
        if (error === undefined) resolve(value);
        else reject(new Ended("lost", error));
      });
      const giveUp = () => reject(signal.reason);
      if (signal.aborted) giveUp();
      signal.addEventListener("abort", giveUp);
    });
    next();
    return asked.finally(() => {
      clearInterval(timer);
      this.#answers.delete(number);
    });
  }
}

function postToEach(ports, message) {
  for (const port of ports) port.postMessage(message);
}
