// A live session: a run of a node opens it, and the host tells its token to the page that queued the run alone.

import { api } from "../../scripts/api.js";
import { nodeOf } from "./hooks.js";

const ROUTE = "/anifacediff/live";
const TOKEN = "X-AniFaceDiff-Token";
const STATUS = "X-AniFaceDiff-Status";
const EVENT = "anifacediff.live";

// Send something to draw by; null where nobody answers.
export function post(token, body) {
  return send(token, "", { body });
}

// Have something done, such as "stop"; also while the page goes away.
export function ask(token, action) {
  return send(token, `?do=${action}`, { keepalive: true });
}

function send(token, query, options) {
  return api.fetchApi(ROUTE + query, { method: "POST", headers: { [TOKEN]: token }, ...options }).catch(() => null);
}

// What the node says beside its picture.
export function statusOf(response) {
  return JSON.parse(response.headers.get(STATUS));
}

// Tell panels, which are kept by their nodes, when a session begins and ends.
export function follow(panels) {
  api.addEventListener(EVENT, ({ detail }) => {
    const node = nodeOf(String(detail.node));
    const panel = node && panels.get(node);
    if (detail.token) panel?.begin(detail.token, detail);
    else panel?.end();
  });
  const each = (action) => () => {
    for (const panel of panels.values()) panel[action]();
  };
  // Whatever comes of a run, nobody waits for it any more.
  for (const end of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(end, each("end"));
  // Without an answer from this page the session would end by itself, some time later.
  addEventListener("pagehide", each("stop"));
}
