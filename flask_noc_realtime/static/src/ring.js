const MOST_EVENTS = 1024;
const MOST_CHARACTERS = 4 * 1024 * 1024;

/**
 * Compare two positions; NaN when only the server can tell.
 *
 * Redis numbers by milliseconds and sequence, a process by itself and sequence.
 */
export function order(one, other) {
  if (one === other) return 0;
  const [[epoch, number], [otherEpoch, otherNumber]] = [one.split("-"), other.split("-")];
  if (epoch === otherEpoch) return number - otherNumber;
  return [epoch, otherEpoch].every((digits) => /^\d{13,}$/.test(digits)) ? epoch - otherEpoch : NaN;
}

/** The newest events, without a hole from `start` to `end`. */
export class Ring {
  #events = [];
  #characters = 0;
  start;
  end;

  constructor(position) {
    this.reset(position);
  }

  /** Begin anew: nothing before continues. */
  reset(position) {
    this.start = this.end = position;
    this.#events = [];
    this.#characters = 0;
  }

  add(event, characters) {
    this.mark(event.id);
    this.#events.push({ event, characters });
    this.#characters += characters;
    while (this.#events.length > MOST_EVENTS || this.#characters > MOST_CHARACTERS) {
      const oldest = this.#events.shift();
      this.#characters -= oldest.characters;
      this.start = oldest.event.id;
    }
  }

  /** Take the end without an event: what is between is for others. */
  mark(position) {
    this.start ??= position;
    this.end = position;
  }

  /** Return the events after a position; null when there may have been more. */
  after(position) {
    if (!(order(position, this.start) >= 0)) return null;
    return this.#events.map(({ event }) => event).filter(({ id }) => order(id, position) > 0);
  }
}
