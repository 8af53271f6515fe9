import { Hub } from "./hub.js";

/** Names the protocol between tabs, so that those of two releases never meet. */
export const BUILD = typeof NOC_REALTIME_BUILD === "string" ? NOC_REALTIME_BUILD : "source";

/**
 * The ways of a tab to a hub, best first.
 *
 * Each takes what is shared, a function for what the hub says, and one to call when the way is
 * found broken, and returns how to post to the hub, whether it is this tab's, and how to close.
 */
export const WAYS = { worker, locks, own };

/** Whether a way exists here: of the shared ones, plain http has only the worker. */
export const EXISTS = {
  worker: () => Boolean(globalThis.SharedWorker),
  locks: () => Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel),
  own: () => true,
};

function worker({ script }, receive, broken) {
  const { url, type } = script;
  const worker = new SharedWorker(url, { type, name: `noc-realtime-${BUILD}` });
  worker.onerror = (event) => {
    event.preventDefault?.();
    broken();
  };
  worker.port.onmessage = ({ data }) => receive(data);
  return {
    post: (message) => worker.port.postMessage(message),
    close: () => worker.port.close(),
  };
}

/** The tab that holds the lock serves all; when it is gone, the next holds it. */
function locks({ name, options }, receive, broken, steal) {
  const me = crypto.randomUUID();
  const channel = new BroadcastChannel(name);
  const waiting = new AbortController();
  let leads = false;
  let end = () => {};
  channel.onmessage = ({ data }) => {
    if (data.to?.includes(me)) receive(data.message);
    else if (data.led) receive({ kind: "unknown" });
  };
  const lead = () => {
    // Closed while the lock was on its way.
    if (waiting.signal.aborted) return null;
    const close = serveChannel(name, options);
    leads = true;
    return new Promise((release) => {
      end = () => {
        leads = false;
        close();
        release();
      };
    });
  };
  // Only a leader that is frozen is robbed.
  const how = steal ? { steal } : { signal: waiting.signal };
  navigator.locks.request(name, how, lead).catch(() => end());
  return {
    post: (message) => channel.postMessage({ from: me, message }),
    leads: () => leads,
    close: () => {
      waiting.abort();
      end();
      channel.close();
    },
  };
}

function serveChannel(name, options) {
  const channel = new BroadcastChannel(name);
  // Every tab gets what any is sent, so that one message to all must be one.
  const tellAll = (ports, message) =>
    channel.postMessage({ to: ports.map(({ from }) => from), message });
  const hub = new Hub(options, { tellAll });
  const ports = new Map();
  channel.onmessage = ({ data: { from, message } }) => {
    if (!from) return;
    const port = ports.get(from) ?? { from, postMessage: (message) => tellAll([port], message) };
    ports.set(from, port);
    hub.receive(port, message);
    if (message.kind === "bye") ports.delete(from);
  };
  channel.postMessage({ led: true });
  return () => {
    hub.close();
    channel.close();
  };
}

/** A hub of the tab's own. */
function own({ options }, receive) {
  const hub = new Hub(options);
  const port = { postMessage: (message) => queueMicrotask(() => receive(message)) };
  return {
    post: (message) => hub.receive(port, message),
    leads: () => true,
    close: () => hub.close(),
  };
}

/** Be the worker, where this script runs as one. */
export function serveWorker() {
  const Scope = globalThis.SharedWorkerGlobalScope;
  if (!Scope || !(globalThis instanceof Scope)) return;
  const hubs = new Map();
  globalThis.onconnect = ({ ports: [port] }) => {
    let hub = null;
    port.onmessage = ({ data }) => {
      if (data.kind === "join") hub = enter(data);
      if (hub) hub.receive(port, data);
      else port.postMessage({ kind: "refused" });
    };
  };

  function enter({ build, key, options }) {
    if (build !== BUILD) return null;
    if (!hubs.has(key)) hubs.set(key, new Hub(options, { emptied: () => hubs.delete(key) }));
    return hubs.get(key);
  }
}
