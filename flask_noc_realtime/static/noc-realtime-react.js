/**
 * React hooks for the events of a flask_noc_realtime app, and updates of a TanStack Query cache.
 *
 *     const stream = useNocStream({ since: position, types: ["incident.*"] });
 *     useNocEvents(stream, "incident.created", (incident) => show(incident));
 *     const { name, reason } = useNocState(stream);
 */

import { connect } from "flask-noc-realtime";
import {
  createContext,
  createElement,
  useCallback,
  useContext,
  useEffect,
  useInsertionEffect,
  useRef,
  useState,
  useSyncExternalStore,
} from "react";

const LONGEST_LIST = 1000;
const MOST_CHANGES = 1000;

// Hooks.

const Shared = createContext(null);

/** Give the components below a stream: the one passed, or one opened with the other props. */
export function NocProvider({ stream, children, ...options }) {
  const own = useOwnStream(stream ? undefined : options);
  return createElement(Shared.Provider, { value: stream ?? own }, children);
}

/** Return a stream that is open while the component is mounted; without options, the provider's. */
export function useNocStream(options) {
  const own = useOwnStream(options);
  const shared = useContext(Shared);
  if (options) return own;
  if (shared) return shared;
  throw new Error("useNocStream() is below no <NocProvider>; put one above, or pass options.");
}

/** Call handler(data, event) for a type, a pattern or several, while the component is mounted. */
export function useNocEvents(stream, types, handler) {
  const latest = useLatest(handler);
  const wanted = [types].flat().join();
  useEffect(() => {
    let last = null;
    const handle = (data, event) => {
      // Two of the patterns may match.
      if (event.id === last) return;
      last = event.id;
      latest.current(data, event);
    };
    const offs = wanted.split(",").map((type) => stream.on(type, handle));
    return () => offs.forEach((off) => off());
  }, [stream, wanted, latest]);
}

/** Return the state, or what select(snapshot) returns; the same object until it changes. */
export function useNocState(stream, select = stateOf) {
  const kept = useRef(undefined);
  const read = () => {
    const value = select(stream.snapshot());
    if (!isSame(kept.current, value)) kept.current = value;
    return kept.current;
  };
  const subscribe = useCallback(
    (listener) => {
      const offs = [stream.subscribe(listener), stream.on("*", listener)];
      return () => offs.forEach((off) => off());
    },
    [stream],
  );
  return useSyncExternalStore(subscribe, read, read);
}

function stateOf({ name, attempt, reason, since, gaps }) {
  return { name, attempt, reason, since, gaps };
}

function isSame(a, b) {
  if (Object.is(a, b)) return true;
  if (!a || !b || typeof a !== "object" || typeof b !== "object") return false;
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length && names.every((name) => Object.is(a[name], b[name]))
  );
}

function useLatest(value) {
  const latest = useRef(value);
  useInsertionEffect(() => {
    latest.current = value;
  });
  return latest;
}

function useOwnStream(options) {
  const latest = useLatest(options);
  const [stream] = useState(() => new MountedStream(options?.since));
  const key = options && JSON.stringify(options, plain);
  useEffect(() => {
    if (key === undefined) return undefined;
    stream.open(forwarding(latest));
    return () => stream.close();
  }, [stream, key, latest]);
  return stream;
}

/** Leave out what asks for no other stream; functions, new with each rendering, go by themselves. */
function plain(name, value) {
  return name === "since" || value instanceof EventTarget ? undefined : value;
}

/** Return the options with functions that call what they are by then. */
function forwarding(latest) {
  const forward = ([name, value]) => [
    name,
    typeof value === "function" ? (...given) => latest.current?.[name]?.(...given) : value,
  ];
  return Object.fromEntries(Object.entries(latest.current).map(forward));
}

/**
 * A stream that goes on from where it was when its component is mounted again.
 *
 * Handlers are kept meanwhile. So those of children, whose effects run before their parent's, are
 * there when it opens, and miss nothing.
 */
class MountedStream {
  #stream;
  #handlers = new Set();
  #listeners = new Set();

  constructor(since) {
    const state = { name: "connecting", attempt: 0, reason: null, since: Date.now() };
    const heard = { delivered: 0, gaps: 0, heardAt: null, lastEventAt: null, lastEventAge: null };
    const shared = { tabs: 1, streams: 0, way: "own", leads: false };
    const first = { ...state, position: since ?? null, ...heard, ...shared };
    this.#stream = { on: () => () => {}, snapshot: () => first, reconnect() {}, close() {} };
  }

  open(options) {
    const since = this.snapshot().position ?? options.since;
    this.#stream = connect({ ...options, since });
    for (const handler of this.#handlers) this.#attach(handler);
    this.#stream.subscribe(this.#tell);
    this.#tell();
  }

  close() {
    this.#stream.close();
  }

  on(type, handle) {
    const handler = { type, handle };
    this.#handlers.add(handler);
    this.#attach(handler);
    return () => {
      this.#handlers.delete(handler);
      handler.off();
    };
  }

  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  snapshot() {
    return this.#stream.snapshot();
  }

  reconnect() {
    this.#stream.reconnect();
  }

  #attach(handler) {
    handler.off = this.#stream.on(handler.type, handler.handle);
  }

  #tell = () => this.#listeners.forEach((listener) => guarded(listener));
}

// The cache of TanStack Query.

/**
 * Keep what a query client has fetched up to date by the events of a stream; return how to stop.
 *
 * After a gap all that the updaters are about is fetched again.
 */
export function bindQueryClient(queryClient, stream, updaters) {
  const bindings = Object.entries(updaters).flatMap(([type, given]) =>
    [given].flat().map((updater) => [type, checked(type, updater)]),
  );
  const cache = new QueryUpdates(queryClient);
  const keys = bindings.flatMap(([, updater]) => updater.keys);
  let before = stream.snapshot();
  const follow = () => {
    const now = stream.snapshot();
    // What was fetched before a stream without a position began may lack the events between.
    const begun = before.position === null && now.position !== null;
    if (begun || now.gaps > before.gaps) cache.refetch(...keys);
    before = now;
  };
  const offs = bindings.map(([type, { update }]) =>
    stream.on(type, (data, event) => update(cache, data, event)),
  );
  offs.push(stream.subscribe(follow), cache.follow());
  return () => offs.forEach((off) => off());
}

/** Put what an event tells at the head of a list. */
export function prepend(key, options) {
  return adding(key, options, (list, item, most) => [item, ...list].slice(0, most), true);
}

/** Put what an event tells at the end of a list. */
export function append(key, options) {
  return adding(key, options, (list, item, most) => [...list, item].slice(-most), false);
}

/** Merge what an event tells into what has its id, in all lists and items under a key. */
export function patch(key, { id = idOf, item = itself, at } = {}) {
  return {
    keys: [fixed(key)],
    update(cache, data) {
      const fields = item(data);
      const wanted = identified(id, fields, key);
      const merge = (old) => (String(id(old)) === wanted ? merged(old, fields) : old);
      const merges = (list) => mapped(list, merge);
      cache.changeAll(filled(key, data), (old) => {
        const changed = withList(old, at, merges, true);
        if (changed !== undefined) return changed;
        return old && typeof old === "object" ? merge(old) : old;
      });
    },
  };
}

/** Have what is under the keys fetched again. */
export function invalidate(...keys) {
  return {
    keys: keys.map(fixed),
    update: (cache, data) => cache.refetch(...keys.map((key) => filled(key, data))),
  };
}

function adding(key, { id = idOf, item = itself, at, limit = LONGEST_LIST } = {}, add, paged) {
  return {
    keys: [fixed(key)],
    update(cache, data) {
      const added = item(data);
      const wanted = identified(id, added, key);
      const adds = (list) =>
        list.some((old) => String(id(old)) === wanted)
          ? list
          : add(list, added, Math.max(limit, list.length));
      cache.change(filled(key, data), (old) => withList(old, at, adds, false, paged));
    },
  };
}

/** Return the data with its list changed; undefined when it has none. */
function withList(data, at, change, every, paged = every) {
  if (Array.isArray(data)) return change(data);
  if (Array.isArray(data?.pages) && paged) {
    const changed = (page) => withList(page, at, change, false) ?? page;
    const pages = mapped(data.pages, (page, i) => (every || i === 0 ? changed(page) : page));
    return pages === data.pages ? data : { ...data, pages };
  }
  const list = at && data?.[at];
  if (!Array.isArray(list)) return undefined;
  const changed = change(list);
  return changed === list ? data : { ...data, [at]: changed };
}

/** Map a list, which stays the same when its items do. */
function mapped(list, change) {
  const changed = list.map(change);
  return changed.every((item, i) => item === list[i]) ? list : changed;
}

function merged(old, fields) {
  const names = Object.keys(fields);
  return names.every((name) => Object.is(old[name], fields[name])) ? old : { ...old, ...fields };
}

const idOf = (item) => item?.id;
const itself = (data) => data;

function identified(id, item, key) {
  const found = id(item);
  if (found !== undefined && found !== null) return String(found);
  throw new Error(
    `An event for ${JSON.stringify(key)} has no id, so it could be shown twice; ` +
      "pass { id: (item) => ... } to say what tells one from another.",
  );
}

/** Return a key with the parts that depend on the event's data. */
function filled(key, data) {
  return key.map((part) => (typeof part === "function" ? part(data) : part));
}

/** Return the part of a key that all events have in common. */
function fixed(key) {
  const end = key.findIndex((part) => typeof part === "function");
  return end < 0 ? key : key.slice(0, end);
}

function checked(type, updater) {
  if (Array.isArray(updater?.keys) && typeof updater.update === "function") return updater;
  throw new TypeError(
    `The updater of ${JSON.stringify(type)} is none; use prepend, append, patch or invalidate, or ` +
      "{ keys, update(cache, data, event) }, where keys are what to fetch again after a gap.",
  );
}

/**
 * Changes queries so that no fetch that began earlier undoes it.
 *
 * What is changed while a query is being fetched is changed again in what the fetch brings, which
 * may be older than the event.
 */
class QueryUpdates {
  #client;
  #queries;
  #waiting = new WeakMap();

  constructor(client) {
    this.#client = client;
    this.#queries = client.getQueryCache();
  }

  follow() {
    return this.#queries.subscribe(({ type, query }) => {
      if (type === "updated" && query.state.fetchStatus === "idle") this.#settle(query);
    });
  }

  /** Replace the data of one query by what change(data) returns; it may be called twice. */
  change(key, change) {
    const query = this.#queries.find({ queryKey: key });
    if (query) this.#change(query, change);
  }

  /** Do so with every query under a key. */
  changeAll(key, change) {
    for (const query of this.#queries.findAll({ queryKey: key })) this.#change(query, change);
  }

  /** Fetch the queries under the keys again: now, or once what is being fetched is there. */
  refetch(...keys) {
    this.#refetch(new Set(keys.flatMap((queryKey) => this.#queries.findAll({ queryKey }))));
  }

  #refetch(queries) {
    // To cancel a fetch for the next would show nothing while events come quickly.
    for (const query of queries) if (isFetching(query)) this.#waitingFor(query).again = true;
    const predicate = (query) => queries.has(query) && !isFetching(query);
    this.#client.invalidateQueries({ predicate });
  }

  #change(query, change) {
    if (isFetching(query)) this.#remember(query, change);
    this.#apply(query, change);
  }

  #remember(query, change) {
    const waiting = this.#waitingFor(query);
    waiting.changes.push(change);
    if (waiting.changes.length <= MOST_CHANGES) return;
    waiting.changes = [];
    waiting.again = true;
  }

  #apply(query, change) {
    const { data } = query.state;
    if (data === undefined) return;
    const changed = change(data);
    if (changed === undefined) this.#refetch(new Set([query]));
    // Nothing but the data: what is stale, invalidated or failed stays so.
    else if (changed !== data) query.setState({ data: changed });
  }

  #settle(query) {
    const waiting = this.#waiting.get(query);
    if (!waiting) return;
    this.#waiting.delete(query);
    for (const change of waiting.changes) guarded(() => this.#apply(query, change));
    if (waiting.again) this.#refetch(new Set([query]));
  }

  #waitingFor(query) {
    if (!this.#waiting.has(query)) this.#waiting.set(query, { changes: [], again: false });
    return this.#waiting.get(query);
  }
}

function isFetching(query) {
  return query.state.fetchStatus === "fetching";
}

/** Run the page's code; what it throws is its own, and must not stop whoever calls. */
function guarded(call) {
  try {
    call();
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}
