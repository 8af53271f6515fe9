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
