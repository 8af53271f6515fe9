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
  /** Milliseconds since the last event. */
  lastEventAge: number | null;
  /** Tabs of this browser that share the stream, this one included. */
  tabs: number;
  /** Streams they have open at the server: one while live, else none. */
  streams: number;
  /** How the stream is shared: in a shared worker, by a tab that holds a lock, or not. */
  way: "worker" | "locks" | "own";
  /** Whether this tab holds the stream. */
  leads: boolean;
}

export interface Gap {
  reason: string;
  /** Where it goes on. */
  position: string;
}

export interface Asked {
  /** The last one was not accepted. */
  refresh: boolean;
  /** Aborted when the stream is closed. */
  signal: AbortSignal;
}

type Promised<T> = T | Promise<T>;

export interface Options {
  /** The prefix of the blueprint; where the script was served from by default. */
  url?: string;
  /** The position the page was computed at: nothing after it is missed. */
  since?: string | null;
  /** Event types and patterns such as "incident.*"; all by default. */
  types?: string | string[];
  /** A token, or what returns one. */
  token?: string | null | ((asked: Asked) => Promised<string | null | undefined>);
  /** Returns what `POST connect` answered, anew for each connection. */
  ticket?: ((asked: Asked) => Promised<string | { url: string }>) | null;
  /**
   * Whether tabs with the same url, types and user have one stream together; "auto" by default.
   * Users are told apart by their tokens, and by the name that is given here instead. With tickets
   * "auto" shares nothing, and `true` says that all tabs are of one user.
   */
  share?: boolean | "auto" | (string & {});
  /** Dispatch `noc:<type>`, `noc:state` and `noc:gap` on the document, or on what is given. */
  dom?: boolean | EventTarget | null;
  /** "include" sends cookies to another origin; "same-origin" by default. */
  credentials?: RequestCredentials;
  /** Milliseconds until a connection must have begun to tell; 10,000 by default. */
  openTimeout?: number;
  /** Milliseconds between two connections at most; 30,000 by default. */
  maxDelay?: number;
  onState?: (state: State) => void;
  /** Events are missing: fetch the data again. */
  onGap?: (gap: Gap) => void;
  /** What the server sent, as it came: parts of a stream, answers of polls. For debugging. */
  onWire?: (text: string) => void;
}

export interface Stream {
  /** Call a handler for a type, a pattern such as "incident.*", or "*"; returns how to stop. */
  on<Data = any>(type: string, handler: (data: Data, event: NocEvent<Data>) => void): () => void;
  /** Call a listener at the first position, and whenever the state, the gaps or the tabs have changed. */
  subscribe(listener: () => void): () => void;
  snapshot(): Snapshot;
  /** End the connection, as a network might, and connect anew; of all tabs that share it. */
  reconnect(): void;
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

declare global {
  /** What client.classic.js sets. */
  const NocRealtime: { connect: typeof connect; EventParser: typeof EventParser };

  interface DocumentEventMap {
    "noc:state": CustomEvent<State>;
    "noc:gap": CustomEvent<Gap>;
  }
}
