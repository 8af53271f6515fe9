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

export const connect = connector({
  url: document?.currentScript?.src ?? String(location),
  type: "classic",
});

serveWorker();
