// The connection of a page, with its state in #state.

import { connect as open } from "django_websocket";

const LABELS = {
  connecting: "Connecting",
  open: "Connected",
  waiting: "Reconnecting",
  offline: "No network",
  refused: "Refused",
  closed: "Closed",
};

/**
 * Connects to the data-url of #address, and again whenever the connection ends. The form's buttons are enabled only
 * while it is open. `query` returns what is added to the address, as it is at each attempt.
 * @param {{
 *   query?: () => Record<string, string>,
 *   onopen?: () => void,
 *   onreset?: () => void,
 *   onpresent?: (presence: import("django_websocket").Presence) => void,
 *   onmessage: (data: string | ArrayBuffer) => void,
 * }} handlers
 * @returns {(data: string | BufferSource) => boolean} sends, and tells whether it could
 */
export function connect({ query, onopen, onreset, onpresent, onmessage }) {
  const address = document.getElementById("address");
  const { url } = address.dataset;
  const state = document.getElementById("state");
  const [label, countdown] = state.children;
  const buttons = document.querySelectorAll("form button");
  let timer;

  function count(end) {
    const left = Math.max(end - Date.now(), 0);
    countdown.textContent = ` in ${Math.ceil(left / 1000)} s`;
    if (left) timer = setTimeout(count, left % 1000 || 1000, end);
  }

  address.textContent = url.replace(/\?.*/, ""); // without the time at which the page was made
  const join = url.includes("?") ? "&" : "?";
  const socket = open(query ? () => `${url}${join}${new URLSearchParams(query())}` : url);
  socket.on("message", onmessage);
  if (onreset) socket.on("reset", onreset);
  if (onpresent) socket.on("present", onpresent);
  socket.on("state", ({ name, wait }) => {
    clearTimeout(timer);
    state.dataset.state = name;
    if (label.textContent !== LABELS[name]) label.textContent = LABELS[name]; // a screen reader speaks up only for news
    countdown.textContent = "";
    if (wait) count(Date.now() + wait);
    for (const button of buttons) button.disabled = name !== "open";
    if (name === "open") onopen?.();
  });
  return (data) => socket.send(data);
}
