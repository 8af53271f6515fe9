/**
 * The same for pages without modules: `window.NocRealtime`.
 *
 *     <script src="/api/v1/events/client.classic.js"></script>
 *     <script>const stream = NocRealtime.connect({ since: position });</script>
 */

import { connector } from "./client.js";
import { serveWorker } from "./link.js";

export { EventParser } from "./parser.js";

const { document, location } = globalThis;
const script = document?.currentScript;

export const connect = connector({ url: script?.src ?? String(location), type: "classic" });

serveWorker();

// {{ noc_realtime_script(classic=True) }} says in its tag what to connect to; see noc-realtime-page.js.
if (script?.dataset.url) {
  const { url, since, types } = script.dataset;
  const begin = () => {
    globalThis.nocRealtime ??= connect({ url, since, types, dom: document.body });
  };
  // The page's own scripts come first: an event before they listen would be lost.
  if (document.readyState === "complete") begin();
  else for (const name of ["DOMContentLoaded", "load"]) addEventListener(name, begin);
}
