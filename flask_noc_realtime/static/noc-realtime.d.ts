/** One event, as it was emitted. */
export interface NocEvent<Data = any> {
  /** Its position. */
  id: string;
  type: string;
  data: Data;
  /** When it was emitted, ISO 8601. */
  timestamp: string;
}

export type StateName =
  | "connecting"
  | "live"
  | "reconnecting"
  | "polling"
  | "offline"
  | "unauthorized"
  | "closed";

export interface State {
  name: StateName;
  /** Connections that failed one after the other. */
  attempt: number;
  /** Why it is not live. */
  reason: string | null;
  /** Since when, in milliseconds as of Date.now(). */
  since: number;
}

export interface Snapshot extends State {
  position: string | null;
  /** Events given to handlers. */
  delivered: number;
  /** How often everything had to be fetched again. */
  gaps: number;
  /** When the server was heard last, events and heartbeats alike. */
  heardAt: number | null;
  lastEventAt: number | null;
}

export interface Options {
  /** The prefix of the blueprint; "/api/v1/events" by default. */
  url?: string;
  /** The position the page was computed at: nothing after it is missed. */
  since?: string | null;
  /** Event types and patterns such as "incident.*"; all by default. */
  types?: string | string[];
  /** A token, or what returns one; `refresh` is set when the last one was not accepted. */
  token?: string | ((asked: { refresh: boolean }) => string | Promise<string>);
  /** Returns what `POST connect` answered, anew for each connection. */
  ticket?: (asked: {
    refresh: boolean;
    signal: AbortSignal;
  }) => Promise<string | { url: string }> | string | { url: string };
  /** "include" sends cookies to another origin; "same-origin" by default. */
  credentials?: RequestCredentials;
  /** Milliseconds until a connection must have begun to tell; 10,000 by default. */
  openTimeout?: number;
  /** Milliseconds between two connections at most; 30,000 by default. */
  maxDelay?: number;
  onState?: (state: State) => void;
  /** Events are missing: fetch the data again. */
  onGap?: (gap: { reason: string; position: string }) => void;
}

export interface Stream {
  /** Call a handler for a type, a pattern such as "incident.*", or "*"; returns how to stop. */
  on<Data = any>(type: string, handler: (data: Data, event: NocEvent<Data>) => void): () => void;
  /** Call a listener whenever the state or the number of gaps has changed; returns how to stop. */
  subscribe(listener: () => void): () => void;
  snapshot(): Snapshot;
  close(): void;
}

export function connect(options?: Options): Stream;

/** Reads a text/event-stream: WHATWG HTML, section 9.2.6. */
export class EventParser {
  constructor(
    emit: (event: { type: string; data: string; id: string }) => void,
    retry?: (milliseconds: number) => void,
  );
  feed(text: string): void;
}
