/**
 * Live events of a flask_noc_realtime app, in any browser, without dependencies.
 *
 *     import { connect } from "/api/v1/events/client.js";
 *     const stream = connect({ since: position, types: ["incident.*"] });
 *     stream.on("incident.created", (incident) => show(incident));
 */

import { connector } from "./client.js";
import { serveWorker } from "./link.js";

export { EventParser } from "./parser.js";

/** Open the stream of an app; see noc-realtime.d.ts for the options. */
export const connect = connector({ url: import.meta.url, type: "module" });

serveWorker();
