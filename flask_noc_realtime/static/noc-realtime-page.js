/**
 * Keeps a page live that needs no script of its own: {{ noc_realtime_script() }} in its template.
 *
 * Each event is dispatched on the body as noc:<its type>; noc:state and noc:gap tell the rest.
 */

const { nocRealtime: client, url, since, types } = document.querySelector(
  "script[data-noc-realtime]",
).dataset;

let begun = false;

async function begin() {
  if (begun) return;
  begun = true;
  const { connect } = await import(client);
  window.nocRealtime = connect({ url, since, types, dom: document.body });
}

// The page's own scripts come first: an event before they listen would be lost.
if (document.readyState === "complete") begin();
else for (const name of ["DOMContentLoaded", "load"]) addEventListener(name, begin);
